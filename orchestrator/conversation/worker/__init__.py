"""The conversation worker: runs in the environment of livekit-agents, and imports nothing of the service but its messages."""
