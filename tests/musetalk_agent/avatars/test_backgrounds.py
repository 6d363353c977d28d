"""Avatars with a background: one matte for all, pictures by the rules of addresses, and codes that name the field."""

from __future__ import annotations

import asyncio

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.backgrounds import FIELD
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import DEMO_ASSET, AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.matte_files import matte_path
from musetalk_agent.errors import AvatarError, WeightsMissing
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore

from .clips import encoded, frames_zip
from .hosts import hosting, ok, redirect

SMALL = Picture(width=160, height=160)
CLIP = frames_zip([cv2.resize(cv2.imread(str(DEMO_ASSET)), (160, 160), interpolation=cv2.INTER_AREA)] * 3)


async def shown(library: AvatarLibrary, background: str, *, only_matte: bool = False) -> Bundle:
    source = AvatarSource(avatar_id=await library.add(CLIP))
    return await library.prepare(source, SMALL, background=background, only_matte=only_matte)


async def test_the_person_is_found_and_two_backgrounds_share_all_else(library: AvatarLibrary) -> None:
    kept, one, other = [await shown(library, background) for background in ("keep", "#ff0000", "blur")]
    assert kept.cutout is None and one.cutout is not None and other.cutout is not None
    assert kept.path == one.path == other.path
    alpha = one.cutout.matte.alpha
    assert alpha.shape == (3, 160, 160)
    face = one.landmarks[0].mean(0).astype(int)
    assert alpha[0, face[1], face[0]] == 255 and alpha[0, 4, 4] == 0 and alpha[0, 4, 155] == 0
    assert 0.3 < (alpha[0] > 127).mean() < 0.75
    assert len(list((one.path / "mattes").iterdir())) == 1
    assert not list((one.path.parent.parent / "parts").iterdir())


async def test_a_preparation_makes_the_matte_and_callers_share_the_work(library: AvatarLibrary) -> None:
    bundle = await shown(library, "image:http://127.0.0.1:9/never-asked.png", only_matte=True)
    assert bundle.cutout is None
    made = matte_path(bundle, Manifest.load()) / "alpha.npy"
    before = made.stat().st_ino
    found = await asyncio.gather(*(shown(library, "blur") for _ in range(3)))
    assert made.stat().st_ino == before and all(each.cutout is not None for each in found)


async def test_a_damaged_matte_is_made_anew(library: AvatarLibrary) -> None:
    bundle = await shown(library, "blur")
    person = matte_path(bundle, Manifest.load()) / "person.npy"
    person.write_bytes(person.read_bytes()[:-10])
    again = await shown(library, "blur")
    assert again.cutout is not None and again.cutout.matte.person.shape == (3, 240, 160)


async def test_a_picture_covers_the_size_and_is_fetched_once_while_it_is_shown(library: AvatarLibrary) -> None:
    wide = np.full((100, 400, 3), (0, 0, 255), np.uint8)
    wide[:, 150:250] = (0, 255, 0)
    async with hosting() as host:
        host.replies["/wide.png"] = ok(encoded(wide, ".png"))
        first = await shown(library, f"image:{host.url('/wide.png')}")
        second = await shown(library, f"image:{host.url('/wide.png')}")
        assert len(host.asked) == 1
        assert first.cutout is not None and second.cutout is not None
        assert first.cutout.scenery is second.cutout.scenery is not None
        bgr = cv2.cvtColor(first.cutout.scenery.planes, cv2.COLOR_YUV2BGR_I420)
        assert bgr.shape == (160, 160, 3)
        assert bgr[80, 80, 1] > 200, "the middle of it"
        del first, second
        await shown(library, f"image:{host.url('/wide.png')}")
        assert len(host.asked) == 2


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/none.png", "avatar_fetch_failed"),
        ("/text.png", "avatar_undecodable"),
        ("/cut.png", "avatar_undecodable"),
        ("/clip.mp4", "avatar_undecodable"),
        ("/empty.png", "avatar_empty"),
        ("/large.png", "avatar_too_large"),
        ("/inner.png", "avatar_url_forbidden"),
    ],
)
async def test_pictures_that_cannot_be_used_name_the_field(library: AvatarLibrary, path: str, code: str) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), ".png")
    async with hosting() as host:
        host.replies |= {
            "/text.png": ok(b"no picture at all, but long enough to be looked at " * 4),
            "/cut.png": ok(whole[: len(whole) // 2]),
            "/clip.mp4": ok(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + bytes(100)),
            "/empty.png": ok(b""),
            "/large.png": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "/inner.png": redirect("ftp://example.org/a.png"),
        }
        with pytest.raises(AvatarError) as refused:
            await shown(library, f"image:{host.url(path)}")
    assert refused.value.code.value == code and refused.value.field == FIELD


async def test_a_private_address_is_refused(tmp_path, models: ModelStore, decoders: DecoderPools) -> None:
    library = AvatarLibrary(tmp_path / "cache", models, decoders=decoders)
    try:
        with pytest.raises(AvatarError) as refused:
            await shown(library, "image:http://127.0.0.1:9/a.png")
        assert refused.value.code.value == "avatar_url_forbidden" and refused.value.field == FIELD
    finally:
        library.close()


async def test_without_the_network_only_other_backgrounds_are_refused(tmp_path, models: ModelStore) -> None:
    """Files of before are enough for the clip as it is."""
    folder = tmp_path / "models"
    (folder / "face").mkdir(parents=True)
    for name, entry in models.manifest.entries.items():
        if entry.group == "face" and "selfie" not in name:
            (folder / name).symlink_to(models.path(name))
    library = AvatarLibrary(tmp_path / "cache", ModelStore(folder, models.manifest), limits=AvatarLimits())
    try:
        assert (await shown(library, "keep")).cutout is None
        with pytest.raises(WeightsMissing, match="selfie"):
            await shown(library, "blur")
    finally:
        library.close()
