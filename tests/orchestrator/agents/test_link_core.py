"""Nothing lost, nothing doubled, whatever the network does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.agents.link_core import WINDOW_BYTES, WINDOW_S, LinkCore, LinkDesync
from orchestrator.audio.outgoing_segment import LinkMessage


class Network:
    """An agent behind a connection that may drop what is under way, in both directions."""

    def __init__(self, core: LinkCore) -> None:
        self.core = core
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
            item = self.core.next_item()
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
    for step, count in [*steps, ("drop", 1), ("send", 999), ("deliver", 999), ("answer", 999)]:
        if step == "push":
            for _ in range(count):
                core.push(LinkMessage(str(pushed), 0.1))
                pushed += 1
        elif step == "drop":
            network.connect()
        else:
            getattr(network, step)(count)
    assert network.taken == [str(n) for n in range(pushed)]
    assert network.heard == list(range(1, pushed + 1))
    assert core.unacked_s == 0


@pytest.mark.parametrize(("seconds", "items"), [(0.5, round(WINDOW_S / 0.5)), (0.0, WINDOW_BYTES // (32 << 10))])
def test_the_window_bounds_what_a_clear_waits_behind(seconds: float, items: int) -> None:
    core = LinkCore()
    while core.window_open:
        core.push(LinkMessage(bytes(32 << 10), seconds))
    assert core.pushed == items
    assert core.unacked_s == items * seconds
    core.connected(0)
    while core.next_item():
        pass
    core.acked(3)
    assert core.window_open and core.unacked_s == (items - 3) * seconds


@pytest.mark.parametrize("items", [-1, 1, 4])
def test_an_agent_that_lost_its_state_is_noticed(items: int) -> None:
    core = LinkCore()
    for _ in range(3):
        core.push(LinkMessage("x"))
    core.connected(0)
    for _ in range(3):
        core.next_item()
    core.acked(2)
    with pytest.raises(LinkDesync):
        core.connected(items)


def test_an_acknowledgement_of_what_was_not_sent_and_a_missing_event_are_errors() -> None:
    core = LinkCore()
    core.push(LinkMessage("x"))
    core.connected(0)
    with pytest.raises(LinkDesync):
        core.acked(1)
    assert core.is_new(1) and not core.is_new(1)
    with pytest.raises(LinkDesync):
        core.is_new(3)
