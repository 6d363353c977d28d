"""The decoder process: `python -m musetalk_agent.avatars.decoder_main PARENT_PID [MODELS_FOLDER]`.

`decoder_process` is the other end. A request is one JSON object in a line on stdin, an answer one on stdout: `begun`, any number of
`progress`, then `done`, `error` (an `AgentError`), `os_error`, `memory` or `crash`. The process ends when stdin does, whatever it
is doing.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.confinement import Budget, confine
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sniff import SNIFF_BYTES, Kind, sniff
from musetalk_agent.errors import AgentError

if TYPE_CHECKING:
    from musetalk_agent.avatars.face import FaceNet

_DECODERS = 2
_TRACE_CHARACTERS = 2000


class Decoder:
    """Does what requests ask for. Networks stay loaded from one to the next.

    Args:
        send: sends one answer.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._net: FaceNet | None = None
        self._models: str | None = None

    def handle(self, request: dict[str, Any]) -> bool:
        """Answers one request. Returns whether the process is fit for another."""
        self._send({"begun": True})
        try:
            getattr(self, f"_{request['do']}")(request)
        except AgentError as error:
            fields = {name: getattr(error, name) for name in ("detail", "field", "limit", "value", "retry_after_s")}
            self._send({"error": fields | {"kind": type(error).__name__}})
        except MemoryError:
            self._send({"memory": True})
            return False
        except OSError as error:
            self._send({"os_error": [error.errno, error.strerror or str(error)]})
        except Exception:  # noqa: BLE001 - a request's boundary: what a stranger's bytes set off is the parent's to report
            self._send(_crash())
            return False
        else:
            self._send({"done": True})
        return True

    def _check_archive(self, request: dict[str, Any]) -> None:
        """Reads the directory of a zip, and of anything else nothing."""
        limits = AvatarLimits(**request["limits"])
        Budget(limits)
        path = Path(request["source"])
        with path.open("rb") as file:
            kind = sniff(file.read(SNIFF_BYTES))
        if kind is Kind.ZIP:
            FrameArchive(path, limits).close()

    def _build(self, request: dict[str, Any]) -> None:
        """Writes a bundle into a folder."""
        net = self.networks(request["models"])
        from concurrent.futures import ThreadPoolExecutor

        from musetalk_agent.avatars.build import Job, build
        from musetalk_agent.protocol.http import Picture

        limits = AvatarLimits(**request["limits"])
        budget = Budget(limits)

        def progress(stage: str, done: int, total: int) -> None:
            budget.step()
            self._send({"progress": [stage, done, total]})

        with ThreadPoolExecutor(_DECODERS, "decode") as decoders:
            job = Job(
                Path(request["source"]),
                request["avatar_id"],
                request["key"],
                Picture.model_validate(request["picture"]),
                limits,
                decoders,
                progress,
                budget.allow,
            )
            build(job, net, Path(request["folder"]))

    def networks(self, models: str) -> FaceNet:
        """The face networks in the folder `models`, with the libraries that they and decoding need."""
        if self._net is None or self._models != models:
            import cv2

            from musetalk_agent.avatars.face import FaceNet
            from musetalk_agent.weights import Manifest, ModelStore

            cv2.setNumThreads(1)
            self._net, self._models = FaceNet(ModelStore(Path(models), Manifest.load())), models
        return self._net


def _crash() -> dict[str, Any]:
    return {"crash": traceback.format_exc()[-_TRACE_CHARACTERS:]}


def _read(source: BinaryIO, requests: queue.Queue[dict[str, Any]]) -> None:
    """Reads requests in a thread of its own; at the end of input the process ends, also in the middle of a frame."""
    for line in source:
        requests.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Serves requests until the input ends, or one of them left the process in doubt."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what native code prints is no answer
        os.dup2(nowhere, standard)
    os.close(nowhere)
    confine(int(sys.argv[1]))

    def send(answer: dict[str, Any]) -> None:
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()

    requests: queue.Queue[dict[str, Any]] = queue.Queue(maxsize=1)
    threading.Thread(target=_read, args=(source, requests), name="requests", daemon=True).start()
    decoder = Decoder(send)
    try:
        if len(sys.argv) > 2:
            with suppress(AgentError):  # weights are missing: the first request says so
                decoder.networks(sys.argv[2])
    except Exception:  # the process's boundary: the parent hears why, then it ends
        send(_crash())
        raise
    while decoder.handle(requests.get()):
        pass


if __name__ == "__main__":
    main()
