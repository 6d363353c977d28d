"""What travels to the agent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkItem:
    """One message to the agent: PCM as bytes or JSON as text. `seconds` is how long its audio lasts.

    `segment` is what it belongs to, 0 for a clear. Of PCM, `rate` is in Hz and `start` its first sample's number in the segment.
    """

    payload: bytes | str
    seconds: float = 0.0
    segment: int = 0
    rate: int = 0
    start: int = 0
