"""The orchestrator's own voice in a room: for the time without an avatar, and for `speaker=orchestrator`.

`voice_worker.py` starts the worker process and has one session's line as the service sees it. The worker is the only part
that loads the LiveKit SDK: a panic of the native library ends the process that loaded it.
"""
