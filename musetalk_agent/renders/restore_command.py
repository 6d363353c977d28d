"""`musetalk-agent restore`: restores the faces of a clip before it is prepared, or of a film that was made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.face_restorer import FaceRestorer
from musetalk_agent.errors import AgentError
from musetalk_agent.measure.lip_measures import VideoUnreadable
from musetalk_agent.renders.restored_film import FILMS, PICTURES, FrameRestorer, restore_film, restore_picture
from musetalk_agent.weights import Manifest, ModelStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="CLIP", help="a picture or a video with faces")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help=f"{', '.join(FILMS)}, or of a picture .png, .jpg",
    )
    parser.add_argument(
        "--strength", type=float, default=0.8, help="how much of the restored faces is taken, 0 … 1 (default: 0.8)"
    )

    parser.add_argument(
        "--network",
        type=Path,
        default=None,
        metavar="FILE",
        help="another ONNX file that takes and gives an aligned face of 3×512×512 (default: GFPGAN's of MODELS_DIR)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 refused (code and sentence on stderr), 2 wrong usage, 130 interrupted. No part of a
    file is left."""
    still = args.source.suffix.lower() in PICTURES
    if wrong := _wrong(args, still):
        print(f"restore: {wrong}", file=sys.stderr)
        return 2
    try:
        store = ModelStore(offline_settings().models_dir, Manifest.load())
        restorer = FaceRestorer(store, args.network)
        frames = FrameRestorer(FaceNet(store), restorer, args.strength)
        if still:
            restore_picture(args.source, args.output, frames)
        else:
            with tqdm(unit=" frames", desc="restore", file=sys.stderr, leave=False) as bar:
                restore_film(args.source, args.output, frames, bar.update)
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except (VideoUnreadable, OSError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("restore: interrupted; nothing was written.", file=sys.stderr)
        return 130
    done = frames.done
    where = "a card" if restorer.on_card else "the processor"
    print(f"{args.output}: faces restored in {done.restored} of {done.frames} frames, on {where}")
    if done.large:
        print(
            f"! {done.large} faces were left as they are: they have more pixels than the network makes", file=sys.stderr
        )
    return 0


def _wrong(args: argparse.Namespace, still: bool) -> str | None:
    """Why it cannot be begun; None when it can."""
    kinds = PICTURES if still else FILMS
    if args.output.suffix.lower() not in kinds:
        return f"{args.output} does not end in one of {', '.join(kinds)}."
    if not 0 <= args.strength <= 1:
        return f"--strength {args.strength}: give 0 … 1."
    if not args.source.is_file():
        return f"{args.source} is no file."
    if args.output.exists() and args.output.samefile(args.source):
        return f"{args.output} would be written over its own source."
    return None
