"""Several takers of one publisher's media: a film that is recorded, and a sample that the judge looks at."""

from __future__ import annotations

from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.base import MediaTap


class MediaTaps:
    """A `MediaTap` that hands everything on to each of its taps. One event loop."""

    def __init__(self) -> None:
        self._taps: tuple[MediaTap, ...] = ()

    def add(self, tap: MediaTap) -> None:
        """It gets what is played from now on. One that is there already stays once."""
        if tap not in self._taps:
            self._taps = (*self._taps, tap)

    def remove(self, tap: MediaTap) -> None:
        """It gets nothing more. Idempotent."""
        self._taps = tuple(one for one in self._taps if one is not tap)

    def offer_audio(self, at: float, block: Pcm) -> None:
        """As `MediaTap.offer_audio`."""
        for tap in self._taps:
            tap.offer_audio(at, block)

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        """As `MediaTap.offer_video`."""
        for tap in self._taps:
            tap.offer_video(at, frame)

    def clear_audio(self, since: float) -> None:
        """As `MediaTap.clear_audio`."""
        for tap in self._taps:
            tap.clear_audio(since)
