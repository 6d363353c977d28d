"""What one core can do: the warp engine's frame, and the pipeline's latency without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import DEMO_ASSET, AvatarLibrary
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.engine_pool import make_warp
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.player import PlayerOutputs
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AvatarSource, Picture
from musetalk_agent.publishers.base import NullPublisher
from musetalk_agent.weights import Manifest, ModelStore, default_models_dir
from tests.bench.figures import Figure, percentile

SPEECH = Path(__file__).resolve().parents[1] / "data" / "spoken_joe.npz"


def speech() -> Pcm:
    """The neural voice reading a few sentences, int16 mono 16 kHz."""
    with np.load(SPEECH, allow_pickle=False) as stored:
        coded = stored["mulaw"] / 127.5 - 1  # companded as tools/train_mouth/fixture.py does it
    pcm: Pcm = (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * 32767).astype(np.int16)
    return pcm


async def bundle_of(folder: Path, picture: Picture, clip: bytes | None = None) -> Bundle:
    """The demo avatar, or a clip, as the warp engine prepares it."""
    library = AvatarLibrary(folder, ModelStore(default_models_dir(), Manifest.load()))
    try:
        avatar_id = await library.add(clip) if clip else DEMO_AVATAR_ID
        return await library.prepare(AvatarSource(avatar_id=avatar_id), picture, derive=make_warp().prepare)
    finally:
        library.close()


def face_on_720p(face_px: int = 300) -> bytes:
    """A still of 1280×720 with the demo face (238 px wide in its 640 px picture) at about `face_px`."""
    face = cv2.imread(str(DEMO_ASSET))
    side = min(720, face.shape[0] * face_px // 238)
    picture = np.full((720, 1280, 3), 96, np.uint8)
    picture[720 - side :, 640 - side // 2 : 640 - side // 2 + side] = cv2.resize(face, (side, side))
    return cv2.imencode(".png", picture)[1].tobytes()


async def frame_cost() -> list[Figure]:
    """Features, patch and composition of one frame at 1280×720, on one thread."""
    engine = await asyncio.to_thread(make_warp)
    with TemporaryDirectory() as folder:
        bundle = await bundle_of(Path(folder), Picture(), face_on_720p())
        engine_session, compositor, stream = engine.open(bundle), Compositor(bundle), engine.features.stream(25)
        pcm, spent = speech(), {"features": 0.0, "patch": 0.0, "composition": 0.0}
        count = 0
        for at in range(0, len(pcm) - 640, 640):
            begun = time.thread_time()
            features = stream.push(pcm[at : at + 640])
            spent["features"] += time.thread_time() - begun
            for feature in features:
                idle_index = count % len(bundle)
                begun = time.thread_time()
                patch = engine.infer([PatchRequest(engine_session, idle_index, feature)])[0]
                between = time.thread_time()
                compositor.compose(idle_index, patch)
                spent["patch"] += between - begun
                spent["composition"] += time.thread_time() - between
                count += 1
    each = {name: 1000 * seconds / count for name, seconds in spent.items()}
    note = ", ".join(f"{name} {ms:.2f}" for name, ms in each.items())
    mapped = np.asarray(engine_session.artefacts.mouths)
    face = f"face {bundle.report.face_px} px, picture {bundle.width}x{bundle.height}"
    return [
        Figure(
            "warp: lower faces kept enlarged on disk, 720p",
            mapped.nbytes / 1e6,
            "MB",
            note=f"{len(mapped)} of them; {face}",
        ),
        Figure(
            "warp: features + frame + composition, 720p",
            sum(each.values()),
            "ms of one core",
            5,
            note=f"{note}; {face}",
        ),
    ]


@asynccontextmanager
async def _pipeline(folder: Path, seen: list[float], heard: list[float]) -> AsyncIterator[Pipeline]:
    bundle = await bundle_of(folder, Picture(width=512, height=512))
    clock, batcher = MonotonicClock(), Batcher(await asyncio.to_thread(make_warp))
    await batcher.start()
    engine_session = batcher.engine.open(bundle)
    publisher = NullPublisher(
        clock,
        lambda at, frame: seen.append(at) if frame.spoken and frame.tag and frame.tag.segment else None,
        lambda at, _: heard.append(at),
    )
    with ThreadPoolExecutor(3) as executor:
        pipeline = Pipeline(
            publisher,
            batcher,
            engine_session,
            bundle,
            clock,
            executor,
            PlayerOutputs(lambda _: None, lambda _: None, lambda *_: None),
        )
        await publisher.open(pipeline.first, lambda _: None)
        task = asyncio.create_task(pipeline.run())
        try:
            yield pipeline
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await batcher.aclose()


async def latency() -> list[Figure]:
    """From PCM reaching the pipeline to its lips and sound leaving it."""
    pcm, seen, heard = speech(), [], []
    with TemporaryDirectory() as folder:
        async with _pipeline(Path(folder), seen, heard) as pipeline:
            loop = asyncio.get_running_loop()
            first_lips, first_sound = [], []
            for number in range(1, 21):
                begun, count, sounds = loop.time(), len(seen), len(heard)
                pipeline.begin(number, 16_000)
                pipeline.push(pcm[: 2 * 16_000])
                while len(seen) == count or len(heard) == sounds:  # noqa: ASYNC110 - one millisecond is the measurement's grain
                    await asyncio.sleep(0.001)
                first_lips.append(1000 * (seen[count] - begun))
                first_sound.append(1000 * (heard[sounds] - begun))
                pipeline.clear()
                await asyncio.sleep(0.3)
            pipeline.player.statistics.lip_latency_ms.clear()
            pipeline.begin(21, 16_000)
            begun = loop.time()
            for at in range(0, min(len(pcm), 12 * 16_000), 640):
                await asyncio.sleep(max(0.0, begun + (at + 640) / 16_000 - loop.time()))
                pipeline.push(pcm[at : at + 640])
            live = list(pipeline.player.statistics.lip_latency_ms)
    return [
        Figure(
            "real-time PCM to its lips leaving (warp), p95", percentile(live, 95), "ms", 160, note=f"{len(live)} frames"
        ),
        Figure(
            "faster than real time: first sample in to first lips out, p95 of 20", percentile(first_lips, 95), "ms", 120
        ),
        Figure(
            "faster than real time: first sample in to first sound out, p95 of 20",
            percentile(first_sound, 95),
            "ms",
            120,
        ),
    ]
