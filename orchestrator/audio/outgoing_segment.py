"""One segment of speech: its PCM from the first sample that is not known to be heard, and how much of it was forwarded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from musetalk_agent.protocol.messages import (
    CaptionWord,
    CueItem,
    SegmentCaptions,
    SegmentCues,
    SegmentEnd,
    SegmentStart,
)
from orchestrator.audio.heard_speech import HeardSpeech

BYTES_PER_SAMPLE = 2


@dataclass(frozen=True)
class LinkMessage:
    """One message to the agent: PCM as bytes or JSON as text. `seconds` is how long its audio lasts.

    `segment` is what it belongs to, 0 for a clear. Of PCM, `rate` is in Hz and `start` its first sample's number in the segment.
    """

    payload: bytes | str
    seconds: float = 0.0
    segment: int = 0
    rate: int = 0
    start: int = 0


def seconds(samples: Mapping[int, int]) -> float:
    """Duration of so many samples at each rate (Hz)."""
    return sum(count / rate for rate, count in samples.items())


@dataclass
class Totals:
    """Samples at each rate (Hz) over all open segments. Integers, so that additions and subtractions leave no remainder.

    Attributes:
        waiting: PCM that has not been forwarded.
        at_agent: PCM that was forwarded and is not known to be heard.
        heard: PCM that was heard, of segments that are not over.
        audio: PCM of `/audio` that is not known to be heard; cleared PCM does not count.
        speech: the same for `/speak`.
        notes: phonemes and words that are kept with the PCM.
        heard_pcm: gets the PCM that was heard.
    """

    waiting: Counter[int] = field(default_factory=Counter)
    at_agent: Counter[int] = field(default_factory=Counter)
    heard: Counter[int] = field(default_factory=Counter)
    audio: Counter[int] = field(default_factory=Counter)
    speech: Counter[int] = field(default_factory=Counter)
    notes: int = 0
    heard_pcm: HeardSpeech = field(default_factory=HeardSpeech)


DEFAULT_RATE = 16000
ITEM_BYTES = 32 << 10
ACK_LATE_S = 0.3
"""An agent that speaks reports its position at least every 250 ms; after an older report it stands still, or is lost."""
DOUBT_S = 0.06
"""How far an estimated position stays behind: a syllable heard twice is better than one that is lost."""
NOTES = 16_384
"""Phonemes and words a session may keep with its PCM: those of 120 s of speech are about 2,300."""


Note = SegmentCues | SegmentCaptions


@dataclass
class OutgoingSegment:
    """One utterance on its way to the agent. Counts are samples at its own rate, from its first one.

    `pcm` begins at sample `heard`; what lies before `sent` was forwarded. `heard_at` is when `heard` was the truth, None as long
    as nothing of it was heard; words before sample `shown` have been shown. `received` is the session's count of `/audio` samples
    before the first one. `notes` are phonemes and words of the audio, each before the sample with which it comes.
    """

    number: int
    rate: int | None
    totals: Totals = field(default_factory=Totals, repr=False)
    speech: bool = False
    explicit: bool = False
    input_at: float = 0.0
    received: int | None = None
    traceparent: str | None = None
    announced: bool = False
    complete: bool = False
    playback_started: bool = False
    pcm: bytearray = field(default_factory=bytearray, repr=False)
    samples: int = 0
    sent: int = 0
    heard: int = 0
    heard_at: float | None = None
    shown: int = 0
    notes: list[tuple[int, Note]] = field(default_factory=list)
    notes_sent: int = 0
    cleared: bool = False
    closed: bool = False

    # --- what comes

    @property
    def over(self) -> bool:
        """It takes no more PCM: it is complete, was cleared, or was heard to its end."""
        return self.complete or self.cleared or self.closed

    def end(self) -> None:
        """No more PCM; without effect when it is over."""
        self.complete = self.complete or not self.over

    def append(self, pcm: bytes, rate: int, now: float, received: int | None = None) -> None:
        """More PCM. Raises ValueError for another rate than before."""
        if self.rate is None:
            self.rate = rate
        elif self.rate != rate:
            raise ValueError(f"segment {self.number} has {self.rate} Hz, PCM came at {rate} Hz")
        if not self.samples:
            self.received = received
        self.pcm += pcm
        more = len(pcm) // BYTES_PER_SAMPLE
        self.samples += more
        self.input_at = now
        self.totals.waiting[rate] += more
        (self.totals.speech if self.speech else self.totals.audio)[rate] += more

    def add_notes(self, cues: Sequence[CueItem], words: Sequence[CaptionWord]) -> int:
        """Phonemes and words of the PCM that comes next. Returns how many were dropped, because the session keeps `NOTES`."""
        dropped = 0
        if cues:
            dropped += self._add_note(SegmentCues(segment=self.number, cues=list(cues)))
        if words:
            dropped += self._add_note(SegmentCaptions(segment=self.number, words=list(words)))
        return dropped

    def _add_note(self, note: Note) -> int:
        size = _size(note)
        if self.totals.notes + size > NOTES:
            return size
        self.totals.notes += size
        self.notes.append((self.samples, note))
        return 0

    # --- what goes out

    @property
    def at_agent_s(self) -> float:
        """Seconds that were forwarded and are not known to be heard."""
        return self._seconds(self.sent - self.heard)

    @property
    def duration_s(self) -> float:
        """Seconds of PCM so far."""
        return self._seconds(self.samples)

    def start_item(self, in_s: float) -> LinkMessage:
        """Opens the segment at the agent, whose turn is in `in_s` seconds; counts as announced."""
        self.announced = True
        start = SegmentStart(
            segment=self.number,
            sample_rate=self.rate or DEFAULT_RATE,
            heard_s=self._seconds(self.heard),
            received=self.received,
            in_s=in_s,
            traceparent=self.traceparent,
        )
        return LinkMessage(start.model_dump_json(), segment=self.number)

    def next_item(self) -> LinkMessage:
        """The next note or PCM; only while one of them was not forwarded. Counts as forwarded."""
        if self.notes_sent < len(self.notes) and self.notes[self.notes_sent][0] <= self.sent:
            self.notes_sent += 1
            return LinkMessage(self.notes[self.notes_sent - 1][1].model_dump_json(), segment=self.number)
        begin = (self.sent - self.heard) * BYTES_PER_SAMPLE
        end = begin + ITEM_BYTES
        if self.notes_sent < len(self.notes):
            end = min(end, (self.notes[self.notes_sent][0] - self.heard) * BYTES_PER_SAMPLE)
        pcm = bytes(memoryview(self.pcm)[begin:end])
        start, rate = self.sent, self.rate or DEFAULT_RATE
        more = len(pcm) // BYTES_PER_SAMPLE
        self.sent += more
        self.totals.waiting[rate] -= more
        self.totals.at_agent[rate] += more
        return LinkMessage(pcm, len(pcm) / (BYTES_PER_SAMPLE * rate), self.number, rate, start)

    def end_item(self) -> LinkMessage:
        """No more PCM for it."""
        return LinkMessage(SegmentEnd(segment=self.number).model_dump_json(), segment=self.number)

    # --- what was heard

    def hear(self, sample: int, now: float | None) -> None:
        """Everything before `sample` was heard by `now` (None: at an unknown time) and is freed.

        Never goes back, nor beyond what was forwarded.
        """
        sample = min(max(sample, self.heard), self.sent)
        more = sample - self.heard
        self._keep_heard(sample)
        del self.pcm[: more * BYTES_PER_SAMPLE]
        self.heard = sample
        self.heard_at = now if now is not None else self.heard_at
        self._forget_notes()
        self._count(at_agent=-more, heard=more, unheard=0 if self.cleared else -more)

    def sample_at(self, seconds: float) -> int:
        """The sample that is so many seconds from the segment's beginning."""
        return round(seconds * (self.rate or DEFAULT_RATE))

    def played_s(self, now: float) -> float:
        """Seconds heard by now, if it went on since the last word about it."""
        known = self._seconds(self.heard)
        if self.heard_at is None:
            return known
        return max(known, min(known + now - self.heard_at, self._seconds(self.sent)))

    def since_s(self, now: float) -> float:
        """Seconds of `played_s` that went by since the last word about it."""
        return self.played_s(now) - self._seconds(self.heard)

    def surely_s(self, at: float) -> float:
        """Seconds heard by `at` that one may rely on."""
        known = self._seconds(self.heard)
        if self.heard_at is None or at - self.heard_at > ACK_LATE_S:
            return known
        return max(known, self.played_s(at) - DOUBT_S)

    def rewind(self, shown: bool = True) -> None:
        """The renderer is gone: what was not heard is forwarded again, with phonemes not yet over and words not yet shown.

        `shown`: that renderer shows captions of what it plays.
        """
        self.shown = self.heard if shown else self.shown
        left = [(at, left) for at, note in self.notes if (left := self._left(note)) is not None]
        self.totals.notes += sum(_size(note) for _, note in left) - sum(_size(note) for _, note in self.notes)
        self.notes = left
        again = self.sent - self.heard
        self.sent, self.notes_sent = self.heard, 0
        self.announced = False
        self.heard_at = None
        self._count(waiting=again, at_agent=-again)

    def drop(self, now: float) -> None:
        """Cleared at `now`: it will not be heard, and takes no more memory."""
        self._keep_heard(min(self.sample_at(self.played_s(now)), self.sent))
        self._count(waiting=self.sent - self.samples, unheard=self.heard - self.samples)
        self.cleared = True
        self.samples = self.sent
        self.pcm.clear()
        self._forget_all_notes()

    def close(self) -> None:
        """It is over: the totals count it no longer."""
        self.closed = True
        self._forget_all_notes()
        self._count(
            waiting=self.sent - self.samples,
            at_agent=self.heard - self.sent,
            heard=-self.heard,
            unheard=0 if self.cleared else self.heard - self.samples,
        )

    def _keep_heard(self, until: int) -> None:
        """What lies before sample `until` was heard."""
        if until > self.heard and self.rate is not None:
            pcm = bytes(memoryview(self.pcm)[: (until - self.heard) * BYTES_PER_SAMPLE])
            self.totals.heard_pcm.add(self.number, self.rate, self.heard, pcm)

    def _count(self, *, waiting: int = 0, at_agent: int = 0, heard: int = 0, unheard: int = 0) -> None:
        """Adds samples to the totals; negative numbers subtract."""
        if self.rate is None:
            return
        self.totals.waiting[self.rate] += waiting
        self.totals.at_agent[self.rate] += at_agent
        self.totals.heard[self.rate] += heard
        (self.totals.speech if self.speech else self.totals.audio)[self.rate] += unheard

    def _forget_notes(self) -> None:
        """Drops the notes at the front that no rewind would forward again."""
        over = 0
        while over < self.notes_sent and self._left(self.notes[over][1]) is None:
            over += 1
        if over:
            self.totals.notes -= sum(_size(note) for _, note in self.notes[:over])
            del self.notes[:over]
            self.notes_sent -= over

    def _forget_all_notes(self) -> None:
        self.totals.notes -= sum(_size(note) for _, note in self.notes)
        self.notes.clear()
        self.notes_sent = 0

    def _seconds(self, samples: int) -> float:
        return samples / self.rate if self.rate else 0.0

    def _left(self, note: Note) -> Note | None:
        if isinstance(note, SegmentCues):
            return note if note.cues[-1].end > self.heard else None
        words = [word for word in note.words if word.start >= self.shown]
        return note.model_copy(update={"words": words}) if words else None


def _size(note: Note) -> int:
    return len(note.cues) if isinstance(note, SegmentCues) else len(note.words)
