"""Bytes of a sender → whole int16 samples, within the limits."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import TokenBucket
from orchestrator.audio.limits import BURST_S, MESSAGE_COST_BYTES, AudioLimits


class AudioFormat(StrEnum):
    """How samples lie on the wire."""

    S16LE = "s16le"
    F32LE = "f32le"


_WIDTH = {AudioFormat.S16LE: 2, AudioFormat.F32LE: 4}


class Decoder:
    """One connection's byte stream as int16 little endian mono. A sample split over two messages is carried over."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._carry = b""

    def samples(self, size: int) -> int:
        """Whole samples there will be once `size` more bytes have come."""
        return (len(self._carry) + size) // _WIDTH[self._format]

    def reset(self) -> None:
        """An utterance begins or ends: half a sample left over belongs to nothing, and would shift every byte after it."""
        self._carry = b""

    def decode(self, data: bytes) -> bytes:
        """Takes the next bytes and returns every whole sample; floats beyond ±1 are clipped, NaN is silence."""
        joined = self._carry + data if self._carry else data
        whole = len(joined) - len(joined) % _WIDTH[self._format]
        self._carry = joined[whole:]
        pcm = joined[:whole]
        if self._format is AudioFormat.S16LE:
            return pcm
        floats = np.nan_to_num(np.frombuffer(pcm, "<f4"), nan=0.0, posinf=1.0, neginf=-1.0)
        return bytes(np.round(np.clip(floats, -1.0, 1.0) * 32767.0).astype("<i2").data)


class Gate:
    """Refuses what passes a limit. Lives as long as the session, so that reconnecting does not refill the bucket."""

    def __init__(self, limits: AudioLimits, now: float) -> None:
        self._limits = limits
        self._bucket = TokenBucket(limits.bytes_per_s, limits.bytes_per_s * BURST_S, now)

    def check_message(self, size: int, now: float) -> None:
        """Raises ProblemError `message_too_large` or `rate_exceeded` for a message of `size` bytes."""
        limits = self._limits
        if size > limits.message_bytes:
            raise ProblemError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"A message of {size} bytes passes the limit of {limits.message_bytes}: send shorter blocks.",
                limit=limits.message_bytes,
                value=size,
            )
        if not self._bucket.take(size + MESSAGE_COST_BYTES, now):
            raise ProblemError(
                ErrorCode.RATE_EXCEEDED,
                f"More than {limits.bytes_per_s} bytes per second: send more slowly, then resume from received_samples.",
                limit=limits.bytes_per_s,
            )

    def check_backlog(self, waiting_s: float, more_s: float) -> None:
        """Raises ProblemError `backlog_exceeded` when `more_s` seconds on top of `waiting_s` are too many."""
        if waiting_s + more_s > self._limits.backlog_s:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{waiting_s + more_s:.1f} s of speech would wait to be heard, {self._limits.backlog_s:g} s may: "
                "reconnect and resume from received_samples once some of it was played.",
                limit=self._limits.backlog_s,
                value=round(waiting_s + more_s, 1),
            )
