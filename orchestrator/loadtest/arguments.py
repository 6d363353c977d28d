"""Options of `musetalk-orchestrator loadtest`; imports nothing heavy, for every command makes the whole parser."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.loadtest.bars import FAILED, KINDS

_EPILOG = """exit code: 0 all bars held, 1 one did not, 2 wrong use or nothing could be started, 130 ended by Ctrl-C or SIGTERM.
What is measured, and how: docs/topics/loadtest.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `loadtest`."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--sessions", type=int, required=True, metavar="N", help="sessions at once, each with a viewer")
    add("--minutes", type=float, required=True, metavar="M", help="how long they run, after the ramp")
    add("--url", default="http://127.0.0.1:8080", help="the orchestrator (default: %(default)s)")
    add("--api-key", metavar="KEY", help="a key of it (default: the first of ORCHESTRATOR_API_KEY)")
    add(
        "--engine", help="engine of the sessions; with pattern picture and skew are measured too (default: the agent's)"
    )
    add("--avatar-id", metavar="ID", help="avatar of the sessions (default: demo)")
    add("--speech", type=Path, metavar="FILE.wav", help="what they say, 16-bit PCM (default: test tones)")
    add(
        "--speak-share", type=float, default=0.5, metavar="X", help="part of the time they speak (default: %(default)s)"
    )
    add(
        "--interrupt-every",
        type=int,
        default=3,
        metavar="N",
        help="interrupt each N-th utterance, 0: none (default: %(default)s)",
    )
    add("--ramp", type=float, default=0.0, metavar="S", help="seconds over which they start (default: all at once)")
    add("--json", metavar="FILE", help="write the report there, - for standard output")
    add("--picture", type=Path, metavar="FILE", help="draw it: .svg or .png")
    add("--yes", action="store_true", help="go on although it is more than this machine's cores bear")
    bars = parser.add_argument_group("bars")
    bars.add_argument(f"--{FAILED}", type=int, default=0, metavar="N", help="sessions that may fail (default: 0)")
    for kind in KINDS:
        bars.add_argument(f"--{kind.option}", type=float, metavar=kind.unit.upper().replace("1/S", "FPS"))
