"""What the bot hears: everybody but its own avatar."""

from __future__ import annotations

from collections.abc import Callable

from pipecat.frames.frames import Frame, UserAudioRawFrame, UserImageRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor


class WithoutAvatar(FrameProcessor):
    """Drops sound and pictures of the bot's own participants, so that a bot does not listen to itself."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        """`is_own` is asked at every frame with the participant's identity."""
        super().__init__()
        self._is_own = is_own

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Passes everything on but the avatar's."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, UserAudioRawFrame | UserImageRawFrame) or not self._is_own(frame.user_id):
            await self.push_frame(frame, direction)
