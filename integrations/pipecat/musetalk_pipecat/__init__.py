"""A self-hosted talking avatar for Pipecat bots in LiveKit rooms."""

from musetalk_pipecat.service import MuseTalkVideoService

__all__ = ["MuseTalkVideoService"]
