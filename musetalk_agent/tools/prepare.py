"""`musetalk-agent prepare CLIP`: prepares an avatar offline and prints the quality report that a session's start returns."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from pydantic import ValidationError
from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import AgentError, AvatarNotFound
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AvatarReport, AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore

_BLOCK_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", help=f"zip of pictures, video or picture; an avatar_id or {DEMO_AVATAR_ID!r} works too")
    parser.add_argument("--fps", type=int, default=25, help="frames per second, 15 … 60 (default: 25)")
    parser.add_argument("--width", type=int, default=None, help="width of the picture (default: the clip's)")
    parser.add_argument("--height", type=int, default=None, help="height of the picture (default: the clip's)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 prepared, 1 refused (code and sentence on stderr), 2 wrong usage."""
    try:
        picture = Picture(fps=args.fps, width=args.width, height=args.height)
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"prepare: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    library = AvatarLibrary(
        settings.cache_dir, ModelStore(settings.models_dir, Manifest.load()), cache_bytes=settings.cache_bytes
    )
    try:
        report = asyncio.run(prepare_clip(library, args.clip, picture))
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    finally:
        library.close()
    print(json.dumps(report.model_dump(), indent=1) if args.json else _table(report))
    return 0


async def prepare_clip(library: AvatarLibrary, clip: str, picture: Picture) -> AvatarReport:
    """Prepares a file (or a known avatar_id) with a progress bar on stderr; returns its report. Raises AvatarErrors."""
    avatar_id = clip
    if clip != DEMO_AVATAR_ID and not clip.startswith("sha256:"):
        try:
            data = await asyncio.to_thread(Path(clip).read_bytes)
        except OSError as error:
            raise AvatarNotFound(f"{clip} cannot be read: {error.strerror}.", value=clip[:128]) from error
        avatar_id = await library.add(data, Path(clip).name)
    with tqdm(unit=" frames", desc="prepare", file=sys.stderr, leave=False) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage, refresh=False)
            bar.total = total or None
            bar.n = done
            bar.update(0)

        bundle = await library.prepare(AvatarSource(avatar_id=avatar_id), picture, progress=progress)
    return bundle.report


def _table(report: AvatarReport) -> str:
    missing = len(report.frames_without_face)
    rows = [
        ("avatar_id", report.avatar_id),
        ("picture", f"{report.width}×{report.height} at {report.fps} fps"),
        (
            "frames",
            "one picture" if report.still else f"{report.frames} ({report.frames / report.fps:.1f} s)",
        ),
        ("face", f"{report.face_px} px wide" + (f", not seen in {missing} frames" if missing else "")),
        ("motion", f"{report.motion_px:.2f} px per frame"),
        ("lips closed", f"in {report.closed_mouth_frames} frames"),
        ("cached", "yes" if report.cached else "no"),
    ]
    lines = [f"{name:12} {value}" for name, value in rows]
    lines += [f"! {warning.code}: {warning.message}" for warning in report.warnings]
    return "\n".join(lines)
