"""The orchestrator's own voice in a room: for the time without an avatar, and for `speaker=orchestrator`.

`process.py` runs the worker, `line.py` is one session's voice as the core sees it. The worker is the only part that loads the
LiveKit SDK: a panic of the native library ends the process that loaded it.
"""
