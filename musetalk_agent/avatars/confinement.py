"""What a decoder process takes from itself before it looks at a stranger's bytes, and what it may use for one clip."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import threading

from musetalk_agent.avatars.limits import AvatarLimits

NICE = 5
"""A session that speaks gets three times the CPU time of a clip that is being prepared (sched(7))."""
_OPEN_FILES = 64
_FILE_BYTES_SPARE = 64 << 20
_ADDRESS_BYTES_SPARE = 16 << 30
"""Beyond private memory: libraries, stacks, and the bundle's files, which are mapped."""
_GROWTH_BYTES = 256 << 20
"""By so much may what a process keeps from one clip to the next grow, until the hard limit is met."""
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
