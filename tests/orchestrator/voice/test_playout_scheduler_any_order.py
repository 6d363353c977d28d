"""What the orchestrator's voice says, for any order of sound, ends, clears and dry spells: each sample once and in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.voice.worker.playout_scheduler import BLOCK, STEP, Block, PlayoutScheduler
from orchestrator.voice.worker.room_audio import ROOM_RATE

RATES = (16_000, 24_000, 44_100, ROOM_RATE)
_chunks = st.lists(st.integers(1, 3000), min_size=1, max_size=6)
_segments = st.lists(st.tuples(st.sampled_from(RATES), _chunks), min_size=1, max_size=4)


class Line:
    """A score that is played: what of each segment was said, in order."""

    def __init__(self) -> None:
        self.score = PlayoutScheduler()
        self.said: list[tuple[int, int, int]] = []
        self.at = 100.0

    def play(self, *, dry: bool) -> Block | None:
        block = self.score.next(self.at, dry=dry)
        if block is None:
            return None
        assert len(block.samples) % STEP == 0 and 0 < len(block.samples) <= BLOCK + STEP
        assert sum(span.count for span in block.spans) == len(block.samples)
        self.said += [(s.segment, s.position, s.count) for s in block.spans if s.position is not None]
        self.at += len(block.samples) / ROOM_RATE
        return block

    def drain(self) -> None:
        while self.play(dry=False) is not None:
            pass


def length(rate: int, samples: int) -> int:
    """Of so many samples at 48 kHz."""
    return -(-samples * ROOM_RATE // rate)


def check_once(said: list[tuple[int, int, int]]) -> dict[int, int]:
    """Segments one after the other, each from its beginning without a gap or a repetition; how far each came."""
    reached: dict[int, int] = {}
    for segment, position, count in said:
        assert not reached or segment >= max(reached), "never back to an earlier one"
        assert position == reached.get(segment, 0) and count > 0
        reached[segment] = position + count
    return reached


@settings(max_examples=200, deadline=None)
@given(segments=_segments, dries=st.lists(st.booleans(), min_size=1, max_size=40), data=st.data())
def test_all_that_came_is_said_once_and_in_order(
    segments: list[tuple[int, list[int]]], dries: list[bool], data: st.DataObject
) -> None:
    line, turn = Line(), 0
    for number, (rate, chunks) in enumerate(segments, 1):
        start = 0
        for count in chunks:
            again = data.draw(st.integers(0, min(start, 500)), label="sent again")
            line.score.append(number, rate, start - again, bytes(2 * (count + again)))
            start += count
            for _ in range(data.draw(st.integers(0, 3), label="blocks")):
                line.play(dry=dries[turn % len(dries)])
                turn += 1
        line.score.end(number)
    line.drain()
    whole = {n: length(rate, sum(chunks)) for n, (rate, chunks) in enumerate(segments, 1)}
    assert check_once(line.said) == whole
    assert line.score.handed_out == list(whole) and line.score.buffer_s == 0
    assert line.score.corrections == 0, "nothing reported it when, so there was nothing to make up for"


@settings(max_examples=200, deadline=None)
@given(before=_chunks, after=_chunks, played=st.integers(0, 6), late=st.booleans())
def test_nothing_of_what_was_cleared_is_heard_later(
    before: list[int], after: list[int], played: int, late: bool
) -> None:
    line = Line()
    line.score.append(1, ROOM_RATE, 0, bytes(2 * sum(before)))
    for _ in range(played):
        line.play(dry=False)
    line.score.clear()
    heard = len(line.said)
    if late:
        line.score.append(1, ROOM_RATE, sum(before), bytes(200))  # it was on its way
    line.score.append(2, ROOM_RATE, 0, bytes(2 * sum(after)))
    line.score.end(2)
    line.drain()
    assert {segment for segment, _, _ in line.said[heard:]} == {2}
    assert check_once(line.said)[2] == sum(after)


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(0.2, 3.0),
    played=st.integers(0, 8),
    after_s=st.floats(0, 1),
    within_s=st.floats(0, 2),
    ended=st.booleans(),
)
def test_a_cut_is_where_it_was_said_to_be_and_the_rest_follows_when_it_is_free(
    seconds: float, played: int, after_s: float, within_s: float, ended: bool
) -> None:
    line, total = Line(), round(seconds * ROOM_RATE)
    line.score.append(1, ROOM_RATE, 0, bytes(2 * total))
    if ended:
        line.score.end(1)
    for _ in range(played):
        line.play(dry=False)
    stop = line.score.cut(after_s, within_s, line.at, spoken=bool(line.said))
    if stop is None:
        assert ended and line.score.stopped and check_once(line.said) == {1: total}
        return
    reached = check_once(line.said).get(1, 0)
    assert reached <= stop.position <= total and stop.segment == 1
    assert stop.whole == (ended and stop.position == total)
    assert (
        not line.said or stop.position <= max(reached, reached + round((after_s + within_s) * ROOM_RATE)) or stop.whole
    )
    line.drain()
    if stop.position > 0:
        assert check_once(line.said).get(1, 0) in (stop.position, reached)
    line.score.free()
    line.score.end(1)
    line.drain()
    assert check_once(line.said) == {1: total}
