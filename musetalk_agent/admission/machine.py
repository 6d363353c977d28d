"""What the machine grants this process: cores and memory by the system, its control groups and its affinity (Linux), and how slow
its cores are."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from musetalk_agent.media_types import Pixels

_UNLIMITED = 1 << 60
"""Version 1 of the control groups says "no limit" by a number near 2⁶³."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `limit` is the least of the machine's memory and the control groups' limits; `free` is what may still be taken;
    `own` is what this process holds by itself, without the files that it has mapped."""

    limit: int
    free: int
    own: int


class Host:
    """Looks at the system's files each time that it is asked.

    Args:
        root: where `proc` and `sys` are; another folder in tests.
        affinity: cores that the process may run on; None for the system's word.
    """

    def __init__(self, root: Path = Path("/"), affinity: int | None = None) -> None:
        self._root, self._affinity = root, affinity

    def cores(self) -> float:
        """Cores that this process may use all the time; at least a tenth of one."""
        cores = float(self._affinity or _affinity())
        for group in self._groups("cpu"):
            words = (_text(group / "cpu.max") or "").split()
            if len(words) == 2:
                quota, period = _number(words[0]), _number(words[1])
            else:
                quota = _number(_text(group / "cpu.cfs_quota_us"))
                period = _number(_text(group / "cpu.cfs_period_us"))
            if quota is not None and period and quota > 0:
                cores = min(cores, quota / period)
        return max(0.1, cores)

    def memory(self) -> Memory | None:
        """None where the system does not say."""
        system = self._table("proc/meminfo")
        own = self._table("proc/self/status")
        if "MemTotal" not in system or "MemAvailable" not in system or "RssAnon" not in own:
            return None
        limit, free = system["MemTotal"], system["MemAvailable"]
        for group in self._groups("memory"):
            most = _number(_text(group / "memory.max"))
            used = _number(_text(group / "memory.current"))
            if most is None and used is None:
                most = _number(_text(group / "memory.limit_in_bytes"))
                used = _number(_text(group / "memory.usage_in_bytes"))
            if most is None or used is None or most >= _UNLIMITED:
                continue
            limit, free = min(limit, most), min(free, most - used + _given_back(group))
        return Memory(limit, max(0, free), own["RssAnon"] + own.get("RssShmem", 0))

    def cpu_s(self) -> float:
        """Seconds of a core that this process has used, in all of its threads."""
        return time.process_time()

    def _groups(self, controller: str) -> Iterator[Path]:
        """Folders of the control groups that this process is in, the innermost first. In a container the path may be the host's:
        what is not there is left out."""
        for line in (_text(self._root / "proc/self/cgroup") or "").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if names == "":
                mount = self._root / "sys/fs/cgroup"
            elif controller in names.split(","):
                mount = self._root / "sys/fs/cgroup" / controller
            else:
                continue
            inside = mount / path.strip("/")
            for folder in (inside, *inside.parents):
                if folder.is_dir():
                    yield folder
                if folder == mount:
                    break

    def _table(self, path: str) -> dict[str, int]:
        """Lines such as `RssAnon:   123 kB`, in bytes."""
        found = {}
        for line in (_text(self._root / path) or "").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if len(words) == 2 and words[1] == "kB" and (value := _number(words[0])) is not None:
                found[name] = value * 1024
        return found


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system
        return os.cpu_count() or 1


def _given_back(group: Path) -> int:
    """Bytes of files that the group would give up at once, which count as used."""
    words = (_text(group / "memory.stat") or "").split()
    figures = dict(zip(words[::2], words[1::2], strict=False))
    return _number(figures.get("total_inactive_file", figures.get("inactive_file"))) or 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _number(text: str | None) -> int | None:
    """None for "max", an empty text, and a text that is not a number."""
    try:
        return int(text or "")
    except ValueError:
        return None


log = logging.getLogger(__name__)

_SIDE, _FRAMES, _ROUNDS = 512, 10, 4
_REFERENCE_S = 0.0025
"""A frame of `_scene` on the machine where the table of `costs` was measured, as busy as it was then (least of a run: 0.0024)."""
_LIKE_THE_SDK = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"}


def slowness() -> float:
    """Seconds of a core for a frame of VP8 by those of the reference: 2 where everything takes twice as long; 1 where there is no
    encoder to ask. Blocks for about a sixth of a second of one core.

    The least of four rounds is taken: others who use the core's caches make it slower, nothing makes it faster.
    """
    try:
        return min(_rounds()) / _REFERENCE_S
    except (av.FFmpegError, ValueError) as error:  # a PyAV that was built without libvpx
        log.warning("the processor's speed is not measured", extra={"error": str(error)})
        return 1.0


def _rounds() -> list[float]:
    """Seconds of this thread for a frame, by round; the first, which begins with a key frame, is left out."""
    context = av.CodecContext.create("libvpx", "w")
    context.width = context.height = _SIDE
    context.pix_fmt, context.time_base, context.bit_rate = "yuv420p", Fraction(1, 25), 1_500_000
    context.thread_count, context.options = 1, _LIKE_THE_SDK
    frames = [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in _scene()]
    taken = []
    for number in range(_ROUNDS + 1):
        begun = time.thread_time()
        for index, frame in enumerate(frames):
            frame.pts = number * _FRAMES + index
            context.encode(frame)
        taken.append((time.thread_time() - begun) / _FRAMES)
    return taken[1:]


def _scene() -> list[Pixels]:
    """I420 frames of something that sways and opens and shuts."""
    noise = np.random.default_rng(1).integers(0, 255, (_SIDE, _SIDE), dtype=np.uint8)
    still = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]  # None: a new array
    made = []
    for number in range(_FRAMES):
        planes = np.full((_SIDE * 3 // 2, _SIDE), 128, np.uint8)
        planes[:_SIDE] = np.roll(still, (number % 5, number % 7), (0, 1))
        cv2.circle(planes[:_SIDE], (_SIDE // 2, 350), 20 + 4 * (number % 6), 30, -1)
        made.append(planes)
    return made
