"""`musetalk-agent profile`: where the time of a frame goes, stage by stage, on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import VirtualClock
from musetalk_agent.engines.base import Engine, PatchRequest
from musetalk_agent.errors import AgentError
from musetalk_agent.factory import Factory
from musetalk_agent.media import Patch
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AvatarSource, Picture
from musetalk_agent.settings import AgentSettings
from musetalk_agent.tools.chart import Bar, bars
from musetalk_agent.tools.offline import offline_settings
from musetalk_agent.tools.prepare import prepare_clip
from musetalk_agent.tools.stages import Stage, host_stages

_ENGINES = ("warp", "musetalk")
_FACE_SIDE = 256


@dataclass(frozen=True)
class StageFigures:
    """One row. `share` is of all stages' means; the last three only where operations were counted: GFLOP per frame, GFLOP per
    second, and that as a part of what a large matrix product reaches on the same device."""

    stage: str
    mean_ms: float
    p95_ms: float
    share: float
    gflop: float | None = None
    gflop_per_s: float | None = None
    of_peak: float | None = None


@dataclass(frozen=True)
class Profile:
    """A profile: milliseconds are per frame. `in_service_ms` is of the whole network as the engine measured it when it started, by
    batch size; its parts, timed one by one, add up to a little more."""

    engine: str
    device: str
    frames: int
    batch: int
    width: int
    height: int
    face_px: int
    stages: list[StageFigures]
    frame_ms: float
    peak_gflop_per_s: float | None = None
    in_service_ms: dict[int, float] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--engine", choices=_ENGINES, default="warp", help="whose frames (default: warp)")
    parser.add_argument("--frames", type=int, default=100, metavar="N", help="how many (default: 100)")
    parser.add_argument(
        "--batch", type=int, default=None, metavar="N", help="frames at once on the device (default: the most it takes)"
    )
    parser.add_argument("--avatar", default=DEMO_AVATAR_ID, metavar="CLIP", help="default: demo")
    parser.add_argument("--width", type=int, default=None, help="width of the picture (default: the clip's)")
    parser.add_argument("--height", type=int, default=None, help="height of the picture (default: the clip's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--picture", type=Path, default=None, metavar="FILE.png", help="draw a chart into this file")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 measured, 1 the engine or the avatar cannot be used (a sentence on stderr), 2 wrong usage."""
    try:
        settings = offline_settings().model_copy(update={"engine": args.engine})
        picture = Picture(width=args.width, height=args.height)
    except ValidationError as error:
        for problem in error.errors():
            print(f"profile: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    if args.frames < 1 or (args.batch is not None and args.batch < 1):
        print("profile: --frames and --batch are 1 or more.", file=sys.stderr)
        return 2
    try:
        profile = asyncio.run(_profile(settings, args.avatar, picture, args.frames, args.batch))
        if args.picture is not None:
            _draw(profile, args.picture)
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"profile: {error.filename or args.picture} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(asdict(profile), indent=1) if args.json else _table(profile))
    return 0


async def _profile(settings: AgentSettings, clip: str, picture: Picture, frames: int, batch: int | None) -> Profile:
    factory = Factory(settings, VirtualClock())
    try:
        await factory.start()
        engine = factory.engines.batcher(settings.engine).engine
        report = await prepare_clip(factory.library, clip, picture)
        source = AvatarSource(avatar_id=report.avatar_id)
        bundle = await factory.library.prepare(source, picture, derive=engine.prepare)
        batch = min(batch or engine.batch_sizes[-1], engine.batch_sizes[-1])
        measure = _musetalk if settings.engine == "musetalk" else _host
        # the engine's own thread has nothing to do meanwhile
        return await asyncio.to_thread(measure, engine, bundle, frames, batch)
    finally:
        await factory.aclose()


def _host(engine: Engine, bundle: Bundle, frames: int, batch: int) -> Profile:
    """An engine that computes on the processor: its part is one stage."""

    def make(request: PatchRequest) -> Patch | None:
        flight = engine.launch([request])
        flight.wait()
        return flight.patches()[0]

    return _figures(engine, bundle, frames, 1, host_stages(engine, bundle, frames, make, "engine"))


def _musetalk(engine: Engine, bundle: Bundle, frames: int, batch: int) -> Profile:
    """MuseTalk: the network's parts on their device, and around them what the processor does."""
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.tools.card_stages import card_stages

    assert isinstance(engine, MuseTalkEngine)
    with tqdm(total=frames, unit=" frames", desc="profile", file=sys.stderr, leave=False) as bar:
        card = card_stages(engine, frames, batch, lambda done: bar.update(done - bar.n))
    rows = np.full((engine.profile.rows, _FACE_SIDE, 3), 127, np.uint8)
    hosted = host_stages(engine, bundle, frames, lambda request: engine.patch(request, rows, good=True), "patch")
    stages = [hosted[0], *card.stages, *hosted[1:]]
    in_service = {size: round(1000 * seconds / size, 3) for size, seconds in engine.pace.seconds.items()}
    return _figures(engine, bundle, frames, batch, stages, card.peak, in_service)


def _figures(
    engine: Engine,
    bundle: Bundle,
    frames: int,
    batch: int,
    stages: list[Stage],
    peak: float | None = None,
    in_service_ms: dict[int, float] | None = None,
) -> Profile:
    total = sum(stage.mean_ms for stage in stages)

    def row(stage: Stage) -> StageFigures:
        mean, p95 = round(stage.mean_ms, 4), round(stage.p95_ms, 4)
        share = round(stage.mean_ms / total, 4)
        if stage.flop is None or peak is None:
            return StageFigures(stage.name, mean, p95, share)
        speed = stage.flop / (stage.mean_ms / 1000)
        return StageFigures(
            stage.name, mean, p95, share, round(stage.flop / 1e9, 2), round(speed / 1e9, 1), round(speed / peak, 4)
        )

    return Profile(
        engine.name,
        engine.device,
        frames,
        batch,
        bundle.width,
        bundle.height,
        bundle.report.face_px,
        [row(stage) for stage in stages],
        round(total, 3),
        None if peak is None else round(peak / 1e9, 1),
        in_service_ms,
    )


def _table(profile: Profile) -> str:
    lines = [_title(profile), f"{'stage':12} {'mean':>9} {'p95':>9} {'share':>6}"]
    if profile.peak_gflop_per_s is not None:
        lines[-1] += f" {'GFLOP':>8} {'GFLOP/s':>10} {'of peak':>8}"
    for stage in profile.stages:
        line = f"{stage.stage:12} {stage.mean_ms:6.2f} ms {stage.p95_ms:6.2f} ms {stage.share:6.1%}"
        if stage.gflop is not None:
            line += f" {stage.gflop:8.1f} {stage.gflop_per_s:10.1f} {stage.of_peak:8.1%}"
        lines.append(line)
    lines.append(f"{'all':12} {profile.frame_ms:6.2f} ms, {1000 / profile.frame_ms:.1f} frames/s one after the other")
    if profile.peak_gflop_per_s is not None:
        lines.append(f"peak of {profile.device}, a large matrix product: {profile.peak_gflop_per_s:.1f} GFLOP/s")
    for size, milliseconds in (profile.in_service_ms or {}).items():
        lines.append(f"network in service, batch of {size}: {milliseconds:.2f} ms a frame")
    return "\n".join(lines)


def _title(profile: Profile) -> str:
    return (
        f"{profile.engine} on {profile.device}, picture {profile.width}x{profile.height}, face {profile.face_px} px, "
        f"{profile.frames} frames, batches of {profile.batch}"
    )


def _draw(profile: Profile, target: Path) -> None:
    """Raises OSError."""
    rows = []
    for stage in profile.stages:
        note = f"{stage.mean_ms:.2f} ms  p95 {stage.p95_ms:.2f}  {stage.share:.1%}"
        if stage.of_peak is not None and stage.gflop_per_s is not None:
            note += f"  {stage.gflop_per_s:.0f} GFLOP/s = {stage.of_peak:.0%} of peak"
        rows.append(Bar(stage.stage, stage.mean_ms, stage.p95_ms, note))
    target.write_bytes(cv2.imencode(".png", bars(_title(profile), rows))[1].tobytes())
