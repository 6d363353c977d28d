"""Films whose background is transparent: WebM and PNG have the person's alpha, MP4 is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.codec.context import CodecContext
from pydantic import ValidationError

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.renders import RenderFormat, RenderRequest, RenderState
from musetalk_agent.renders.film_parts import part_writer
from tests.musetalk_agent.avatars.clips import archive, encoded, face
from tests.musetalk_agent.avatars.test_clip_alpha import ALPHA, BGRA, SIDE

from .test_render_job import Bench, bursts, worked

FRAMES = 6 * 25
"""Two parts."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worked(tmp_path, "warp") as made:
        yield made


async def made(bench: Bench, made: str, background: str = "transparent") -> Path:
    clip = archive([(f"{k}.png", encoded(BGRA)) for k in range(4)])
    fields = {
        "engine": "warp",
        "format": made,
        "width": None,
        "height": None,
        "avatar_settings": {"background": background},
    }
    render_id = bench.order(bursts(FRAMES // 25), avatar_id=await bench.jobs.factory.library.add(clip), **fields)
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    return bench.folder.result(render_id, RenderFormat(made))


def alphas(film: Path) -> list[np.ndarray]:
    """What a decoder that knows alpha reads of every frame."""
    decoder, found = CodecContext.create("libvpx-vp9", "r"), []
    with av.open(str(film)) as container:
        for packet in container.demux(video=0):
            for frame in decoder.decode(packet) if packet.size else []:
                assert frame.format.name == "yuva420p"
                plane = frame.planes[3]
                found.append(np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(int))
    return found


async def test_a_webm_has_alpha_in_every_frame_and_all_of_its_sound(bench: Bench) -> None:
    film = await made(bench, "webm")
    assert b"\x53\xc0\x81\x01" in film.read_bytes()[:4096], "the track's AlphaMode, by which players know"
    found = alphas(film)
    assert len(found) == FRAMES
    assert max(np.abs(each - ALPHA).mean() for each in found) < 3
    with av.open(str(film)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times == pytest.approx([number / 25 for number in range(FRAMES)], abs=0.001)
    with av.open(str(film)) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate) == ("opus", 48_000)
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 48_000
    assert seconds == pytest.approx(FRAMES / 25, abs=0.1)


async def test_png_frames_have_straight_colours_and_their_alpha(bench: Bench) -> None:
    with zipfile.ZipFile(io.BytesIO((await made(bench, "png")).read_bytes())) as frames:
        names = [name for name in frames.namelist() if name.endswith(".png")]
        picture = cv2.imdecode(np.frombuffer(frames.read(names[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert len(names) == FRAMES and picture.shape == (SIDE, SIDE, 4)
    assert np.array_equal(picture[..., 3], ALPHA)
    top = (ALPHA > 40) & (np.arange(SIDE)[:, None] < SIDE // 2)  # the mouth is below
    assert np.abs(picture[..., :3].astype(int) - face(SIDE))[top].mean() < 6
    edge = (ALPHA == 0) & (cv2.dilate(ALPHA, np.ones((5, 5), np.uint8)) > 0)
    share = ALPHA[..., None] / 255.0
    around = cv2.blur(face(SIDE) * share, (25, 25)) / np.maximum(cv2.blur(np.dstack([share] * 3), (25, 25)), 1e-3)
    assert np.abs(picture[..., :3] - around)[edge].mean() < 12, "the person's colours go on beside the edge"


async def test_a_film_of_a_colour_is_opaque(bench: Bench) -> None:
    film = await made(bench, "webm", "#00ff00")
    with av.open(str(film)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="bgr24")
        assert container.streams.video[0].metadata.get("alpha_mode") is None
    assert np.abs(first[:6, :6].astype(int) - (0, 255, 0)).mean() < 12


def test_mp4_has_no_transparency() -> None:
    with pytest.raises(ValidationError, match="format: mp4 has no transparency: give webm or png"):
        RenderRequest(text="x", avatar_id="demo", avatar_settings={"background": "transparent"})
    assert RenderRequest(
        text="x", avatar_id="demo", avatar_settings={"background": "transparent"}, format="webm"
    ).transparent


def test_formats_are_known_by_the_ends_of_names() -> None:
    assert [RenderFormat.of_suffix(end) for end in (".mp4", ".WebM", ".zip", ".png", "")] == [*RenderFormat, None, None]


def test_a_frame_without_alpha_is_opaque_in_a_film_with_alpha(tmp_path: Path) -> None:
    with part_writer(tmp_path / "part", RenderFormat.WEBM, 25, 0, alpha=True) as part:
        part.write(VideoFrame(np.full(64 * 64 * 3 // 2, 120, np.uint8), 64, 64, 0))
    assert (alphas(tmp_path / "part")[0] == 255).all()
