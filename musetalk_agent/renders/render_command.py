"""`musetalk-agent render`: one film from options, or a list of them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.renders.job_list import JobsWrong, run_jobs
from musetalk_agent.tools import render_film
from musetalk_agent.tools.audio_file import AudioUnreadable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "jobs", nargs="?", type=Path, metavar="JOBS.yaml", help="a list of films; it goes on where it was"
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes for a list (default: one a core, at most 8)"
    )
    render_film.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 refused or failed (a sentence on stderr), 2 wrong usage, 130 interrupted."""
    if args.jobs is None:
        return render_film.run(args)
    if args.avatar or args.audio or args.output:
        print("render: give either a list or --avatar, --audio and -o.", file=sys.stderr)
        return 2
    try:
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"render: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    try:
        return run_jobs(args.jobs, settings, max(1, args.workers or min(8, os.cpu_count() or 1)))
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
    except (JobsWrong, AudioUnreadable) as error:
        print(f"render: {error}", file=sys.stderr)
    except OSError as error:
        print(f"render: {error.filename or args.jobs}: {error.strerror}.", file=sys.stderr)
    return 1
