from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.avatars import library as library_module
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import (
    AvatarEmpty,
    AvatarNotFound,
    AvatarTooLarge,
    AvatarUndecodable,
    AvatarUnsafeArchive,
    EngineFailed,
    WeightsMissing,
)
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore
from tests.waiting import NEVER_S, until, wait_until

from .clips import archive, encoded, face, flat, frames_zip, moving, video
from .test_shots import other_shot

CLIP = frames_zip(moving(6, 128))


async def prepared(library: AvatarLibrary, data: bytes, picture: Picture | None = None) -> Bundle:
    return await library.prepare(AvatarSource(avatar_id=await library.add(data)), picture or Picture())


def folders(tmp_path: Path, name: str) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / name).iterdir())


async def test_a_zip_becomes_a_bundle(library: AvatarLibrary) -> None:
    bundle = await prepared(library, frames_zip(moving(12, 256)))
    report = bundle.report
    assert (len(bundle), bundle.width, bundle.height, bundle.fps) == (12, 256, 256, 25)
    assert bundle.frames.shape == (12, 384, 256) and bundle.landmarks.shape == (12, 468, 2)
    assert report.avatar_id.startswith("sha256:") and report.frames == 12 and not report.cached
    assert 85 < report.face_px < 105 and 0.7 < report.motion_px < 1.3
    assert report.closed_mouth_frames == 12 and not report.frames_without_face and not report.still
    box = bundle.box(3)
    assert bundle.faces.shape[1:] == (box.height, box.width, 3)
    middle = bundle.landmarks[3].mean(0)
    assert box.x0 < middle[0] < box.x1 and box.y0 < middle[1] < box.y1


async def test_a_clip_of_the_size_that_is_asked_for_is_prepared_once(library: AvatarLibrary) -> None:
    own = await prepared(library, CLIP)
    asked = await prepared(library, CLIP, Picture(width=own.width, height=own.height))
    assert asked.report.cached and asked.path == own.path
    other = await prepared(library, CLIP, Picture(width=own.width, height=own.height - 2))
    assert other.path != own.path


async def test_black_frames_stay_black_and_get_no_mouth(library: AvatarLibrary) -> None:
    clip = moving(16, 128)
    for gap in (6, 7):
        clip[gap] = flat(0, 128, 128)
    bundle = await prepared(library, frames_zip(clip))
    assert bundle.report.frames_without_face == [6, 7] and len(bundle) == 16
    assert [bundle.mouth(pose) for pose in (0, 2, 4, 6, 7, 8, 11, 15)] == [1, 1, 0.5, 0, 0, 0.25, 1, 1]
    assert bundle.frames[6][:128].max() <= 17
    assert bundle.with_mouth().tolist() == [0, 1, 2, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("picture", [Picture(), Picture(width=128, height=96)], ids=["whole", "cropped"])
async def test_only_the_longest_shot_is_kept(library: AvatarLibrary, picture: Picture) -> None:
    """Six frames of one shot, nine of another; what is stored begins with the seventh."""
    bundle = await prepared(library, frames_zip([*moving(6, 128, step=0.5), *[other_shot(128)] * 9]), picture)
    assert len(bundle) == bundle.report.frames == 9
    assert [w.code for w in bundle.report.warnings if w.code == "scene_cut"] == ["scene_cut"]
    alone = await prepared(library, frames_zip([other_shot(128)] * 9), picture)
    assert np.array_equal(bundle.frames, alone.frames)
    assert np.abs(bundle.landmarks - alone.landmarks).mean() < 1.0 and np.abs(bundle.boxes - alone.boxes).max() <= 4


async def test_frames_keep_natural_order(library: AvatarLibrary) -> None:
    """Twelve frames named without leading zeros; the face goes to the right from each to the next."""
    bundle = await prepared(library, frames_zip(moving(12, 256, step=3.0)))
    assert (np.diff(bundle.landmarks[:, 6, 0]) > 1.0).all()


async def test_a_video_and_a_picture_are_avatars_too(library: AvatarLibrary) -> None:
    clip = await prepared(library, video(moving(8, 128)))
    still = await prepared(library, encoded(face(128), ".jpg"), Picture(fps=20))
    alone = await prepared(library, frames_zip([face(128)]))
    assert len(clip) == 8 and not clip.report.still
    assert still.report.still and still.fps == 20 and len(still) == 5
    assert alone.report.still and len(alone) == 5


async def test_the_same_avatar_at_another_size_and_rate(library: AvatarLibrary) -> None:
    first = await prepared(library, video(moving(10, 256)))
    other = await library.prepare(
        AvatarSource(avatar_id=first.report.avatar_id), Picture(fps=50, width=200, height=160)
    )
    assert (other.width, other.height, len(other)) == (200, 160, 20)
    assert other.report.face_px == pytest.approx(first.report.face_px, abs=2)  # the clip's pixels, not the picture's
    assert other.landmarks[0][:, 1].min() > 0 and other.landmarks[0][:, 1].max() < 160  # the crop holds the face


async def test_second_time_is_cached_and_byte_for_byte_the_same(library: AvatarLibrary) -> None:
    first = await prepared(library, CLIP)
    second = await prepared(library, CLIP)
    assert not first.report.cached and second.report.cached
    assert np.array_equal(first.frames, second.frames) and first.path == second.path


async def test_the_demo_avatar(library: AvatarLibrary) -> None:
    bundle = await library.prepare(AvatarSource(avatar_id="demo"), Picture(width=256, height=256))
    assert bundle.report.avatar_id == "demo" and bundle.report.still
    assert not bundle.report.warnings
    assert bundle.report.closed_mouth_frames == len(bundle)


@pytest.mark.parametrize("avatar_id", ["sha256:" + "0" * 64, "sha256:xyz", "../../etc/passwd", "demo2", "SHA256:"])
async def test_unknown_ids(library: AvatarLibrary, avatar_id: str) -> None:
    with pytest.raises(AvatarNotFound) as caught:
        await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    assert caught.value.field == "avatar_id"


async def test_uploads_come_in_pieces_and_are_limited(
    tmp_path: Path, models: ModelStore, decoders: DecoderPools
) -> None:
    library = AvatarLibrary(tmp_path / "cache", models, limits=AvatarLimits(source_bytes=len(CLIP)), decoders=decoders)

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    try:
        avatar_id = await library.add(pieces(CLIP), "clip.zip")
        assert avatar_id == "sha256:" + hashlib.sha256(CLIP).hexdigest()
        with pytest.raises(AvatarTooLarge) as caught:
            await library.add(pieces(CLIP + b"0"), "clip.zip")
        assert caught.value.limit == len(CLIP)
        with pytest.raises(AvatarUndecodable, match=r"notes\.txt.*plain text"):
            await library.add(b"hello", "notes.txt")
        with pytest.raises(AvatarEmpty):
            await library.add(b"")
        with pytest.raises(AvatarUnsafeArchive):
            await library.add(archive([("../a.png", b"x")]))
    finally:
        library.close()
    assert folders(tmp_path, "parts") == []


async def test_callers_who_come_together_share_the_work(library: AvatarLibrary, tmp_path: Path) -> None:
    avatar_id = await library.add(CLIP)
    reported: list[int] = []
    source = AvatarSource(avatar_id=avatar_id)
    bundles = await asyncio.gather(
        *(library.prepare(source, Picture(), progress=lambda stage, done, of: reported.append(done)) for _ in range(5))
    )
    assert len({bundle.path for bundle in bundles}) == 1 and len(folders(tmp_path, "bundles")) == 1
    assert len(reported) == 12  # six frames, six windows: once


async def test_a_caller_who_leaves_does_not_disturb_the_others(library: AvatarLibrary, tmp_path: Path) -> None:
    source = AvatarSource(avatar_id=await library.add(frames_zip(moving(30, 256))))
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(stage: str, done: int, of: int) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(NEVER_S)

    leaving = asyncio.create_task(library.prepare(source, Picture(), progress=hold))
    await begun.wait()
    staying = asyncio.create_task(library.prepare(source, Picture()))
    await until(lambda: [task.waiting for task in library._single_flight._running.values()] == [2])
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    go_on.set()
    assert len(await staying) == 30
    assert folders(tmp_path, "parts") == []


async def test_when_all_have_left_the_work_stops_and_can_begin_again(library: AvatarLibrary, tmp_path: Path) -> None:
    source = AvatarSource(avatar_id=await library.add(frames_zip(moving(60, 256))))
    begun, go_on, frames = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def note(stage: str, done: int, of: int) -> None:
        frames.append(done)
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(NEVER_S)

    only = asyncio.create_task(library.prepare(source, Picture(), progress=note))
    await begun.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    go_on.set()
    await until(lambda: not folders(tmp_path, "parts"))
    assert len(frames) < 60 and folders(tmp_path, "bundles") == []
    assert len(await library.prepare(source, Picture())) == 60


async def test_derive_runs_once_at_a_time_and_sees_the_bundle(library: AvatarLibrary) -> None:
    source = AvatarSource(avatar_id=await library.add(CLIP))
    running, most, seen = 0, 0, []

    def derive(bundle: Bundle) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)  # a slow engine: were two at work at once, they would meet here
        seen.append(len(bundle))
        running -= 1

    await asyncio.gather(*(library.prepare(source, Picture(), derive=derive) for _ in range(4)))
    assert most == 1 and seen == [6] * 4


async def test_what_derive_raises_is_reported_and_the_bundle_stays(library: AvatarLibrary) -> None:
    source = AvatarSource(avatar_id=await library.add(CLIP))

    def derive(bundle: Bundle) -> None:
        raise WeightsMissing("unet.pth is missing")

    with pytest.raises(WeightsMissing):
        await library.prepare(source, Picture(), derive=derive)
    assert (await library.prepare(source, Picture())).report.cached


async def test_an_engine_that_hangs_fails_its_start_and_holds_up_no_other(
    library: AvatarLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "DERIVE_S", 0.05)
    monkeypatch.setattr(library_module, "DERIVE_FRAME_S", 0.0)
    source = AvatarSource(avatar_id=await library.add(CLIP))
    gate, done = threading.Event(), []

    def hangs(bundle: Bundle) -> None:
        assert gate.wait(NEVER_S)

    try:
        for _ in range(3):  # more than may be derived at once
            with pytest.raises(EngineFailed, match=r"did not prepare the avatar within 0\.05 s"):
                await asyncio.wait_for(library.prepare(source, Picture(), derive=hangs), NEVER_S)
        monkeypatch.setattr(library_module, "DERIVE_S", NEVER_S)
        await asyncio.wait_for(
            library.prepare(source, Picture(), derive=lambda bundle: done.append(len(bundle))), NEVER_S
        )
    finally:
        gate.set()
    assert done == [6]


def _truncate(folder: Path) -> None:
    data = (folder / "frames.npy").read_bytes()
    (folder / "frames.npy").write_bytes(data[:-1])


def _garble_head(folder: Path) -> None:
    (folder / "bundle.json").write_text('{"schema": 1, "ke')


def _other_shape(folder: Path) -> None:
    np.save(folder / "landmarks.npy", np.zeros((6, 100, 2), np.float32))


def _pickled(folder: Path) -> None:
    np.save(folder / "landmarks.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _missing(folder: Path) -> None:
    (folder / "faces.npy").unlink()


def _other_schema(folder: Path) -> None:
    head = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(head | {"schema": 0}))


def _boxes_outside(folder: Path) -> None:
    boxes = np.load(folder / "boxes.npy")
    np.save(folder / "boxes.npy", boxes + np.int32(4000))


def _nan(folder: Path) -> None:
    np.save(folder / "landmarks.npy", np.full((6, 468, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    "damage", [_truncate, _garble_head, _other_shape, _pickled, _missing, _other_schema, _boxes_outside, _nan]
)
async def test_a_damaged_bundle_is_built_anew(library: AvatarLibrary, damage: Callable[[Path], None]) -> None:
    first = await prepared(library, CLIP)
    frames = np.array(first.frames)
    damage(first.path)
    again = await prepared(library, CLIP)
    assert not again.report.cached
    assert np.array_equal(again.frames, frames)
    assert (await prepared(library, CLIP)).report.cached


async def test_the_longest_unused_bundle_goes_first_but_never_one_in_use(
    tmp_path: Path, models: ModelStore, decoders: DecoderPools
) -> None:
    """Each bundle here takes about 300 kB; there is room for two."""
    library = AvatarLibrary(tmp_path / "cache", models, cache_bytes=(800 << 10) * 4 // 3, decoders=decoders)
    try:
        held = await prepared(library, CLIP)
        for width in (100, 110, 120):
            await library.prepare(AvatarSource(avatar_id=held.report.avatar_id), Picture(width=width))
            await asyncio.to_thread(tick, tmp_path)
        names = folders(tmp_path, "bundles")
        assert held.path.name in names and len(names) < 4
        assert (await prepared(library, CLIP)).report.cached
        first_key = held.path.name
        del held
        for width in (130, 140, 150):
            await library.prepare(
                AvatarSource(avatar_id="sha256:" + hashlib.sha256(CLIP).hexdigest()), Picture(width=width)
            )
            await asyncio.to_thread(tick, tmp_path)
        assert first_key not in folders(tmp_path, "bundles")
    finally:
        library.close()


def tick(folder: Path) -> None:
    """Waits until the clock of the file system has moved on, so that what is used next counts as used later."""
    probe = folder / "tick"
    probe.touch()
    first = probe.stat().st_mtime_ns

    def later() -> bool:
        probe.touch()
        return probe.stat().st_mtime_ns > first

    wait_until(later)


def test_sources_are_capped_too(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, 4000)
    for k in range(4):
        part = cache.part()
        (part / "source").write_bytes(bytes(400))
        cache.keep_source(part / "source", f"{k:064}")
        tick(tmp_path)
    assert cache.source(f"{0:064}") is None and cache.source(f"{3:064}") is not None


def test_what_a_dead_process_left_is_cleared(tmp_path: Path) -> None:
    import os

    stale = AvatarCache(tmp_path, 4000).part()
    fresh = AvatarCache(tmp_path, 4000).part()
    os.utime(stale, (0, 0))
    AvatarCache(tmp_path, 4000)
    assert not stale.exists() and fresh.exists()


async def test_without_models_the_missing_file_and_the_command_are_named(tmp_path: Path) -> None:
    library = AvatarLibrary(tmp_path / "cache", ModelStore(tmp_path / "models", Manifest.load()))
    try:
        with pytest.raises(WeightsMissing, match=r"face_detection_short_range.*musetalk-agent fetch-models"):
            await prepared(library, CLIP)
    finally:
        library.close()


async def test_close_twice(library: AvatarLibrary) -> None:
    library.close()
    library.close()
