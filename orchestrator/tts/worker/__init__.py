"""The speech worker: a program of its own (`python -m orchestrator.tts.worker`), the only part that loads the GPL voices.

Nothing imports this package. It leaves when its standard input closes, so it never outlives the core.
"""
