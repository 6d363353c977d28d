"""`musetalk-orchestrator loadtest`: runs a load plan, prints progress, writes files, and sets the exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from musetalk_tools.loadtest import deployment
from musetalk_tools.loadtest import report as reports
from musetalk_tools.loadtest.chart import NAMES, SUFFIXES, draw
from musetalk_tools.loadtest.deployment import CallError, Deployment, ServiceMetrics
from musetalk_tools.loadtest.load_session import LoadSession, Shared
from musetalk_tools.loadtest.plan import Plan, PlanError, check
from musetalk_tools.loadtest.report import LoadReport, Point
from musetalk_tools.loadtest.speech_source import SpeechError, SpeechSource, recording, tones
from musetalk_tools.loadtest.thresholds import FAILED, THRESHOLDS, judge
from musetalk_tools.loadtest.viewer_pool import ViewerPool

_BEAT_S = 0.25
_SWEEPS = 4
_SWEEP_S = 1.0


class LoadRun:
    """One run. `stop()` ends it early; the report then says `cut_short`.

    Args:
        plan: what to do.
        speech: what sessions say.
        bars: by option, see `bars`.
        on_beat: called four times a second with the seconds gone, the sessions running and the errors so far.
    """

    def __init__(
        self,
        plan: Plan,
        speech: SpeechSource,
        deployment: Deployment,
        bars: Mapping[str, float],
        on_beat: Callable[[float, int, int], None],
    ) -> None:
        self._plan, self._bars, self._on_beat = plan, bars, on_beat
        self._deployment = deployment
        self._shared = Shared(plan, speech, deployment, ViewerPool(), asyncio.Event())
        self._sessions = [LoadSession(self._shared, index) for index in range(plan.sessions)]
        self._timeline: list[Point] = []
        self._errors_before = 0

    def stop(self) -> None:
        """Ends the run: every session is stopped, what was measured is reported."""
        self._shared.stop.set()

    async def run(self) -> LoadReport:
        """Runs it. Raises CallError when the deployment cannot be spoken to, or the key is refused, before anything was started.

        Cancelling stops the sessions too.
        """
        await self._deployment.running(self._plan.rooms)
        before = await deployment.counters(self._deployment)
        begun_at, begun, cpu = datetime.now(UTC), time.monotonic(), _cpu_s()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._hold(begun, tasks)
            cut_short = self._shared.stop.is_set()
            seconds = time.monotonic() - begun
            seen = await deployment.agents(self._deployment, {each.session_id or "" for each in self._sessions})
        finally:
            self.stop()
            await asyncio.shield(asyncio.ensure_future(self._clean(tasks)))
        deployment.risen(seen, before, await deployment.counters(self._deployment))
        return self._report(begun_at, seconds, seen, cut_short, _cpu_s() - cpu)

    async def _hold(self, begun: float, tasks: list[asyncio.Task[None]]) -> None:
        """Starts sessions when their turn comes, and looks at them, until the time is over."""
        plan, stop = self._plan, self._shared.stop
        window_ends = begun + plan.window_s
        while (gone := time.monotonic() - begun) < plan.seconds and not stop.is_set():
            while len(tasks) < plan.sessions and plan.begins_at(len(tasks)) <= gone:
                tasks.append(asyncio.create_task(self._sessions[len(tasks)].run()))
            if len(tasks) == plan.sessions and all(task.done() for task in tasks):
                return  # nothing is left to look at
            for session in self._sessions:
                session.settle(begun + gone)
            if begun + gone >= window_ends:
                self._point(gone)
                window_ends += plan.window_s
            running = sum(session.active for session in self._sessions)
            self._on_beat(gone, running, self._shared.counts.errors.total())
            try:
                async with asyncio.timeout(_BEAT_S):
                    await stop.wait()
            except TimeoutError:
                continue

    def _point(self, gone: float) -> None:
        active = [(session, session.sight.window()) for session in self._sessions if session.active]
        rates = [window.fps for _, window in active if window.fps is not None]
        for rate in rates:
            self._shared.tallies.fps.add(rate)
        errors = self._shared.counts.errors.total()
        self._timeline.append(
            Point(
                at_s=round(gone, 1),
                sessions=len(active),
                fps_low=round(min(rates), 2) if rates else None,
                fps_mean=round(sum(rates) / len(rates), 2) if rates else None,
                gap_ms=round(max((window.gap_ms for _, window in active), default=0.0), 1),
                errors=errors - self._errors_before,
            )
        )
        self._errors_before = errors

    async def _clean(self, tasks: list[asyncio.Task[None]]) -> None:
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await self._shared.crowd.aclose()
        await self._sweep()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _sweep(self) -> None:
        """Stops what still runs in this run's rooms: a start whose answer was not waited for."""
        unknown = any(session.session_id is None for session in self._sessions)
        for sweep in range(_SWEEPS):
            try:
                left = await self._deployment.running(self._plan.rooms)
                for each in left:
                    await self._deployment.stop(each["session_id"])
            except CallError as error:
                self._shared.counts.errors[error.code] += 1
            else:
                if not left and (sweep or not unknown):
                    return
            await asyncio.sleep(_SWEEP_S)

    def _report(
        self, begun_at: datetime, seconds: float, seen: ServiceMetrics, cut_short: bool, cpu_s: float
    ) -> LoadReport:
        shared, sessions = self._shared, self._sessions
        figures = reports.figures(shared.tallies)
        failed = sum(session.error is not None for session in sessions)
        verdicts = judge(self._bars, figures, failed)
        return LoadReport(
            begun_at=begun_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            seconds=round(seconds, 1),
            cut_short=cut_short,
            held=all(each.held for each in verdicts),
            bars=verdicts,
            plan=reports.reported_plan(self._plan),
            machine=reports.machine(cpu_s, seconds),
            sessions=reports.SessionCounts(
                wanted=self._plan.sessions,
                started=sum(session.session_id is not None for session in sessions),
                failed=failed,
            ),
            figures=figures,
            losses=reports.losses(sessions),
            happened=reports.happened(shared.counts),
            errors=dict(shared.counts.errors.most_common()),
            warnings=dict(shared.counts.warnings.most_common()),
            services=seen,
            timeline=self._timeline,
            each=[reports.report_of(session) for session in sessions],
        )


def _cpu_s() -> float:
    """Of this process and of those of its viewers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


HELD, NOT_HELD, WRONG_USE, CUT_SHORT = 0, 1, 2, 130


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    try:
        key = args.api_key or os.environ.get("ORCHESTRATOR_API_KEY", "").split(",")[0].strip()
        if not key:
            raise PlanError("give a key with --api-key, or set ORCHESTRATOR_API_KEY.")
        if args.picture is not None and args.picture.suffix not in SUFFIXES:
            raise PlanError(f"--picture {args.picture}: give a name that ends in {' or '.join(SUFFIXES)}.")
        plan = _plan(args)
        check(plan, anyway=args.yes)
        speech = recording(args.speech) if args.speech else tones()
        _writable(args)
    except (PlanError, SpeechError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return WRONG_USE
    print(f"loadtest: {plan.sentence()}", file=sys.stderr)
    try:
        report = asyncio.run(_run(plan, speech, key, _bars(args)))
    except CallError as error:
        print(f"loadtest: {error.code}: {error}", file=sys.stderr)
        return WRONG_USE
    _write(report, args)
    return CUT_SHORT if report.cut_short else HELD if report.held else NOT_HELD


def summary(report: LoadReport) -> str:
    """The report in a few lines."""
    sessions, lost = report.sessions, report.losses
    lines = [
        f"{sessions.started} of {sessions.wanted} sessions started, {sessions.failed} failed, {report.seconds:g} s"
    ]
    for name, title in {"fps": "frame rate", **NAMES}.items():
        figure = report.figures.get(name)
        if figure is not None:
            spread = f"p5 {figure.p5:g}  p50 {figure.p50:g}  p95 {figure.p95:g}  max {figure.max:g} {figure.unit}"
            lines.append(f"  {title:22} {spread}  ({figure.count})")
    shown = "" if lost.marks_shown is None else f", {lost.marks_shown} seen"
    lines.append(f"  of {lost.marks_said} marks of speech {lost.marks_heard} heard{shown}")
    lines.append(f"  {lost.frames_missing} pictures missing, {lost.packets_lost} of {lost.packets} packets lost")
    lines += [f"  {many} × {code}" for code, many in report.errors.items()]
    for bar in report.bars:
        value = "nothing measured" if bar.value is None else f"{bar.value:g} {bar.unit}".rstrip()
        lines.append(f"  {'held    ' if bar.held else 'NOT HELD'} --{bar.option} {bar.bar:g}: {value}")
    return "\n".join(lines)


async def _run(plan: Plan, speech: SpeechSource, key: str, bars: dict[str, float]) -> LoadReport:
    deployment = Deployment(plan.url, key)
    every_s = 0.5 if sys.stderr.isatty() else 10.0  # a log gets few lines
    shape = "{l_bar}{bar}| {n:.0f}/{total} s{postfix}"
    with tqdm(total=round(plan.seconds), bar_format=shape, mininterval=every_s) as progress:

        def beat(gone: float, running: int, errors: int) -> None:
            progress.set_postfix_str(f"{running} running, {errors} errors", refresh=False)
            progress.update(min(gone, plan.seconds) - (progress.n or 0))

        run = LoadRun(plan, speech, deployment, bars, beat)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, run.stop)
        try:
            return await run.run()
        finally:
            await deployment.aclose()


def _plan(args: argparse.Namespace) -> Plan:
    return Plan(
        url=args.url.rstrip("/"),
        sessions=args.sessions,
        minutes=args.minutes,
        engine=args.engine,
        avatar_id=args.avatar_id,
        speak_share=args.speak_share,
        interrupt_every=args.interrupt_every,
        ramp_s=args.ramp,
        speech=args.speech.name if args.speech else "tones",
    )


def _bars(args: argparse.Namespace) -> dict[str, float]:
    named = {
        option: getattr(args, option.replace("-", "_")) for option in (FAILED, *(kind.option for kind in THRESHOLDS))
    }
    return {option: value for option, value in named.items() if value is not None}


def _writable(args: argparse.Namespace) -> None:
    """Better now than after an hour."""
    for path in (args.picture, Path(args.json) if args.json and args.json != "-" else None):
        if path is not None and not os.access(path.parent, os.W_OK):
            raise PlanError(f"{path}: there is no folder {path.parent} to write into.")


def _write(report: LoadReport, args: argparse.Namespace) -> None:
    text = report.model_dump_json(indent=1)
    if args.json == "-":
        print(text)
    else:
        print(summary(report))
    try:
        if args.json and args.json != "-":
            Path(args.json).write_text(text + "\n")
        if args.picture is not None:
            draw(report, args.picture)
    except OSError as error:
        print(f"loadtest: {error.filename}: {error.strerror}", file=sys.stderr)
