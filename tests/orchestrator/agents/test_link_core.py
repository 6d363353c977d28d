"""Nothing lost, nothing doubled, whatever the network does."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.agents.agent_link import WINDOW_BYTES, WINDOW_S, LinkCore, LinkDesync, Pull
from orchestrator.audio.outgoing_segment import LinkMessage


def source(waiting: deque[LinkMessage]) -> Pull:
    """Gives what waits while the window is open."""
    return lambda now, outstanding_s, control_only: waiting.popleft() if waiting and not control_only else None


class Network:
    """An agent behind a connection that may drop what is under way, in both directions."""

    def __init__(self, core: LinkCore) -> None:
        self.core = core
        self.waiting: deque[LinkMessage] = deque()
        self.taken: list[str] = []
        self.events = 0
        self.heard: list[int] = []
        self.under_way: list[str] = []
        self.answers: list[tuple[str, int]] = []
        self.next_event = 1
        self.up = False

    def connect(self) -> None:
        self.under_way, self.answers = [], []
        self.core.connected(len(self.taken))
        self.next_event = self.core.events_seen + 1
        self.up = True

    def send(self, count: int) -> None:
        for _ in range(count):
            item = self.core.next_item(source(self.waiting), 0.0)
            if item is None:
                return
            assert isinstance(item.payload, str)
            self.under_way.append(item.payload)

    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.under_way))):
            self.taken.append(self.under_way.pop(0))
            self.events += 1
        self.answers.append(("ack", len(self.taken)))
        while self.next_event <= self.events:
            self.answers.append(("event", self.next_event))
            self.next_event += 1

    def answer(self, count: int) -> None:
        for _ in range(min(count, len(self.answers))):
            kind, number = self.answers.pop(0)
            if kind == "ack":
                self.core.acked(number)
            elif self.core.is_new(number):
                self.heard.append(number)


STEP = st.tuples(st.sampled_from(["push", "send", "deliver", "answer", "drop"]), st.integers(1, 5))


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_every_item_arrives_once_and_in_order_and_every_event_is_heard_once(steps: list[tuple[str, int]]) -> None:
    network = Network(core := LinkCore())
    network.connect()
    pushed = 0
    rounds = [("send", 999), ("deliver", 999), ("answer", 999)] * 25  # a window of 2 s each
    for step, count in [*steps, ("drop", 1), *rounds]:
        if step == "push":
            for _ in range(count):
                network.waiting.append(LinkMessage(str(pushed), 0.1))
                pushed += 1
        elif step == "drop":
            network.connect()
        else:
            getattr(network, step)(count)
    assert network.taken == [str(n) for n in range(pushed)]
    assert network.heard == list(range(1, pushed + 1))
    assert core.outstanding_s(0.0) == 0


@pytest.mark.parametrize(("seconds", "items"), [(0.5, round(WINDOW_S / 0.5)), (0.0, WINDOW_BYTES // (32 << 10))])
def test_the_window_bounds_what_a_clear_waits_behind(seconds: float, items: int) -> None:
    core = LinkCore()
    waiting = deque(LinkMessage(bytes(32 << 10), seconds) for _ in range(items + 4))
    while core.next_item(source(waiting), 0.0):
        pass
    assert core.pushed == items
    assert core.outstanding_s(0.0) == items * seconds
    core.connected(0)
    while core.next_item(source(deque()), 0.0):
        pass
    core.acked(3)
    assert core.outstanding_s(0.0) == (items - 3) * seconds
    assert core.next_item(source(waiting), 0.0) is not None


def test_what_the_agent_holds_is_outstanding_until_it_was_played() -> None:
    core = LinkCore()
    core.next_item(source(deque([LinkMessage(b"x", 0.5)])), 0.0)
    core.acked(1, buffered_s=3.0, now=10.0)
    asked: list[float] = []
    core.next_item(lambda now, outstanding_s, control_only: asked.append(outstanding_s), 12.0)
    assert asked == [1.0] and core.outstanding_s(14.0) == 0.0


@pytest.mark.parametrize("items", [-1, 1, 4])
def test_an_agent_that_lost_its_state_is_noticed(items: int) -> None:
    core = LinkCore()
    waiting = deque(LinkMessage("x") for _ in range(3))
    while core.next_item(source(waiting), 0.0):
        pass
    core.acked(2)
    with pytest.raises(LinkDesync):
        core.connected(items)


def test_an_acknowledgement_of_what_was_not_sent_and_a_missing_event_are_errors() -> None:
    core = LinkCore()
    core.next_item(source(deque([LinkMessage("x")])), 0.0)
    core.connected(0)
    with pytest.raises(LinkDesync):
        core.acked(1)
    assert core.is_new(1) and not core.is_new(1)
    with pytest.raises(LinkDesync):
        core.is_new(3)
