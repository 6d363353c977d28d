"""Puts speech into a segment as the session's speech queue does."""

from __future__ import annotations

from collections.abc import Sequence

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from orchestrator.audio.outgoing_segment import OutgoingSegment


def speak(
    segment: OutgoingSegment,
    pcm: bytes,
    rate: int,
    now: float,
    cues: Sequence[CueItem] = (),
    words: Sequence[CaptionWord] = (),
) -> int | None:
    """Returns how many phonemes and words were dropped; None when the segment is over and nothing was taken."""
    if segment.over:
        return None
    dropped = segment.add_notes(cues, words)
    if pcm:
        segment.append(pcm, rate, now)
    return dropped
