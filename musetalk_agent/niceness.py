"""CPU priority of background processes, which must not slow down sessions."""

from __future__ import annotations

import os

NICE = 19


def be_nice() -> None:
    """Sets the lowest CPU priority for this process. Has no effect on a system without it."""
    try:
        os.nice(NICE)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        return
