"""The decoder process: `python -m musetalk_agent.avatars.decoder_main PARENT_PID [MODELS_FOLDER]`.

`decoder_pool` is the other end. A request is one JSON object in a line on stdin. An answer is one on stdout: `begun`, any
number of `progress`, then `done`, `error` (an `AgentError`), `os_error`, `memory` or `crash`. The process ends when stdin does,
also in the middle of a frame. Before it reads a stranger's bytes, it gives up rights (`confine`) and limits its memory and CPU
time (`Budget`).

Imports at the top stay few: a checker of archives needs neither numpy nor a codec.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind, sniff_file
from musetalk_agent.errors import AgentError

if TYPE_CHECKING:
    from musetalk_agent.avatars.face import FaceNet
    from musetalk_agent.avatars.person_net import PersonNet

NICE = 5
"""A session that speaks gets three times the CPU time of a clip that is being prepared (sched(7))."""
_OPEN_FILES = 64
_FILE_BYTES_SPARE = 64 << 20
_ADDRESS_BYTES_SPARE = 16 << 30
"""Beyond private memory: libraries, stacks, and the bundle's files, which are mapped."""
_GROWTH_BYTES = 256 << 20
"""What a process keeps from one clip to the next may grow by this before the hard limit is met."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38  # linux/prctl.h
_PAGE_BYTES = resource.getpagesize()


def confine(parent: int) -> None:
    """Lowers this process's rights and priority for good: no core, few files, no new privileges, and an end with its parent's.

    Args:
        parent: process id of the parent, as it says itself.
    """
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends this process
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked to say so
        os._exit(0)


class Budget:
    """Memory and CPU time of one clip, from now on. The kernel enforces both: an allocation fails, or SIGXCPU ends the process.

    Memory is that of RLIMIT_DATA: all private writable mappings, used or not (setrlimit(2), Linux 4.7).
    """

    def __init__(self, limits: AvatarLimits) -> None:
        self._limits = limits
        self._base = _data_bytes()
        self._pixels = -1
        self._lock = threading.Lock()
        if self._base:
            _cap(resource.RLIMIT_DATA, self._bytes(limits.picture_pixels) + _GROWTH_BYTES)
            _cap(resource.RLIMIT_AS, self._bytes(limits.picture_pixels) + _ADDRESS_BYTES_SPARE)
        _cap(resource.RLIMIT_FSIZE, 2 * limits.bundle_bytes + _FILE_BYTES_SPARE)  # BGR windows of I420 frames
        self.allow(0)
        self.step()

    def allow(self, pixels: int) -> None:
        """Grants the memory for frames of `pixels` pixels, the largest of which counts. From any thread."""
        with self._lock:
            if self._base and pixels > self._pixels:
                self._pixels = pixels
                _limit(resource.RLIMIT_DATA, self._bytes(pixels))

    def step(self) -> None:
        """Grants the CPU time until the next call."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + self._limits.decoder_step_cpu_seconds)

    def _bytes(self, pixels: int) -> int:
        limits = self._limits
        return self._base + limits.decoder_bytes + limits.decoder_bytes_per_pixel * min(pixels, limits.picture_pixels)


def _cap(which: int, value: int) -> None:
    """Sets the hard limit for good, unless there is one already."""
    if resource.getrlimit(which)[1] == resource.RLIM_INFINITY:
        resource.setrlimit(which, (value, value))


def _limit(which: int, value: int) -> None:
    """Sets the soft limit, within the hard one."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _data_bytes() -> int:
    """Private writable memory of this process (proc_pid_statm(5): data and stack); 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * _PAGE_BYTES
    except OSError:
        return 0


_DECODERS = 2
_TRACE_CHARACTERS = 2000


class Decoder:
    """Answers requests. Networks stay loaded from one to the next.

    Args:
        send: sends one answer.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._net: FaceNet | None = None
        self._person: PersonNet | None = None
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
        if sniff_file(path) is MediaKind.ZIP:
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

    def _matte(self, request: dict[str, Any]) -> None:
        """Writes a bundle's matte into a folder."""
        self.networks(request["models"])  # the libraries
        from musetalk_agent.avatars.bundle import read_size
        from musetalk_agent.avatars.matte_files import make_matte

        person = self._person_network(request["models"])
        bundle = Path(request["bundle"])
        budget = Budget(AvatarLimits(**request["limits"]))
        width, height = read_size(bundle)
        budget.allow(width * height)

        def progress(done: int, total: int) -> None:
            budget.step()
            self._send({"progress": ["matte", done, total]})

        make_matte(bundle, Path(request["folder"]), lambda: person, progress)

    def _scenery(self, request: dict[str, Any]) -> None:
        """Writes a picture that is to stand behind a person into a folder, at the size that it covers."""
        self.networks(request["models"])
        from musetalk_agent.avatars.scenery import write_scenery

        limits = AvatarLimits(**request["limits"])
        budget = Budget(limits)
        size = request["width"], request["height"]
        write_scenery(Path(request["source"]), size, Path(request["folder"]), limits, budget.allow)

    def _person_network(self, models: str) -> PersonNet:
        if self._person is None:
            from musetalk_agent.avatars.person_net import PersonNet
            from musetalk_agent.weights import Manifest, ModelStore

            self._person = PersonNet(ModelStore(Path(models), Manifest.load()))
        return self._person

    def networks(self, models: str) -> FaceNet:
        """The face networks in the folder `models`, with the libraries that they and decoding need."""
        if self._net is None or self._models != models:
            import cv2

            from musetalk_agent.avatars.face import FaceNet
            from musetalk_agent.weights import Manifest, ModelStore

            cv2.setNumThreads(1)
            self._net, self._models = FaceNet(ModelStore(Path(models), Manifest.load())), models
            self._person = None
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
