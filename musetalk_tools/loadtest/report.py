"""The report: one JSON object. docs/how-to/loadtest.md describes its fields; `version` rises when one changes its meaning."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from musetalk_tools.loadtest.deployment import ServiceMetrics
from musetalk_tools.loadtest.load_session import Counts, LoadSession
from musetalk_tools.loadtest.plan import Plan
from musetalk_tools.loadtest.thresholds import ThresholdResult
from musetalk_tools.loadtest.viewer_metrics import Figure, Tallies


class ReportedPlan(BaseModel):
    """What was asked for."""

    url: str
    run_id: str
    sessions: int
    seconds: float
    ramp_s: float
    engine: str | None
    speech: str
    speak_share: float
    interrupt_every: int


class Machine(BaseModel):
    """Where the viewers were. `viewer_cores` is how many cores the load generator itself kept busy, `load` the system's."""

    processor: str
    cores: int
    system: str
    viewer_cores: float
    load: float


class SessionCounts(BaseModel):
    """How many were wanted, had started, and failed: did not start, showed nothing, or were lost."""

    wanted: int
    started: int
    failed: int


class Losses(BaseModel):
    """What did not arrive. `marks` are recognisable moments of the speech; `frames_missing` counts frames that the frame rate
    promised; the last four are WebRTC's own counts at the viewers."""

    marks_said: int = 0
    marks_heard: int = 0
    marks_shown: int | None = None
    frames: int = 0
    frames_missing: int = 0
    packets: int = 0
    packets_lost: int = 0
    freezes: int = 0
    concealed_s: float = 0.0


class Happened(BaseModel):
    """Counts of events. `utterances` were begun, `finished` ones were reported over; at most one a session is under way at the
    end."""

    utterances: int
    finished: int
    interrupts: int
    moves: int
    audio_reconnects: int
    viewer_reconnects: int


class Point(BaseModel):
    """One window of the run, `at_s` into it: running sessions, the lowest and the mean frame rate, the largest gap, new errors."""

    at_s: float
    sessions: int
    fps_low: float | None
    fps_mean: float | None
    gap_ms: float
    errors: int


class SessionReport(BaseModel):
    """One session; `error` is the code of what ended it early."""

    session_id: str | None
    engine: str | None
    start_s: float | None
    first_picture_s: float | None
    frames: int
    moves: int
    error: str | None
    detail: str | None


class LoadReport(BaseModel):
    """`held`: every bar held. `cut_short`: ended by Ctrl-C or SIGTERM."""

    report: str = "musetalk-loadtest"
    version: int = 1
    begun_at: str
    seconds: float
    cut_short: bool
    held: bool
    bars: list[ThresholdResult]
    plan: ReportedPlan
    machine: Machine
    sessions: SessionCounts
    figures: dict[str, Figure]
    losses: Losses
    happened: Happened
    errors: dict[str, int]
    warnings: dict[str, int]
    services: ServiceMetrics
    timeline: list[Point]
    each: list[SessionReport]


def reported_plan(plan: Plan) -> ReportedPlan:
    """The plan without its secrets, of which it has none."""
    return ReportedPlan(
        url=plan.url,
        run_id=plan.run_id,
        sessions=plan.sessions,
        seconds=round(plan.seconds, 3),
        ramp_s=plan.ramp_s,
        engine=plan.engine,
        speech=plan.speech,
        speak_share=plan.speak_share,
        interrupt_every=plan.interrupt_every,
    )


def machine(cpu_s: float, seconds: float) -> Machine:
    """This one; `cpu_s` is what the load generator used of it in `seconds`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [each.partition(":")[2].strip() for each in lines if each.startswith("model name")]
    return Machine(
        processor=names[0] if names else platform.processor(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        viewer_cores=round(cpu_s / max(seconds, 1e-3), 2),
        load=round(os.getloadavg()[0], 1),
    )


def figures(tallies: Tallies) -> dict[str, Figure]:
    """Those that have values."""
    found = {name: tally.figure() for name, tally in vars(tallies).items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def losses(sessions: Sequence[LoadSession]) -> Losses:
    """Of all of them."""
    lost = Losses(marks_shown=0 if any(each.sight.pattern for each in sessions) else None)
    for each in sessions:
        lost.marks_said += each.sight.said
        lost.marks_heard += each.sight.heard
        if lost.marks_shown is not None:
            lost.marks_shown += each.sight.shown
        lost.frames += each.sight.frames
        lost.frames_missing += each.sight.missing(each.fps)
        lost.packets += each.left.packets_received
        lost.packets_lost += each.left.packets_lost
        lost.freezes += each.left.freezes
        lost.concealed_s = round(lost.concealed_s + each.left.concealed_s, 3)
    return lost


def happened(counts: Counts) -> Happened:
    """Counts of events."""
    return Happened(
        utterances=counts.utterances,
        finished=counts.finished,
        interrupts=counts.interrupts,
        moves=counts.moves,
        audio_reconnects=counts.audio_reconnects,
        viewer_reconnects=counts.viewer_reconnects,
    )


def report_of(session: LoadSession) -> SessionReport:
    """One row."""
    return SessionReport(
        session_id=session.session_id,
        engine=session.engine,
        start_s=_rounded(session.start_s),
        first_picture_s=_rounded(session.first_picture_s),
        frames=session.sight.frames,
        moves=session.moves,
        error=session.error,
        detail=session.detail,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
