"""Schedules the playout of a line: its segments in order, at once or at given times. No I/O and no clock: time is passed in.

A line that follows keeps within 20 ms of those times; it makes up for more where it is quiet, and for more than 200 ms at
once. Where it joins sounds that do not belong together it fades over 5 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.voice.worker.room_audio import ROOM_RATE, AudioSpan, Pcm, SegmentSound

STEP = ROOM_RATE // 100
"""WebRTC's 10 ms; blocks are whole ones."""
BLOCK = 10 * STEP
"""Most samples at once. The SDK reports each block to every room of the process: many small ones cost more than the sound."""
_WHILE_OFF = 4 * STEP  # and while there is an error to make up for, so that a quiet place is not missed
_START = 6 * STEP  # a voice that has run dry begins again with this much in hand
_FADE = ROOM_RATE // 200
_LEAVE = 2 * STEP  # errors up to this are left
_JUMP = 20 * STEP  # and those from here on are made up for at once
_QUIET_RMS = 180.0  # -45 dB of full scale
_WINDOW = 2 * STEP  # a pause is the quietest of these


@dataclass(frozen=True, slots=True)
class Block:
    """Samples for the source, a whole number of steps, and what they are."""

    samples: Pcm
    spans: list[AudioSpan]


@dataclass(frozen=True, slots=True)
class DueAudio:
    """Sample `position` of `segment` leaves at `at`; `held`: nothing after it does."""

    segment: int
    position: int
    at: float
    held: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the line ends: sample `position` of `segment`, `at`. `whole`: that is the segment's end."""

    segment: int
    position: int
    at: float
    whole: bool


class PlayoutScheduler:
    """One line's segments. Bounded by the core, which sends two seconds ahead of `position`."""

    def __init__(self) -> None:
        self._segments: dict[int, SegmentSound] = {}
        self._due: DueAudio | None = None
        self._stop: Stop | None = None
        self._tail: NDArray[np.float32] | None = None
        self._running = False
        self._over_up_to = 0
        self.segment, self.position = 0, 0
        self.handed_out: list[int] = []
        self.corrections = 0
        self.wake_at: float | None = None

    # --- what the core says

    def append(self, segment: int, rate: int, start: int, pcm: bytes) -> None:
        """More PCM; raises ValueError for a gap. What belongs to a segment that is over is dropped."""
        sound = self._open(segment, rate, start)
        if sound is not None:
            sound.append(start, pcm)

    def end(self, segment: int, rate: int = ROOM_RATE) -> None:
        """No more PCM for the segment; one that never had any is over at once."""
        sound = self._open(segment, rate, 0)
        if sound is not None:
            sound.ended = True

    def follow(self, due: DueAudio) -> None:
        """Something is due; what was said before about an earlier segment is ignored."""
        current = max(self.segment, self._due.segment if self._due is not None else 0)
        if due.segment == 0 or due.segment >= current:
            self._due, self._stop = due, None

    def free(self) -> None:
        """From here on everything is said as soon as it can be, also what lies behind a stop."""
        self._due = self._stop = None

    def clear(self) -> None:
        """Drops everything."""
        self._over_up_to = max([self._over_up_to, *self._segments])
        self._segments.clear()
        self._stop = self._tail = None
        self._running = False
        if self._due is not None:
            self._due = DueAudio(0, 0, 0.0, held=True)

    def cut(self, after_s: float, within_s: float, next_at: float, *, spoken: bool) -> Stop | None:
        """Chooses where to stop and stops there; None when there is nothing to say: it stops where it is.

        Args:
            after_s: at least this long after the next block begins.
            within_s: a pause is looked for in as much after that.
            next_at: when the next block leaves.
            spoken: whether the line has said anything yet; if not, it stops where it is.
        """
        sound = self._current()
        if sound is None:
            self._stop = Stop(self.segment, self.position, next_at, whole=True)
            return None
        place = self.position
        if spoken:
            earliest = self.position + round(after_s * ROOM_RATE)
            place = _quietest(sound, earliest, earliest + round(within_s * ROOM_RATE))
        whole = sound.ended and place + _WINDOW >= sound.ready
        if whole:
            place = sound.ready
        self._stop = Stop(sound.number, place, next_at + (place - self.position) / ROOM_RATE, whole)
        return self._stop

    # --- what the source gets

    @property
    def stopped(self) -> bool:
        """The line has reached its stop."""
        stop = self._stop
        return stop is not None and (self.segment, self.position) >= (stop.segment, stop.position)

    @property
    def buffer_s(self) -> float:
        """Seconds of sound that can be made now."""
        return sum(max(0, s.ready - max(s.begin, self._from(s))) for s in self._segments.values()) / ROOM_RATE

    def next(self, at: float, *, dry: bool, least: int = STEP) -> Block | None:
        """The block whose first sample leaves at `at`, or None: ask again at `wake_at`, or when something has come.

        Args:
            at: seconds, monotonic.
            dry: the source has run dry, so that sound begins anew.
            least: samples that are worth a block; fewer wait for more, unless they are the last.
        """
        self.wake_at = None
        sound = self._current()
        if sound is None or self.stopped:
            self._running = False
            return None
        if dry:
            self._running = False
        lead, most = 0, BLOCK
        if self._due is not None:
            lead = self._place(sound, self._due, at)
            if abs(self._late(self._due, at)) > _LEAVE:
                most = _WHILE_OFF
            if lead > _START:
                self.wake_at = at + (lead - _START) / ROOM_RATE
                return self._fading(0)
        return self._block(sound, lead, min(least, most), most)

    def _late(self, due: DueAudio, at: float) -> int:
        """How many samples behind the voice is at `at`; less than nothing when it is ahead."""
        want = due.position + round((at - due.at) * ROOM_RATE)
        return (min(want, due.position) if due.held else want) - self.position

    def _place(self, sound: SegmentSound, due: DueAudio, at: float) -> int:
        """Moves `position` to where it should be, if it must; returns how many samples of silence come first."""
        late = self._late(due, at)
        want = self.position + late
        if not self._running:
            if late > _JUMP:
                self._skip(sound, min(want, sound.ready))
            return max(0, -late)
        if abs(late) > _JUMP:
            if late > 0:
                self._skip(sound, min(want, sound.ready))
                return 0
            return self._pause(sound, -late)
        if late > _LEAVE:
            quiet = _quiet_steps(sound, self.position, late // STEP)
            self._skip(sound, self.position + quiet * STEP)
        elif late < -_LEAVE and _quiet_steps(sound, self.position, 1):
            return self._pause(sound, -late // STEP * STEP)
        return 0

    def _skip(self, sound: SegmentSound, to: int) -> None:
        if to <= self.position:
            return
        if self._running:
            self._tail = sound.take(self.position, _FADE)
        self.position = to
        self.corrections += 1

    def _pause(self, sound: SegmentSound, lead: int) -> int:
        self._tail = sound.take(self.position, _FADE)
        self._running = False
        self.corrections += 1
        return lead

    def _block(self, sound: SegmentSound, lead: int, least: int, most: int) -> Block | None:
        limit, final = sound.ready, sound.ended
        if self._stop is not None and self._stop.segment == sound.number and self._stop.position <= limit:
            limit, final = self._stop.position, True
        if self._due is not None and self._due.held and self._due.position <= limit:
            limit, final = max(self.position, self._due.position), True
        known = limit - self.position
        count = min(known, most)
        if not final:
            count = count - (lead + count) % STEP if known >= (least if self._running else _START) else 0
        if count <= 0:
            self._running = self._running and least > STEP
            return self._fading(lead)
        samples = sound.take(self.position, count)
        if not self._running and self.position > 0:
            _ramp(samples[:_FADE], rising=True)
        if self._stop is not None and self.position + count == self._stop.position and not self._stop.whole:
            _ramp(samples[-_FADE:], rising=False)
        spans = [AudioSpan(0, lead, sound.number, None)] if lead else []
        spans.append(AudioSpan(0, count, sound.number, self.position))
        self.position += count
        self._running = True
        sound.forget(self.position - _FADE)
        block = self._mixed(np.concatenate([np.zeros(lead, np.float32), samples]), spans)
        self._pass_end(sound)
        return block

    def _fading(self, lead: int) -> Block | None:
        """Only what fades out, when there is such."""
        if self._tail is None:
            return None
        return self._mixed(np.zeros(max(lead, _FADE), np.float32), [AudioSpan(0, max(lead, _FADE), self.segment, None)])

    def _mixed(self, samples: NDArray[np.float32], spans: list[AudioSpan]) -> Block:
        pad = -len(samples) % STEP
        if pad:
            samples = np.concatenate([samples, np.zeros(pad, np.float32)])
            spans.append(AudioSpan(0, pad, self.segment, None))
        if self._tail is not None:
            _ramp(self._tail, rising=False)
            samples[: len(self._tail)] += self._tail
            self._tail = None
        pcm: Pcm = np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
        return Block(pcm, spans)

    # --- segments

    def _open(self, segment: int, rate: int, start: int) -> SegmentSound | None:
        if segment <= self._over_up_to:
            return None
        if segment not in self._segments:
            self._segments[segment] = SegmentSound(segment, rate, start)
        return self._segments[segment]

    def _current(self) -> SegmentSound | None:
        """The segment that is said now. Those before the one that is due are over."""
        if self._due is not None:
            if self._due.segment == 0:
                return None
            if self._due.segment > self.segment:
                for number in [n for n in self._segments if n < self._due.segment]:
                    self._over(number)
                if self._due.segment in self._segments:
                    self._begin(self._segments[self._due.segment])
            return self._segments.get(self._due.segment)
        while self._segments:
            sound = self._segments[min(self._segments)]
            if sound.number != self.segment:
                self._begin(sound)
            if not self._pass_end(sound):
                return sound
        return None

    def _begin(self, sound: SegmentSound) -> None:
        self.segment, self.position, self._running = sound.number, sound.begin, False

    def _pass_end(self, sound: SegmentSound) -> bool:
        if sound.ended and self.position >= sound.ready:
            self._over(sound.number)
            return True
        return False

    def _over(self, number: int) -> None:
        del self._segments[number]
        self._over_up_to = max(self._over_up_to, number)
        self.handed_out.append(number)

    def _from(self, sound: SegmentSound) -> int:
        return self.position if sound.number == self.segment else 0


def _quietest(sound: SegmentSound, low: int, high: int) -> int:
    """The middle of the quietest 20 ms between `low` and `high`; never beyond what is known, which is all the next one lacks."""
    high = min(high, sound.ready)
    steps = (high - low) // STEP
    if steps < 2:
        return min(low, sound.ready)
    energy = np.square(sound.take(low, steps * STEP).reshape(steps, STEP)).sum(axis=1)
    return low + (int(np.argmin(energy[:-1] + energy[1:])) + 1) * STEP


def _quiet_steps(sound: SegmentSound, position: int, most: int) -> int:
    """How many of the next steps, up to `most`, are quiet."""
    steps = min(most, (sound.ready - position) // STEP)
    if steps <= 0:
        return 0
    rms = np.sqrt(np.square(sound.take(position, steps * STEP).reshape(steps, STEP)).mean(axis=1))
    loud = np.flatnonzero(rms > _QUIET_RMS)
    return int(loud[0]) if loud.size else steps


def _ramp(samples: NDArray[np.float32], *, rising: bool) -> None:
    ramp = np.linspace(0.0, 1.0, len(samples), dtype=np.float32)
    samples *= ramp if rising else ramp[::-1]
