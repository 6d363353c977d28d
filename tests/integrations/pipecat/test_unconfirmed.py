"""The stream's unconfirmed tail, over lines that break anywhere: every sample once and in order, every mark at its place."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from tests.integrations.pipecat.conftest import PACKAGE


def load() -> ModuleType:
    """The module alone: its package needs Pipecat, which is not in this environment."""
    place = PACKAGE / "musetalk_pipecat" / "unconfirmed.py"
    spec = importlib.util.spec_from_file_location("unconfirmed_alone", place)
    assert spec is not None and spec.loader is not None
    module = sys.modules["unconfirmed_alone"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


unconfirmed = load()


class Wire:
    """A session that takes what a connection carries until it breaks; answers are lost with it."""

    def __init__(self) -> None:
        self.tail = unconfirmed.Unconfirmed()
        self.pcm = bytearray()
        self.marks: list[tuple[str, int]] = []
        self.capacity = 0
        self.broken = True

    def send(self, item: object) -> None:
        if self.broken:
            return
        self.capacity -= 1
        if self.capacity < 0:
            self.broken = True
        elif isinstance(item, unconfirmed.Chunk):
            self.pcm += item.pcm
        else:
            self.marks.append((item.kind, len(self.pcm) // 2))  # type: ignore[attr-defined]
            self.tail.pinged(item)

    def connect(self, capacity: int) -> None:
        self.broken, self.capacity = False, capacity
        for item in self.tail.greeted(len(self.pcm) // 2):
            self.send(item)

    def answer(self) -> None:
        """All answers to what arrived on this connection so far."""
        if not self.broken:
            self.tail.received(len(self.pcm) // 2)
            self.tail.ponged()


STEPS = st.lists(
    st.one_of(st.integers(1, 400), st.sampled_from(["audio.start", "audio.end", "connect", "answer"])), max_size=40
)


@given(STEPS, st.lists(st.integers(0, 6), min_size=40, max_size=40))
def test_every_sample_once_and_every_mark_at_its_place(steps: list[int | str], capacities: list[int]) -> None:
    wire, said, marks = Wire(), bytearray(), []
    for step, capacity in zip(steps, capacities, strict=False):
        if step == "connect":
            wire.connect(capacity)
        elif step == "answer":
            wire.answer()
        elif isinstance(step, str):
            marks.append((step, len(said) // 2))
            wire.send(wire.tail.mark(step))
        else:
            pcm = bytes((len(said) + k) % 251 for k in range(2 * step))
            said += pcm
            wire.send(wire.tail.pcm(pcm))
    wire.connect(1000)
    assert wire.pcm == said
    assert set(wire.marks) == set(marks)  # one whose answer was lost may come twice, at the same place
    wire.tail.received(len(said) // 2)
    for _ in marks:
        wire.tail.ponged()
    assert wire.tail.greeted(len(said) // 2) == []
