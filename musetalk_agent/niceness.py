"""The priority of processes that must not disturb sessions."""

from __future__ import annotations

import os

NICE = 19


def be_nice() -> None:
    """Takes only the time of the processors that nobody else wants. Without effect where the system knows no such thing."""
    try:
        os.nice(NICE)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        return
