"""One decoder process seen from the agent: clips are read and decoded there, within limits, and never in the agent itself.

Pixels do not cross: the process reads the source's file and writes the bundle's. What crosses are requests and answers of a line
each (see `decoder_main`). Blocking; for worker threads.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musetalk_agent import errors
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AgentError

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, of how many); of how many is 0 where it is not known."""

_MODULE = "musetalk_agent.avatars.decoder_main"
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT")
_LOOK_S = 0.05
"""How often a wait looks whether it was called off."""
_LINE_BYTES_MAX = 64 << 10
_ANSWERS_SPARE = 1000
_TEXT_MAX = 1000
_EXIT_S = 5.0
_START_S = 60.0
"""Loading the libraries takes 0.7 s; a machine busy with everything else may take many times that."""
_LAST = frozenset({"done", "error", "os_error"})
"""Answers after which the process is ready for another request."""
_ERRORS = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentError)
}


class DecoderLost(Exception):
    """The process ended, was ended, or answers nonsense.

    Args:
        reason: `cpu`, `time`, `memory`, `crash` or `start`.
        begun: whether it had taken the request up.
    """

    def __init__(self, reason: str, *, begun: bool, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.begun = begun


class Aborted(Exception):
    """Nothing waits for the answer any more."""


class DecoderProcess:
    """Starts the process and does not wait for it. `busy` is true while it is at a request, `served` counts them.

    Args:
        models: folder of the models that it loads first; None for none.

    Raises:
        DecoderLost: it cannot be started.
    """

    def __init__(self, models: Path | None = None) -> None:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", _MODULE, str(os.getpid()), *([str(models)] if models else [])]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        except OSError as error:
            raise DecoderLost("start", begun=False, detail=str(error.strerror)) from error
        self._buffer = bytearray()
        self.served = 0
        self.busy = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def call(
        self,
        request: dict[str, Any],
        limits: AvatarLimits,
        aborted: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        """Sends a request and waits for its end. After `DecoderLost` and `Aborted` the process is to be closed.

        Args:
            request: `do` names what, beside its arguments (see `decoder_main.Decoder`).
            limits: how long it may take once it has begun, in all and from one answer to the next.
            aborted: looked at several times a second.
            progress: called in this thread.

        Raises:
            AgentError: what the clip was refused with.
            OSError: a file could not be read or written.
            DecoderLost: a limit was met, or the process broke.
            Aborted: `aborted` returned true.
        """
        self.served += 1
        self.busy, begun = True, False
        try:
            self._send(request)
            deadline = math.inf
            silence_s = _START_S
            for _ in range(2 * limits.frames + _ANSWERS_SPARE):
                answer = self._receive(min(deadline, time.monotonic() + silence_s), aborted)
                self.busy = not answer.keys() & _LAST
                if "done" in answer:
                    return
                if "begun" in answer and not begun:
                    begun, silence_s = True, limits.decoder_silence_seconds
                    deadline = time.monotonic() + limits.decoder_seconds
                _raise_told(answer, begun)
                if progress is not None and "progress" in answer:
                    stage, done, total = answer["progress"]
                    progress(str(stage)[:32], int(done), int(total))
        except (ValueError, TypeError, KeyError, BrokenPipeError, TimeoutError, EOFError) as error:
            raise DecoderLost(self._why(error), begun=begun, detail=f"{type(error).__name__} {error}") from error
        raise DecoderLost("crash", begun=True, detail="too many answers")

    def close(self) -> None:
        """Ends the process and waits until it is gone, or for `_EXIT_S` where the kernel keeps it. Safe to call twice."""
        self._process.kill()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # in a call of the kernel that a broken disk does not end; it dies with that
            log.warning("a decoder process does not end", extra={"pid": self.pid})
        finally:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        pass  # what was not sent is not wanted any more

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, deadline: float, aborted: Callable[[], bool]) -> dict[str, Any]:
        """The next answer. Raises TimeoutError, EOFError, ValueError, Aborted."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                answer = json.loads(line)
                if not isinstance(answer, dict):
                    raise ValueError("an answer is no object")
                if aborted():
                    raise Aborted
                return answer
            if len(self._buffer) > _LINE_BYTES_MAX:
                raise ValueError("an answer has no end")
            while not select.select([output], [], [], _LOOK_S)[0]:
                if aborted():
                    raise Aborted
                if time.monotonic() > deadline:
                    raise TimeoutError("no answer")
            piece = os.read(output, _LINE_BYTES_MAX)
            if not piece:
                raise EOFError("it ended")
            self._buffer += piece

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return "time"
        if not isinstance(error, EOFError | BrokenPipeError):
            return "crash"
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "crash"
        return "cpu" if code == -signal.SIGXCPU else "crash"


def _raise_told(answer: dict[str, Any], begun: bool) -> None:
    """Raises the error that an answer tells of. Its texts are the process's, which a clip may have taken over: they are bounded."""
    if "error" in answer:
        told: dict[str, Any] = dict(answer["error"])
        kind = _ERRORS[told.pop("kind")]
        short: dict[str, Any] = {
            name: value[:_TEXT_MAX] if isinstance(value, str) else value for name, value in told.items()
        }
        raise kind(str(short.pop("detail")), **short)
    if "os_error" in answer:
        number, text = answer["os_error"]
        raise OSError(str(text)[:_TEXT_MAX]) if number is None else OSError(int(number), str(text)[:_TEXT_MAX])
    if "memory" in answer:
        raise DecoderLost("memory", begun=begun)
    if "crash" in answer:
        raise DecoderLost("crash", begun=begun, detail=str(answer["crash"])[-_TEXT_MAX:])
