"""Reads requests `{"id", "voice", "text", "speed", "said"}` on standard input, answers each with its PCM on standard output, in
order; and requests `{"id", "text", "languages"}`, answered by `{"id", "ranking": [[language, share], …]}`. `said` are words that
are said otherwise than they are written: `[[start, end, respelling, IPA], …]`.

The first message is a hello: `{"voices": [...], "missing": [...], "providers": [...]}`. An answer is `{"id", "sample_rate", "cues",
"words", "loaded", "loads"}` and int16 mono PCM, or `{"id", "error"}`; the error of files that cannot be loaded begins with
`BrokenVoiceError:`.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from orchestrator import worker_pipe
from orchestrator.tts.worker.languages import LanguageRanking
from orchestrator.tts.worker.synthesis import BrokenVoiceError, Manner, Replacement, VoiceEngine, load_engines

REQUESTS_MAX = 4
"""The core sends one request at a time; more than a few waiting is not our core."""


def main() -> int:
    """Serves until the input closes."""
    # Ctrl-C reaches the whole process group; the core decides when this process ends, by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    parser = argparse.ArgumentParser()
    parser.add_argument("--voices-dir", type=Path)
    parser.add_argument("--kokoro-dir", type=Path)
    parser.add_argument("--languages", action="store_true")
    parser.add_argument("--loaded", type=int, default=3)
    arguments = parser.parse_args()
    languages = LanguageRanking()
    if arguments.languages:
        languages.start()
    engines, missing = load_engines(arguments.voices_dir, arguments.loaded, arguments.kokoro_dir)
    by_provider = {engine.provider: engine for engine in engines}
    voices = [voice for engine in engines for voice in engine.voices()]
    _send(replies, worker_pipe.encode({"voices": voices, "missing": missing, "providers": list(by_provider)}))
    requests: queue.Queue[tuple[int, str, str, Manner | list[str]]] = queue.Queue(REQUESTS_MAX)
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        number, voice, text, manner = requests.get()
        if isinstance(manner, Manner):
            _send(replies, _answer(by_provider, number, voice, text, manner))
        else:
            _send(replies, worker_pipe.encode({"id": number, "ranking": languages.rank(text, manner)}))


def _private_stdout() -> BinaryIO:
    """The pipe to the core, out of reach of native code that prints: descriptor 1 becomes the log."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _read(source: BinaryIO, requests: queue.Queue[tuple[int, str, str, Manner | list[str]]]) -> None:
    try:
        while prefix := source.read(worker_pipe.LENGTHS.size):
            head, payload = worker_pipe.lengths(prefix)
            header = worker_pipe.decode_header(source.read(head))
            source.read(payload)
            if "languages" in header:
                candidates = [str(each) for each in header["languages"]]
                requests.put((int(header["id"]), "", str(header["text"]), candidates))
                continue
            said = tuple(Replacement(int(a), int(b), str(say), str(ipa)) for a, b, say, ipa in header.get("said", ()))
            manner = Manner(float(header.get("speed", 1.0)), said)
            requests.put((int(header["id"]), str(header["voice"]), str(header["text"]), manner))
    finally:
        # At once, whatever the voice is doing: the core is gone, or talks nonsense and will start another worker.
        os._exit(0)


def _answer(engines: dict[str, VoiceEngine], number: int, voice: str, text: str, manner: Manner) -> bytes:
    provider, _, name = voice.partition(":")
    try:
        speech = engines[provider].speak(text, name, manner)
        header = {"id": number, "sample_rate": speech.sample_rate, "cues": speech.cues, "words": speech.words}
        header["loaded"] = sum(engine.loaded for engine in engines.values())
        header["loads"] = sum(engine.loads for engine in engines.values())
        return worker_pipe.encode(header, speech.pcm.tobytes())
    except BrokenVoiceError as error:
        return worker_pipe.encode({"id": number, "error": f"BrokenVoiceError: {error}"[:200]})
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
