"""The plan of a run: sessions, times and speech, and the limits of what this machine can generate."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from musetalk_tools.loadtest.deployment import is_loopback
from musetalk_tools.loadtest.speech_source import UTTERANCE_S

SESSIONS_MAX = 1000
MINUTES_MAX = 24 * 60.0
_PER_CORE_HERE = 2
"""On loopback the service and its viewers share the cores."""
_PER_CORE_AWAY = 8
"""A viewer that decodes 512×512 at 25 fps takes a twelfth of a core; one that is starved measures itself."""
PATTERN = "pattern"
_WINDOWS = 120
_WINDOW_S = 2.0


class PlanError(ValueError):
    """A number is out of its range, or too much for this machine; the message says which and what to do."""


@dataclass(frozen=True)
class Plan:
    """A run. `speak_share` is the part of the time in which a session speaks, `interrupt_every` the utterance of which each
    such one is interrupted (0: none), `ramp_s` the time over which sessions start."""

    url: str
    sessions: int
    minutes: float
    engine: str | None = None
    avatar_id: str | None = None
    speak_share: float = 0.5
    interrupt_every: int = 3
    ramp_s: float = 0.0
    speech: str = "tones"
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def rooms(self) -> str:
        """How the names of this run's rooms begin."""
        return f"loadtest-{self.run_id}-"

    @property
    def seconds(self) -> float:
        """The whole run, ramp included."""
        return self.ramp_s + 60 * self.minutes

    @property
    def window_s(self) -> float:
        """Time over which a frame rate is measured: 2 s, more in runs of over four minutes."""
        return max(_WINDOW_S, self.seconds / _WINDOWS)

    @property
    def pause_s(self) -> float:
        """Between utterances."""
        return UTTERANCE_S * (1 / self.speak_share - 1)

    def begins_at(self, index: int) -> float:
        """Seconds into the run at which session `index` starts."""
        return self.ramp_s * index / self.sessions

    def body(self, index: int) -> dict[str, Any]:
        """Its `POST /session/start`."""
        body: dict[str, Any] = {"room": f"{self.rooms}{index}"}
        if self.engine is not None:
            body["engine"] = self.engine
        if self.engine != PATTERN or self.avatar_id is not None:
            body["avatar_id"] = self.avatar_id or "demo"
        return body

    def sentence(self) -> str:
        """What it will do."""
        what = f"{self.sessions} session{'s' * (self.sessions > 1)} with one viewer each"
        speaks = f"speaking {100 * self.speak_share:.0f} % of the time ({self.speech})"
        cut = f", every {self.interrupt_every}. utterance interrupted" if self.interrupt_every else ""
        engine = f", engine {self.engine}" if self.engine else ""
        return f"{what} at {self.url} for {self.seconds:.0f} s, {speaks}{cut}{engine}. Rooms: {self.rooms}*"


def check(plan: Plan, *, anyway: bool, cores: int | None = None) -> None:
    """Raises PlanError. With `anyway`, what is merely too much for this machine passes."""
    ranges = {
        "--sessions": (plan.sessions, 1, SESSIONS_MAX),
        "--minutes": (plan.minutes, 0.1, MINUTES_MAX),
        "--speak-share": (plan.speak_share, 0.05, 1.0),
        "--ramp": (plan.ramp_s, 0, 3600),
        "--interrupt-every": (plan.interrupt_every, 0, 1000),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise PlanError(f"{name} {value:g}: give {low:g} to {high:g}.")
    if not plan.url.startswith(("http://", "https://")):
        raise PlanError(f"--url {plan.url}: give an address that begins with http:// or https://.")
    cores = cores or os.cpu_count() or 1
    here = is_loopback(plan.url)
    most = cores * (_PER_CORE_HERE if here else _PER_CORE_AWAY)
    if plan.sessions > most and not anyway:
        why = "the service and its viewers share them" if here else "viewers that are starved measure themselves"
        raise PlanError(
            f"--sessions {plan.sessions}: with {cores} cores {most} make sense here, for {why}. "
            "Give fewer, run from more machines, or add --yes."
        )
