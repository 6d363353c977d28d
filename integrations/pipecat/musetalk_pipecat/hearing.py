"""What the bot hears: everybody but its own avatar."""

from __future__ import annotations

from collections.abc import Callable

from pipecat.frames.frames import Frame, UserAudioRawFrame, UserImageRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor


class WithoutAvatar(FrameProcessor):
    """Drops sound and pictures of the given participants, so that a bot does not listen to itself."""

    def __init__(self, identities: Callable[[], frozenset[str]]) -> None:
        """`identities` is asked at every frame, for they are not known before the session has started."""
        super().__init__()
        self._identities = identities

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Passes everything on but the avatar's."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, UserAudioRawFrame | UserImageRawFrame) or frame.user_id not in self._identities():
            await self.push_frame(frame, direction)
