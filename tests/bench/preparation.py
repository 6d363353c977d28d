"""What preparing an avatar costs, clip by clip: `python -m tests.bench --only preparation`.

Each clip is prepared cold, several times over, after one that only warms the process up; the figure is the median.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import psutil

from musetalk_agent.avatars.library import DEMO_ASSET, AvatarLibrary
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore
from tests.bench.figures import Figure

_ROUNDS = 5
_SIZE = (1280, 720)


async def preparation() -> list[Figure]:
    """Seconds from the bytes to the bundle: the demo's picture, a zip of 100 frames of 720p, ten seconds of 720p video."""
    clips = {"demo picture": DEMO_ASSET.read_bytes(), "zip, 100 × 720p": _zip(100), "video, 10 s × 720p": _video(250)}
    figures = []
    for name, data in clips.items():
        wall, cpu = zip(*[await _cost(data) for _ in range(_ROUNDS)], strict=True)
        figures.append(Figure(f"preparation, {name}: time", statistics.median(wall), "s", note=f"of {_ROUNDS}"))
        figures.append(Figure(f"preparation, {name}: CPU", statistics.median(cpu), "s", note="with child processes"))
    return figures


async def _cost(data: bytes) -> tuple[float, float]:
    """Seconds of time and of CPU that one cold preparation takes."""
    with tempfile.TemporaryDirectory() as folder:
        library = AvatarLibrary(Path(folder), ModelStore(None, Manifest.load()))
        try:
            warming = await library.add(DEMO_ASSET.read_bytes() + b"\n")
            await library.prepare(AvatarSource(avatar_id=warming), Picture(fps=15, width=64, height=64))
            avatar_id = await library.add(data)
            begun, cpu = time.perf_counter(), _cpu_seconds()
            await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
            return time.perf_counter() - begun, _cpu_seconds() - cpu
        finally:
            library.close()


def _cpu_seconds() -> float:
    """CPU time of this process and its living child processes."""
    me = psutil.Process()
    return sum(times.user + times.system for times in (p.cpu_times() for p in (me, *me.children(recursive=True))))


def _frames(count: int) -> Sequence[np.ndarray]:
    """The demo's face, moving slowly across a picture of 720p."""
    face = cv2.resize(np.asarray(cv2.imread(str(DEMO_ASSET))), (720, 720), interpolation=cv2.INTER_AREA)
    scene = cv2.copyMakeBorder(face, 0, 0, 280, 280, cv2.BORDER_REPLICATE)
    return [
        np.asarray(cv2.warpAffine(scene, np.array([[1, 0, 40 * np.sin(k / 40)], [0, 1, 0]]), _SIZE))
        for k in range(count)
    ]


def _zip(count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for k, picture in enumerate(_frames(count)):
            file.writestr(f"{k}.png", bytes(cv2.imencode(".png", picture)[1]))
    return out.getvalue()


def _video(count: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for k, picture in enumerate(_frames(count)):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts = k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()
