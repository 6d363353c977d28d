"""The deadlines of a session on a clock that the test winds forward: however slow the machine is, none passes by itself."""

from __future__ import annotations

import time
from functools import partial

import pytest

from orchestrator.session.model import ManagedSession, SessionOptions
from tests.waiting import until


class Ahead:
    """The module `time` as the watch over a session sees it."""

    time = staticmethod(time.time)
    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def wound(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    """For sessions that begin from now on. They are looked at all the time, instead of each five seconds."""
    clock = Ahead()
    monkeypatch.setattr("orchestrator.session.session_runner.time", clock)
    monkeypatch.setattr("orchestrator.settings.SessionOptions", partial(SessionOptions, poll_s=0.0))
    monkeypatch.setattr("orchestrator.session.session_runner.FRESH_S", 0.0)
    return clock


async def looked_at(session: ManagedSession) -> None:
    """Returns once the deadlines were looked at with all that was so when this was called."""
    for _ in range(2):  # the first look may have begun before
        asked = session.snapshot_at
        await until(lambda: session.snapshot_at > asked)  # noqa: B023 - it is awaited within the round
