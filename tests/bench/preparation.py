"""What preparing an avatar costs, clip by clip: `python -m tests.bench --only preparation`.

Each clip is prepared cold, several times over, after one that only warms the process up; the figure is the median.
`--only largest` prepares the largest videos that are taken, of every codec and pixel format in use, once each.
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
import pillow_heif
import psutil
from PIL import Image

from musetalk_agent.avatars.library import DEMO_ASSET, AvatarLibrary
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore
from tests.bench.figures import Figure

_ROUNDS = 5
_SIZE = (1280, 720)
_BAR_S, _BAR_FRAME_S = 5.0, 0.04
_BAR_MB = 400
_LARGEST, _LARGEST_RICH = (4096, 4096), (4096, 2176)
"""Of 8 bits in 4:2:0, and of other videos (`AvatarLimits.rich_pixels`)."""
_FAST_VPX = {"cpu-used": "8", "deadline": "realtime", "b": "8M"}
_FILMS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "H.264": ("mp4", "libx264", "yuv420p", {}),
    "H.264 4:4:4": ("mp4", "libx264", "yuv444p", {"preset": "superfast"}),
    "H.264 4:2:2, 10 bits": ("mp4", "libx264", "yuv422p10le", {"preset": "superfast"}),
    "H.265": ("mp4", "libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "H.265, 10 bits": ("mp4", "libx265", "yuv420p10le", {"preset": "superfast", "x265-params": "log-level=none:ref=4"}),
    "AV1": ("mp4", "libsvtav1", "yuv420p", {"preset": "12"}),
    "AV1, 10 bits": ("mp4", "libsvtav1", "yuv420p10le", {"preset": "12"}),
    "VP8": ("webm", "libvpx", "yuv420p", _FAST_VPX),
    "VP9": ("webm", "libvpx-vp9", "yuv420p", _FAST_VPX),
    "VP9 with alpha": ("webm", "libvpx-vp9", "yuva420p", _FAST_VPX),
}
"""Containers, encoders, pixel formats and what an encoder is asked for."""


async def preparation() -> list[Figure]:
    """Seconds and memory from the bytes to the bundle, for clips and pictures as people send them."""
    phone = _scene(3024, 4032)
    clips = {
        "demo picture": (DEMO_ASSET.read_bytes(), 5),
        "phone photo, 3024×4032 JPEG": (_encoded(phone, ".jpg"), 5),
        "phone photo, 3024×4032 HEIC": (_heic(phone), 5),
        "4096×4096 PNG": (_encoded(_scene(4096, 4096), ".png"), 5),
        "12000×9000 JPEG": (_encoded(_scene(12_000, 9_000), ".jpg"), 5),
        "zip, 100 × 720p": (_zip(100, ".png"), 100),
        "zip, 100 × 1080×1920": (_zip(100, ".jpg", (1080, 1920)), 100),
        "video, 10 s × 720p": (_video(250), 250),
    }
    figures = []
    for name, (data, frames) in clips.items():
        figures += await _figures(name, data, frames, _ROUNDS)
    return figures


async def largest() -> list[Figure]:
    """The same for 30 frames as large as they may be, where memory is what counts. Making the clips takes minutes."""
    figures = []
    for name, how in _FILMS.items():
        size = _LARGEST if how[2] == "yuv420p" else _LARGEST_RICH
        figures += await _figures(f"{size[0]}×{size[1]} {name}", _film(*how, size), 30, 1)
    return figures


async def _figures(name: str, data: bytes, frames: int, rounds: int) -> list[Figure]:
    wall, cpu, memory = zip(*[await _cost(data) for _ in range(rounds)], strict=True)
    bar = _BAR_S + _BAR_FRAME_S * frames
    return [
        Figure(f"preparation, {name}: time", statistics.median(wall), "s", bar, note=f"of {rounds}"),
        Figure(f"preparation, {name}: CPU", statistics.median(cpu), "s", note="with child processes"),
        Figure(f"preparation, {name}: memory", max(memory), "MB", _BAR_MB, note="of the decoder process"),
    ]


async def _cost(data: bytes) -> tuple[float, float, float]:
    """Seconds of time and of CPU that one cold preparation takes, and the most MB that a decoder process had resident."""
    with tempfile.TemporaryDirectory() as folder:
        library = AvatarLibrary(Path(folder), ModelStore(None, Manifest.load()))
        try:
            warming = await library.add(DEMO_ASSET.read_bytes() + b"\n")
            await library.prepare(AvatarSource(avatar_id=warming), Picture(fps=15, width=64, height=64))
            avatar_id = await library.add(data)
            begun, cpu = time.perf_counter(), _cpu_seconds()
            await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
            return time.perf_counter() - begun, _cpu_seconds() - cpu, _peak_mb()
        finally:
            library.close()


def _peak_mb() -> float:
    """VmHWM (proc_pid_status(5)) of the child process that had most."""
    peaks = [0.0]
    for child in psutil.Process().children():
        lines = Path(f"/proc/{child.pid}/status").read_text("ascii").splitlines()
        peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)


def _cpu_seconds() -> float:
    """CPU time of this process and its living child processes."""
    me = psutil.Process()
    return sum(times.user + times.system for times in (p.cpu_times() for p in (me, *me.children(recursive=True))))


def _scene(width: int, height: int) -> np.ndarray:
    """The demo's face in a picture of this size."""
    side = max(width, height)
    face = cv2.resize(np.asarray(cv2.imread(str(DEMO_ASSET))), (side, side), interpolation=cv2.INTER_CUBIC)
    top, left = (side - height) // 2, (side - width) // 2
    return np.ascontiguousarray(face[top : top + height, left : left + width])


def _frames(count: int, size: tuple[int, int] = _SIZE) -> Sequence[np.ndarray]:
    """The demo's face, moving slowly across a picture."""
    side = min(size)
    face = cv2.resize(np.asarray(cv2.imread(str(DEMO_ASSET))), (side, side), interpolation=cv2.INTER_AREA)
    across, down = (size[0] - side) // 2, (size[1] - side) // 2
    scene = cv2.copyMakeBorder(face, down, down, across, across, cv2.BORDER_REPLICATE)
    return [
        np.asarray(cv2.warpAffine(scene, np.array([[1, 0, 40 * np.sin(k / 40)], [0, 1, 0]]), size))
        for k in range(count)
    ]


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, picture)[1])


def _heic(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))).save(out)
    return out.getvalue()


def _zip(count: int, suffix: str, size: tuple[int, int] = _SIZE) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for k, picture in enumerate(_frames(count, size)):
            file.writestr(f"{k}{suffix}", _encoded(picture, suffix))
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


def _film(container: str, codec: str, pix_fmt: str, options: dict[str, str], size: tuple[int, int]) -> bytes:
    """The demo's face, three pixels further on each of 30 frames; with alpha a disc with a soft edge."""
    scene = _scene(*size)
    down, across = np.ogrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    alpha = np.clip((0.95 - np.hypot(across, down)) * 1700, 0, 255).astype(np.uint8)
    bgra = np.dstack([scene, alpha if pix_fmt.startswith("yuva") else np.full_like(alpha, 255)])
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        for k in range(30):
            frame = av.VideoFrame.from_ndarray(np.roll(bgra, 3 * k, 1), format="bgra").reformat(format=pix_fmt)
            frame.pts = k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()
