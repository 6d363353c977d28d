"""Conversations: a session's avatar listens and answers."""
