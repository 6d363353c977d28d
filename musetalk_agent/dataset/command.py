"""`musetalk-agent dataset FOLDER`: training data for MuseTalk's own trainer, of a folder of films."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.dataset.dataset_maker import DatasetMaker, DatasetSettings, films_of
from musetalk_agent.errors import AgentError
from musetalk_agent.weights import Manifest, ModelStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="films of people who speak, with their sound")
    parser.add_argument("-o", "--output", type=Path, default=Path("dataset"), metavar="OUT", help="default: dataset")
    parser.add_argument("--validation", type=float, default=0.1, metavar="SHARE", help="of the films (default: 0.1)")
    parser.add_argument("--clip-seconds", type=int, default=30, metavar="S", help="longest clip, 1 … 30 (default: 30)")
    parser.add_argument("--least-face", type=int, default=150, metavar="PX", help="narrowest face (default: 150)")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 nothing usable, 2 wrong usage or a folder that cannot be used, 130 interrupted (run it again)."""
    if (wrong := _wrong(args)) is not None:
        print(f"dataset: {wrong}", file=sys.stderr)
        return 2
    try:
        films = [film for film in films_of(args.folder) if args.output.resolve() not in film.resolve().parents]
        net = FaceNet(ModelStore(offline_settings().models_dir, Manifest.load()))
        settings = DatasetSettings(args.clip_seconds, args.validation, args.least_face)
        with tqdm(unit=" frames", desc="dataset", file=sys.stderr, leave=False) as bar:
            records = DatasetMaker(args.output, net, settings).make(films, bar.update)
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dataset: {error.filename or args.output} cannot be used: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dataset: interrupted; run the command again to go on.", file=sys.stderr)
        return 130
    for record in records:
        if record.broken is not None:
            print(f"! {record.name} is broken: {record.broken}", file=sys.stderr)
        for clip, reason in record.left_out.items():
            print(f"! {clip} is left out: {reason}.", file=sys.stderr)
    clips, broken = sum(len(record.clips) for record in records), sum(record.broken is not None for record in records)
    left = sum(len(record.left_out) for record in records)
    print(f"{args.output}: {clips} clips of {len(records)} films; {left} clips left out, {broken} films broken")
    return 0 if clips else 1


def _wrong(args: argparse.Namespace) -> str | None:
    if not 0 <= args.validation <= 1:
        return f"--validation {args.validation:g} is not within 0 … 1."
    if not 1 <= args.clip_seconds <= 30:
        return f"--clip-seconds {args.clip_seconds} is not within 1 … 30, which the trainer's audio window holds."
    if args.least_face < 1:
        return f"--least-face {args.least_face} is not 1 or more."
    return None
