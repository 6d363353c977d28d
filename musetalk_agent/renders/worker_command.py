"""`musetalk-agent render-worker`: makes the renders of a queue; the agent starts such processes itself where RENDERS_DIR is set."""

from __future__ import annotations

import argparse
import asyncio
import sys

from pydantic import ValidationError

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.niceness import be_nice
from musetalk_agent.protocol.logs import configure
from musetalk_agent.renders.worker import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--stay", action="store_true", help="wait for renders, however long there are none")
    parser.add_argument(
        "--supervised", action="store_true", help="standard input says `wait` and `work`, and its end ends it"
    )
    parser.add_argument("--name", default=None, help="what the queue knows it by (default: made of host and process)")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 stopped, or idle for a minute; 1 no engine can run, or no folder; 2 wrong settings."""
    try:
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"render-worker: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    if settings.renders_dir is None:
        print("render-worker: RENDERS_DIR is not set: name the folder of renders.", file=sys.stderr)
        return 2
    configure(settings.log_level)
    be_nice()
    try:
        asyncio.run(serve(settings, stay=args.stay, supervised=args.supervised, name=args.name))
    except AgentError as error:
        print(f"render-worker: {error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"render-worker: {settings.renders_dir} cannot be used: {error.strerror}.", file=sys.stderr)
        return 1
    return 0
