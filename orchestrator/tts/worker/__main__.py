"""Reads requests `{"id", "voice", "text"}` on standard input, answers each with its PCM on standard output, in order.

The first message is a hello: `{"voices": [...], "missing": [...]}`. An answer is `{"id", "sample_rate", "cues", "words"}` and int16
mono PCM, or `{"id", "error"}`.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

from orchestrator import worker_pipe
from orchestrator.tts.worker.synthesis import VoiceEngine, load_engines

REQUESTS_MAX = 4
"""The core sends one request at a time; more than a few waiting is not our core."""


def main() -> int:
    """Serves until the input closes."""
    # Ctrl-C reaches the whole process group; the core decides when this process ends, by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    engines, missing = load_engines()
    voices = [voice for engine in engines for voice in engine.voices()]
    _send(replies, worker_pipe.encode({"voices": voices, "missing": missing}))
    by_provider = {engine.provider: engine for engine in engines}
    requests: queue.Queue[tuple[int, str, str]] = queue.Queue(REQUESTS_MAX)
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        number, voice, text = requests.get()
        _send(replies, _answer(by_provider, number, voice, text))


def _private_stdout() -> BinaryIO:
    """The pipe to the core, out of reach of native code that prints: descriptor 1 becomes the log."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _read(source: BinaryIO, requests: queue.Queue[tuple[int, str, str]]) -> None:
    try:
        while prefix := source.read(worker_pipe.LENGTHS.size):
            head, payload = worker_pipe.lengths(prefix)
            header = worker_pipe.decode_header(source.read(head))
            source.read(payload)
            requests.put((int(header["id"]), str(header["voice"]), str(header["text"])))
    finally:
        # At once, whatever the voice is doing: the core is gone, or talks nonsense and will start another worker.
        os._exit(0)


def _answer(engines: dict[str, VoiceEngine], number: int, voice: str, text: str) -> bytes:
    provider, _, name = voice.partition(":")
    try:
        speech = engines[provider].speak(text, name)
        header = {"id": number, "sample_rate": speech.sample_rate, "cues": speech.cues, "words": speech.words}
        return worker_pipe.encode(header, speech.pcm.tobytes())
    except Exception as error:  # noqa: BLE001 - task boundary: a text that breaks a voice must not end the other utterances
        # The answer names the error's class only: its message may hold the text.
        return worker_pipe.encode({"id": number, "error": type(error).__name__})


def _send(replies: BinaryIO, message: bytes) -> None:
    try:
        replies.write(message)
        replies.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
