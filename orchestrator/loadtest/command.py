"""`musetalk-orchestrator loadtest`: progress, files, exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from tqdm import tqdm

from orchestrator.loadtest.chart import NAMES, SUFFIXES, draw
from orchestrator.loadtest.deployment import CallError, Deployment
from orchestrator.loadtest.plan import Plan, PlanError, check
from orchestrator.loadtest.report import LoadReport
from orchestrator.loadtest.run import LoadRun
from orchestrator.loadtest.speech_source import SpeechError, SpeechSource, recording, tones
from orchestrator.loadtest.thresholds import FAILED, THRESHOLDS

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
