"""`musetalk-agent judge FILM`: measures a film of talking faces and says whether it passes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_report import FilmReport
from musetalk_agent.judge.sheet import draw_sheet
from musetalk_agent.measure.lip_measures import VideoUnreadable
from musetalk_agent.niceness import be_nice
from musetalk_agent.tools.audio_file import AudioUnreadable
from musetalk_agent.weights import Manifest, ModelStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("film", type=Path, metavar="FILM", help="the film to judge, with its sound")
    parser.add_argument(
        "--reference", type=Path, default=None, metavar="CLIP", help="the video or picture that it was made of"
    )
    parser.add_argument("--audio", type=Path, default=None, metavar="WAV", help="its sound (default: the film's own)")
    parser.add_argument("--text", default=None, metavar="TEXT", help="what is said: the lips must close at p, b and m")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--background", action="store_true", help="run at the lowest CPU priority")
    parser.add_argument("--sheet", type=Path, default=None, metavar="PNG", help="draw the worst frames")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 passed, 1 failed, 2 a file or the models cannot be used (a sentence says why), 130 interrupted."""
    if args.background:
        be_nice()
    try:
        report = _judged(args)
        if args.sheet is not None:
            draw_sheet(report, args.film, args.sheet)
    except (VideoUnreadable, AudioUnreadable) as error:
        print(f"judge: {error}", file=sys.stderr)
        return 2
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"judge: {args.sheet} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report.as_json() if args.json else report.as_text())
    return 0 if report.passed else 1


def _judged(args: argparse.Namespace) -> FilmReport:
    judge = Judge.load(ModelStore(offline_settings().models_dir, Manifest.load()))
    with tqdm(unit=" frames", desc="judge", file=sys.stderr, leave=False) as bar:
        return judge.judge(args.film, reference=args.reference, audio=args.audio, text=args.text, progress=bar.update)
