"""What a sender of `/audio` may do."""

from __future__ import annotations

from dataclasses import dataclass

from musetalk_agent.protocol.messages import Limits

SAMPLE_RATES = (8000, 48000)
BYTES_PER_SAMPLE = 2
BURST_S = 4.0
"""Seconds' worth of `bytes_per_s` that may come at once: a minute of 48 kHz float fits into it."""
MESSAGE_COST_BYTES = 128
"""What a message costs beyond its payload, so that a flood of tiny ones meets the limit too."""
OPEN_SEGMENTS = 256
"""Segments of a session that may be open and not cleared. An agent takes as many."""


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

    def told(self) -> Limits:
        """The limits as `hello` tells them."""
        return Limits(
            message_bytes=self.message_bytes,
            backlog_s=self.backlog_s,
            bytes_per_s=self.bytes_per_s,
            segments=OPEN_SEGMENTS,
        )
