"""The voice worker: a program of its own (`python -m orchestrator.voice.worker`), the only part that loads the LiveKit SDK.

Nothing imports this package. It leaves its rooms and ends when its standard input closes, so it never outlives the core.
"""
