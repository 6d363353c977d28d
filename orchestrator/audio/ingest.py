"""PCM of a session's senders: its limits, its conversion to whole int16 samples, and the level of the last second."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from musetalk_agent.protocol.messages import Limits
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.outgoing_segment import BYTES_PER_SAMPLE
from orchestrator.audio.segments import IDLE_END_S, OPEN_SEGMENTS, SegmentTracker
from orchestrator.metrics import Metrics

SAMPLE_RATES = (8000, 48000)
BURST_S = 4.0
"""Seconds' worth of `bytes_per_s` that may come at once: a minute of 48 kHz float fits into it."""
MESSAGE_COST_BYTES = 128
"""What a message costs beyond its payload, so that a flood of tiny ones meets the limit too."""


@dataclass(frozen=True)
class AudioLimits:
    """Bounds of one session's `/audio`.

    Attributes:
        message_bytes: largest message, binary or text.
        backlog_s: seconds of `/audio` that may wait to be heard, and seconds of `/speak` that are made ahead.
        bytes_per_s: sustained rate; `BURST_S` seconds of it may come at once.
    """

    message_bytes: int = 1 << 20
    backlog_s: float = 120.0
    bytes_per_s: int = 4 << 20

    def announced(self) -> Limits:
        """The limits as `hello` announces them."""
        return Limits(
            message_bytes=self.message_bytes,
            backlog_s=self.backlog_s,
            bytes_per_s=self.bytes_per_s,
            segments=OPEN_SEGMENTS,
        )


WINDOW_S = 1.0
FLOOR_DBFS = -120.0
_SLOTS = 512  # messages of 2 ms fill a second; beyond that the oldest go first


@dataclass(frozen=True)
class Level:
    """Of the last second: bytes per second as sent, RMS and peak against full scale (None without audio)."""

    bytes_per_s: float
    rms_dbfs: float | None
    peak_dbfs: float | None


class LevelMeter:
    """Keeps one line per message of the last second."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int, int, float, int]] = deque(maxlen=_SLOTS)

    def add(self, pcm: bytes, sent_bytes: int, now: float) -> None:
        """Counts a message of `sent_bytes` that gave these int16 samples."""
        samples = np.frombuffer(pcm, "<i2").astype(np.float64)
        peak = int(np.abs(samples).max(initial=0.0))
        self._recent.append((now, sent_bytes, samples.size, float(np.dot(samples, samples)), peak))

    def level(self, now: float) -> Level:
        """What the last second was like."""
        rows = [row for row in self._recent if now - row[0] <= WINDOW_S]
        count = sum(row[2] for row in rows)
        if not count:
            return Level(bytes_per_s=float(sum(row[1] for row in rows)), rms_dbfs=None, peak_dbfs=None)
        rms = math.sqrt(sum(row[3] for row in rows) / count)
        return Level(
            bytes_per_s=sum(row[1] for row in rows) / WINDOW_S,
            rms_dbfs=_dbfs(rms),
            peak_dbfs=_dbfs(max(row[4] for row in rows)),
        )


def _dbfs(magnitude: float) -> float:
    return round(max(FLOOR_DBFS, 20 * math.log10(magnitude / 32768)), 1) if magnitude > 0 else FLOOR_DBFS


class AudioFormat(StrEnum):
    """How samples lie on the wire."""

    S16LE = "s16le"
    F32LE = "f32le"


_WIDTH = {AudioFormat.S16LE: 2, AudioFormat.F32LE: 4}


_JUDGED_SAMPLES = 4096
"""As many samples of a message decide where its samples begin."""
_EVIDENCE = 16
_FULL_STEP = 65_536.0
_LOUDEST, _QUIETEST = 4.0, 1e-7


class PcmDecoder:
    """One connection's byte stream as int16 little endian mono. A sample split over two messages is carried over.

    Half a sample belongs to its utterance. Where the sender ends an utterance itself, `reset` drops it. Where an utterance ends
    by a pause or by another caller's clear, the next message either completes the half sample (the stream was held up) or begins
    with a whole one (the stream was broken off). The wrong choice is noise at full scale, so the smoother one is taken.

    Attributes:
        width: bytes of a sample.
        carry: bytes of the last sample that has not come whole.
    """

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self.width = _WIDTH[audio_format]
        self.carry = b""
        self._doubtful: bytes | None = None
        self._utterance = 0

    def reset(self) -> None:
        """The sender has begun or ended an utterance: half a sample left over would shift every byte after it."""
        self.carry, self._doubtful = b"", None

    def decode(self, data: bytes, utterance: int = 0) -> bytes:
        """Takes the next bytes and returns every whole sample; floats beyond ±1 are clipped, NaN is silence.

        Args:
            utterance: another number than at the last call says that the utterance before is over.
        """
        if utterance != self._utterance:
            self._utterance = utterance
            if self.carry and self._doubtful is None:
                self.carry, self._doubtful = b"", self.carry
        if self._doubtful is None:
            data = self.carry + data if self.carry else data
            whole = len(data) - len(data) % self.width
            pcm, self.carry = data[:whole], data[whole:]
            return pcm if self._format is AudioFormat.S16LE else self._int16(pcm)
        apart, carry = self._whole(self.carry + data)
        joined, joined_carry = self._whole(self._doubtful + data)
        rough_apart, rough_joined = self._roughness(apart), self._roughness(joined)
        if rough_apart == rough_joined:  # silence: a later message decides
            self.carry, self._doubtful = carry, joined_carry
            return self._int16(apart)
        self._doubtful = None
        self.carry = carry if rough_apart < rough_joined else joined_carry
        return self._int16(apart if rough_apart < rough_joined else joined)

    def _whole(self, data: bytes) -> tuple[bytes, bytes]:
        whole = len(data) - len(data) % self.width
        return data[:whole], data[whole:]

    def _int16(self, pcm: bytes) -> bytes:
        if self._format is AudioFormat.S16LE:
            return pcm
        floats = np.nan_to_num(np.frombuffer(pcm, "<f4"), nan=0.0, posinf=1.0, neginf=-1.0)
        return bytes(np.round(np.clip(floats, -1.0, 1.0) * 32767.0).astype("<i2").data)

    def _roughness(self, pcm: bytes) -> float:
        """The median step between neighbouring samples that differ: small for audio, a third of full scale for samples cut at the
        wrong byte. 0 where less than `_EVIDENCE` of them do.

        Floats that are cut at the wrong byte are seldom as loud or as quiet as a sender means them; that counts before the steps.
        """
        pcm = pcm[: _JUDGED_SAMPLES * self.width]
        steps = np.abs(np.diff(np.frombuffer(self._int16(pcm), "<i2").astype(np.int32)))
        steps = steps[steps > 0]
        rough = float(np.median(steps)) if steps.size >= _EVIDENCE else 0.0
        if self._format is AudioFormat.F32LE:
            size = np.abs(np.frombuffer(pcm, "<f4"))
            size = size[~(size == 0)]
            wild = ~np.isfinite(size) | (size > _LOUDEST) | (size < _QUIETEST)
            rough += _FULL_STEP * float(np.median(wild)) if size.size >= _EVIDENCE else 0.0
        return rough


class AudioIngest:
    """Puts the messages of a session's senders into its segments. Lives as long as the session, so that reconnecting grants no
    new burst.

    Attributes:
        meter: the level of the last second.
        sample_rate: of all PCM of the session (Hz); None before the first sample.
        received_samples: samples taken so far, those of earlier connections too.
        last_audio_at: Unix time of the last PCM.
    """

    def __init__(self, tracker: SegmentTracker, limits: AudioLimits, metrics: Metrics) -> None:
        self._tracker = tracker
        self._limits = limits
        self._metrics = metrics
        self._paid_until = -math.inf  # when the bytes taken so far would have come at the sustained rate
        self.meter = LevelMeter()
        self.sample_rate: int | None = None
        self.received_samples = 0
        self.last_audio_at: float | None = None

    def push(self, data: bytes, decoder: PcmDecoder, sample_rate: int) -> None:
        """Takes a message of PCM whole, or raises ProblemError for the limit it passes and takes nothing of it."""
        now, tracker = time.monotonic(), self._tracker
        if tracker.live is not None and now - tracker.live.input_at >= IDLE_END_S and tracker.tick(now):
            tracker.wake()
        waiting = tracker.totals.audio.total() + (len(decoder.carry) + len(data)) // decoder.width
        self.admit(len(data), now, waiting / sample_rate)  # all audio of a session has one rate
        if tracker.live is None:
            tracker.check_open()
        pcm = decoder.decode(data, tracker.utterance)
        self._metrics.audio_bytes.inc(len(data))
        self.meter.add(pcm, len(data), now)
        if not pcm:
            return
        self.sample_rate = sample_rate
        tracker.push(pcm, sample_rate, now, self.received_samples)
        self.received_samples += len(pcm) // BYTES_PER_SAMPLE
        self.last_audio_at = time.time()
        tracker.wake()

    def check_rate(self, sample_rate: int) -> None:
        """Raises ProblemError `sample_rate_changed` when audio has come at another rate before."""
        if self.sample_rate not in (None, sample_rate):
            raise ProblemError(
                ErrorCode.SAMPLE_RATE_CHANGED,
                f"This session's audio has {self.sample_rate} Hz, not {sample_rate}: keep the rate, or start another session.",
                field="sample_rate",
                value=sample_rate,
            )

    def admit(self, size: int, now: float, waiting_s: float = 0.0) -> None:
        """Admits a message of `size` bytes after which `waiting_s` seconds of PCM would wait to be heard.

        Raises ProblemError `message_too_large`, `rate_exceeded`, or `backlog_exceeded`.
        """
        limits = self._limits
        if size > limits.message_bytes:
            raise ProblemError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"A message of {size} bytes passes the limit of {limits.message_bytes}: send shorter blocks.",
                limit=limits.message_bytes,
                value=size,
            )
        paid_until = max(self._paid_until, now) + (size + MESSAGE_COST_BYTES) / limits.bytes_per_s
        if paid_until - now > BURST_S:
            raise ProblemError(
                ErrorCode.RATE_EXCEEDED,
                f"More than {limits.bytes_per_s} bytes per second: send more slowly, then resume from received_samples.",
                limit=limits.bytes_per_s,
            )
        self._paid_until = paid_until
        if waiting_s > limits.backlog_s:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{waiting_s:.1f} s of speech would wait to be heard, {limits.backlog_s:g} s may: "
                "reconnect and resume from received_samples once some of it was played.",
                limit=limits.backlog_s,
                value=round(waiting_s, 1),
            )
