"""The line's rules on virtual time: a source that takes 60 ms ahead, and plays silence when it has nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestrator.voice.worker.playout_scheduler import DueAudio, PlayoutScheduler
from orchestrator.voice.worker.room_audio import QUEUE_MS, ROOM_RATE, Playout

MS = ROOM_RATE // 1000


def counting(ms: int, first: int = 0) -> bytes:
    """48 kHz PCM, loud, in which every millisecond has its own value."""
    return np.repeat(np.arange(first, first + ms) % 8000 + 2000, MS).astype("<i2").tobytes()


class Room:
    """Plays a score from `now` on; `heard` holds (time, millisecond of the segment) of each millisecond."""

    def __init__(self) -> None:
        self.now = 100.0
        self.score = PlayoutScheduler()
        self.playout = Playout(self.now)
        self.heard: list[tuple[float, int]] = []

    def run(self, seconds: float, at: dict[float, Callable[[], object]] | None = None) -> None:
        begun, todo = self.now, sorted((at or {}).items())
        while self.now - begun < seconds:
            while todo and self.now - begun >= todo[0][0]:
                todo.pop(0)[1]()
            if self.playout.queued_s(self.now) * 1000 <= QUEUE_MS:
                self._hand()
            self.now += 0.005

    def _hand(self) -> None:
        next_at = self.playout.next_at(self.now)
        block = self.score.next(next_at, dry=self.playout.dry(self.now))
        if block is None:
            return
        assert len(block.samples) % (10 * MS) == 0
        self.playout.hand(self.now, block.spans)
        for index, value in enumerate(block.samples[MS // 2 :: MS]):
            if value:
                self.heard.append((next_at + index / 1000, int(value) - 2000))

    def values(self) -> list[int]:
        return [value for _, value in self.heard]

    def silence(self) -> float:
        times = [at for at, _ in self.heard]
        return float(max(np.diff(times))) - 0.001


def test_segments_follow_each_other_without_a_gap() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(100))
    room.score.append(1, ROOM_RATE, 4800, counting(100, 100))
    room.score.end(1)
    room.score.append(2, ROOM_RATE, 0, counting(50, 500))
    room.score.end(2)
    room.run(1)
    assert room.values() == [*range(200), *range(500, 550)]
    assert room.silence() < 0.001
    assert room.score.handed_out == [1, 2]


def test_a_voice_that_runs_dry_waits_for_60_ms_and_loses_nothing() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(100))
    room.run(
        1,
        {
            0.5: lambda: room.score.append(1, ROOM_RATE, 4800, counting(40, 100)),
            0.8: lambda: room.score.append(1, ROOM_RATE, 6720, counting(40, 140)),
        },
    )
    assert [v for v in room.values() if v >= 105] == list(range(105, 180))  # the first are faded in
    assert 0.65 < room.silence() < 0.75


def test_sound_that_is_due_comes_then_to_the_millisecond() -> None:
    room = Room()
    room.score.follow(DueAudio(0, 0, 0.0, held=True))
    room.score.append(1, ROOM_RATE, 0, counting(400))
    room.run(0.3)
    assert room.heard == []
    due = room.now + 0.25
    room.score.follow(DueAudio(1, 0, due, held=False))
    room.run(0.8)
    assert room.values() == list(range(400))
    assert abs(room.heard[0][0] - due) < 0.002 and room.silence() < 0.001


def test_small_errors_are_left_larger_ones_wait_for_quiet_and_the_largest_do_not() -> None:
    room = Room()
    pcm = bytearray(counting(3000))
    pcm[2 * MS * 700 : 2 * MS * 800] = bytes(2 * MS * 100)
    room.score.append(1, ROOM_RATE, 0, bytes(pcm))
    begun = room.now + 0.1
    room.score.follow(DueAudio(1, 0, begun, held=False))
    room.run(0.4, {0.3: lambda: room.score.follow(DueAudio(1, 0, begun + 0.015, held=False))})
    assert room.score.corrections == 0
    room.score.follow(DueAudio(1, 0, begun - 0.06, held=False))
    room.run(0.2)
    assert room.score.corrections == 0
    room.run(0.5)
    assert room.score.corrections == 1
    late = {value: at - begun for at, value in room.heard}
    assert abs(late[650] - 0.650) < 0.02 and abs(late[850] - 0.790) < 0.02
    room.score.follow(DueAudio(1, 0, begun - 0.5, held=False))
    room.run(0.3)
    assert room.score.corrections == 2 and max(room.values()) > 1400
    room.score.follow(DueAudio(1, 0, begun, held=False))
    room.run(1.2)
    assert room.silence() > 0.4


def test_a_held_voice_pauses_there_and_goes_on_when_asked() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(1000))
    room.score.follow(DueAudio(1, 0, room.now + 0.1, held=False))
    room.run(0.2)
    room.score.follow(DueAudio(1, 300 * MS, room.now + 0.2, held=True))
    room.run(0.6)
    assert max(room.values()) == 299
    again = room.now + 0.1
    room.score.follow(DueAudio(1, 300 * MS, again, held=False))
    room.run(1)
    assert {value: at for at, value in room.heard}[310] - again - 0.010 < 0.002
    assert [v for v in room.values() if v > 306] == list(range(307, 1000))  # the first are faded in


def test_the_next_segment_that_is_due_ends_the_one_before() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(1000))
    room.score.append(2, ROOM_RATE, 0, counting(100, 5000))
    room.score.follow(DueAudio(1, 0, room.now, held=False))
    room.run(0.3)
    room.score.follow(DueAudio(2, 0, room.now + 0.2, held=False))
    room.score.follow(DueAudio(1, 0, room.now, held=False))  # an old word
    room.run(0.5)
    assert room.values()[-100:] == list(range(5000, 5100)) and max(v for v in room.values() if v < 5000) < 400


def test_clear_drops_everything_and_later_pcm_of_it() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(1000))
    room.run(0.3)
    room.score.clear()
    room.score.append(1, ROOM_RATE, 48_000, counting(100, 1000))
    count = len(room.heard)
    room.run(0.3)
    assert len(room.heard) == count
    room.score.append(2, ROOM_RATE, 0, counting(100))
    room.score.end(2)
    room.run(0.3)
    assert len(room.heard) == count + 100


def test_a_cut_prefers_the_pause_and_never_lies_beyond_what_is_known() -> None:
    room = Room()
    pcm = bytearray(counting(2000))
    pcm[2 * MS * 900 : 2 * MS * 930] = bytes(2 * MS * 30)
    room.score.append(1, ROOM_RATE, 0, bytes(pcm))
    room.run(0.2)
    stop = room.score.cut(0.4, 0.5, room.playout.next_at(room.now), spoken=True)
    assert stop is not None and 900 <= stop.position / MS <= 930 and not stop.whole
    room.run(1.5)
    assert room.score.stopped and abs(room.heard[-1][0] + 0.001 - stop.at) < 0.04
    assert max(room.values()) < 930
    room.score.free()
    room.run(0.5)
    stop = room.score.cut(2.0, 0.5, room.now, spoken=True)
    assert stop is not None and stop.position == 2000 * MS
    room.score.end(1)
    stop = room.score.cut(0.1, 5.0, room.now, spoken=True)
    assert stop is not None


def test_a_cut_before_the_first_word_leaves_all_to_the_agent_and_one_near_the_end_nothing() -> None:
    room = Room()
    room.score.append(3, 16_000, 16_000, bytes(32_000))
    room.score.end(3)
    stop = room.score.cut(0.7, 0.4, room.now, spoken=False)
    assert stop is not None and (stop.segment, stop.position, stop.at) == (3, ROOM_RATE, room.now)
    whole = room.score.cut(1.2, 0.4, room.now, spoken=True)
    assert whole is not None and whole.whole and whole.position == 2 * ROOM_RATE


def test_a_cut_after_the_last_word_stops_there_and_what_comes_later_waits_until_it_is_free() -> None:
    room = Room()
    room.score.append(1, ROOM_RATE, 0, counting(200))
    room.score.end(1)
    room.run(0.4)
    assert not room.score.stopped
    assert room.score.cut(0.7, 0.4, room.playout.next_at(room.now), spoken=True) is None
    assert room.score.stopped
    heard = len(room.heard)
    room.score.append(2, ROOM_RATE, 0, counting(200))
    room.run(0.4)
    assert len(room.heard) == heard
    room.score.free()
    room.run(0.4)
    assert len(room.heard) == heard + 200
