"""`musetalk-agent profile`: where the time of a frame goes, stage by stage, on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import VirtualClock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.idle import PingPongLoop
from musetalk_agent.engines.interface import Engine, PatchRequest
from musetalk_agent.errors import AgentError
from musetalk_agent.factory import Factory
from musetalk_agent.media_types import FEATURE_RATE, Feature, Patch, Pcm, Pixels, frame_start
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AvatarSource, Picture
from musetalk_agent.tools.prepare import prepare_clip

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
class EngineProfile:
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


async def _profile(
    settings: AgentSettings, clip: str, picture: Picture, frames: int, batch: int | None
) -> EngineProfile:
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


def _host(engine: Engine, bundle: Bundle, frames: int, batch: int) -> EngineProfile:
    """An engine that computes on the processor: its part is one stage."""

    def make(request: PatchRequest) -> Patch | None:
        flight = engine.launch([request])
        flight.wait()
        return flight.patches()[0]

    return _figures(engine, bundle, frames, 1, host_stages(engine, bundle, frames, make, "engine"))


def _musetalk(engine: Engine, bundle: Bundle, frames: int, batch: int) -> EngineProfile:
    """MuseTalk: the network's parts on their device, and around them what the processor does."""
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.measure.network_stages import network_stages

    assert isinstance(engine, MuseTalkEngine)
    with tqdm(total=frames, unit=" frames", desc="profile", file=sys.stderr, leave=False) as bar:
        network = network_stages(engine, frames, batch, lambda done: bar.update(done - bar.n))
    rows = np.full((engine.profile.rows, _FACE_SIDE, 3), 127, np.uint8)
    hosted = host_stages(engine, bundle, frames, lambda request: engine.patch(request, rows, good=True), "patch")
    stages = [hosted[0], *network.stages, *hosted[1:]]
    in_service = {size: round(1000 * seconds / size, 3) for size, seconds in engine.pace.seconds.items()}
    return _figures(engine, bundle, frames, batch, stages, network.peak, in_service)


def _figures(
    engine: Engine,
    bundle: Bundle,
    frames: int,
    batch: int,
    stages: list[StageTiming],
    peak: float | None = None,
    in_service_ms: dict[int, float] | None = None,
) -> EngineProfile:
    total = sum(stage.mean_ms for stage in stages)

    def row(stage: StageTiming) -> StageFigures:
        mean, p95 = round(stage.mean_ms, 4), round(stage.p95_ms, 4)
        share = round(stage.mean_ms / total, 4)
        if stage.flop is None or peak is None:
            return StageFigures(stage.name, mean, p95, share)
        speed = stage.flop / (stage.mean_ms / 1000)
        return StageFigures(
            stage.name, mean, p95, share, round(stage.flop / 1e9, 2), round(speed / 1e9, 1), round(speed / peak, 4)
        )

    return EngineProfile(
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


def _table(profile: EngineProfile) -> str:
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


def _title(profile: EngineProfile) -> str:
    return (
        f"{profile.engine} on {profile.device}, picture {profile.width}x{profile.height}, face {profile.face_px} px, "
        f"{profile.frames} frames, batches of {profile.batch}"
    )


def _draw(profile: EngineProfile, target: Path) -> None:
    """Raises OSError."""
    rows = []
    for stage in profile.stages:
        note = f"{stage.mean_ms:.2f} ms  p95 {stage.p95_ms:.2f}  {stage.share:.1%}"
        if stage.of_peak is not None and stage.gflop_per_s is not None:
            note += f"  {stage.gflop_per_s:.0f} GFLOP/s = {stage.of_peak:.0%} of peak"
        rows.append(Bar(stage.stage, stage.mean_ms, stage.p95_ms, note))
    target.write_bytes(cv2.imencode(".png", bars(_title(profile), rows))[1].tobytes())


MakePatch = Callable[[PatchRequest], Patch | None]
_PITCH_HZ, _SYLLABLES_HZ, _HARMONICS = 120.0, 4.0, 25


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage.

    Args:
        name: as it is printed.
        times_s: seconds per frame, one value for each measurement.
        flop: floating-point operations per frame, where they were counted.
    """

    name: str
    times_s: list[float]
    flop: int | None = None

    @property
    def mean_ms(self) -> float:
        """Milliseconds per frame."""
        return 1000 * float(np.mean(self.times_s))

    @property
    def p95_ms(self) -> float:
        """Milliseconds per frame that 95 of 100 measurements keep."""
        return 1000 * float(np.percentile(self.times_s, 95))


def host_stages(engine: Engine, bundle: Bundle, frames: int, make: MakePatch, made_by: str) -> list[StageTiming]:
    """Times features, the patch, composition and conversion of `frames` frames.

    Args:
        engine: opened for the prepared `bundle`, and otherwise idle.
        make: makes a patch, as far as it is made on the processor.
        made_by: what the stage of `make` is called.

    The conversion to I420 is measured on its own, on the same pixels and by the compositor's call; `composition` is the rest.
    """
    engine_session, compositor, cycle = engine.open(bundle), Compositor(bundle), PingPongLoop(len(bundle))
    hearing: list[float] = []
    making: list[float] = []
    composing: list[float] = []
    converting: list[float] = []
    try:
        features = _features(engine, bundle.fps, hearing)
        make(PatchRequest(engine_session, 0, engine_session.rest))  # the first one reads the clip from disk
        for tick in range(frames):
            request = PatchRequest(engine_session, cycle.idle_index(tick), next(features))
            begun = time.perf_counter()
            patch = make(request)
            done = time.perf_counter()
            compositor.compose(request.idle_index, patch)
            composed = time.perf_counter()
            pixels = np.zeros((2, 2, 3), np.uint8) if patch is None else np.ascontiguousarray(patch.pixels)
            before = time.perf_counter()
            cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)
            converted = time.perf_counter() - before
            making.append(done - begun)
            composing.append(max(0.0, composed - done - converted))
            converting.append(converted)
    finally:
        engine_session.close()
    return [
        StageTiming("features", hearing[-frames:]),
        StageTiming(made_by, making),
        StageTiming("composition", composing),
        StageTiming("I420", converting),
    ]


def _features(engine: Engine, fps: int, times_s: list[float]) -> Iterator[Feature]:
    """Features of an endless buzz that opens and closes the mouth; the time of each goes to `times_s`."""
    stream, frame = engine.features.stream(fps), 0
    while True:
        sound = _buzz(frame_start(frame, fps), frame_start(frame + 1, fps))
        begun = time.perf_counter()
        ready = stream.push(sound)
        times_s.append(time.perf_counter() - begun)
        frame += 1
        yield from ready


def _buzz(start: int, end: int) -> Pcm:
    """Samples `[start, end)` of a voice-like tone at 16 kHz."""
    t = np.arange(start, end) / FEATURE_RATE
    voice = sum(np.sin(2 * np.pi * _PITCH_HZ * k * t) / k for k in range(1, _HARMONICS))
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * _SYLLABLES_HZ * t)
    return (6_000 * swell * voice).astype(np.int16)


_WIDTH, _ROW, _HEAD, _LEFT, _RIGHT, _PAD = 1000, 44, 60, 170, 400, 20
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _BAR, _TAIL = (40, 40, 40), (180, 130, 60), (225, 205, 175)


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: `value` is drawn solid, `high` (≥ 0) pale behind it, `note` is written to the right. ASCII only."""

    name: str
    value: float
    high: float
    note: str


def bars(title: str, rows: Sequence[Bar]) -> Pixels:
    """The chart, uint8 BGR. All bars share one scale that begins at 0."""
    height = _HEAD + _ROW * len(rows) + _PAD
    picture = np.full((height, _WIDTH, 3), 255, np.uint8)
    cv2.putText(picture, title, (_PAD, 36), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
    longest = max((max(row.value, row.high) for row in rows), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    for index, row in enumerate(rows):
        top = _HEAD + index * _ROW
        for length, colour in ((row.high, _TAIL), (row.value, _BAR)):
            right = _LEFT + max(1, round(length * scale))
            cv2.rectangle(picture, (_LEFT, top + 6), (right, top + _ROW - 10), colour, cv2.FILLED)
        baseline = top + _ROW // 2 + 4
        cv2.putText(picture, row.name, (_PAD, baseline), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
        cv2.putText(picture, row.note, (_WIDTH - _RIGHT + 12, baseline), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
    return picture
