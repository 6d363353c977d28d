"""MuseTalk avatars for livekit-agents: an agent's speech comes out of a face in its own room.

avatar = musetalk.AvatarSession(idle_video_url="https://example.com/face.mp4")
await avatar.start(session, room=ctx.room)
await session.start(agent=agent, room=ctx.room)
"""

from .avatar import AvatarSession
from .client import MuseTalkError

__all__ = ["AvatarSession", "MuseTalkError"]
