"""Several taps on one publisher: the recording of a session, and a sample for the judge."""

from __future__ import annotations

from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.base import MediaTap


class MediaTaps:
    """A `MediaTap` that passes media to each of its taps. Not thread-safe: use it on one event loop."""

    def __init__(self) -> None:
        self._taps: tuple[MediaTap, ...] = ()

    @property
    def empty(self) -> bool:
        """There is none."""
        return not self._taps

    def add(self, tap: MediaTap) -> None:
        """Passes media to `tap` from now on. Idempotent."""
        if tap not in self._taps:
            self._taps = (*self._taps, tap)

    def remove(self, tap: MediaTap) -> None:
        """Stops passing media to `tap`. Idempotent."""
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
