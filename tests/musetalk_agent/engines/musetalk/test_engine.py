"""The engine through its port: avatars prepared and shared, patches beside the reference, what is refused, what is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.musetalk.picture.live_restoration import LiveRestoration
from musetalk_agent.engines.musetalk.profiles import Options
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineUnavailable, WeightsMissing
from musetalk_agent.media_types import Feature, Patch
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from tests.fakes.weights import write_models
from tests.late import late_imports
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved

with late_imports("torch", "diffusers", "transformers"):
    import torch

    from musetalk_agent.engines.musetalk import engine as engine_module
    from musetalk_agent.engines.musetalk.avatar_store import AvatarStore
    from musetalk_agent.engines.musetalk.device import CpuCard
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.runner import Throughput
    from tests.musetalk_agent.engines.musetalk.models import difference, plain

OPTIONS = Options(buckets=(1, 2, 4))
POSES = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


@pytest.fixture(scope="module")
def engine(models: Path) -> MuseTalkEngine:
    made = MuseTalkEngine(models, OPTIONS)
    made.warmup()
    return made


@pytest.fixture(scope="module")
def bundle(engine: MuseTalkEngine, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return clip(tmp_path_factory.mktemp("bundle"))


def clip(folder: Path) -> Bundle:
    return bundle_of(folder, [moved(40 + x, 20, 0.5, (400, 360)) for x in range(POSES)])


def features(engine: MuseTalkEngine, count: int, seed: int = 0) -> list[Feature]:
    noise = np.random.default_rng(seed).normal(0, 5000, 16_000).astype(np.int16)
    return engine.features.stream(25).push(noise)[:count]


def made_by(engine: MuseTalkEngine, batch: list[PatchRequest]) -> list[Patch | None]:
    flight = engine.launch(batch)
    flight.wait()
    return flight.patches()


def with_lips(folder: Path, apart: float) -> Bundle:
    """The same clip with its inner lips so many pixels apart."""
    frames = [moved(40 + x, 20, 0.5, (400, 360)) for x in range(POSES)]
    for _, points in frames:
        points[14] = points[13] + (0, apart)
    return bundle_of(folder, frames)


def test_idle_mouths_of_a_clip_that_talks_are_those_of_silence(models: Path, tmp_path: Path) -> None:
    engine = MuseTalkEngine(models, OPTIONS)
    engine.pace = Throughput({4: 0.02})  # a device in real time
    assert engine.open(with_lips(tmp_path / "closed", 0)).missing_idle_patches() == ()
    clip = with_lips(tmp_path / "open", 12)
    session = engine.open(clip)
    assert session.missing_idle_patches() == (0, 1, 2) and session.idle(0) is None
    made = made_by(engine, [PatchRequest(session, idle_index, session.rest) for idle_index in range(POSES)])
    for idle_index, patch in enumerate(made):
        assert patch is not None
        assert session.idle(idle_index) is None  # all or none, or the mouth would open and shut
        session.store_idle_patch(idle_index, patch)
    other = engine.open(clip)
    assert other.missing_idle_patches() == ()
    for idle_index, patch in enumerate(made):
        kept = other.idle(idle_index)
        assert kept is not None and patch is not None and kept.mask is not None
        assert np.array_equal(kept.pixels, patch.pixels) and np.array_equal(
            kept.mask, session.avatar.artefacts.mask(idle_index)
        )
    (opening,) = made_by(engine, [PatchRequest(other, 0, features(engine, 1)[0], 0.3)])
    assert opening is not None and opening.mask is not None
    assert np.array_equal(opening.mask, session.avatar.artefacts.mask(0))  # the clip's own mouth shows through nowhere
    assert made_by(engine, [PatchRequest(other, 0, features(engine, 1)[0], 0.0)]) == [None]


def test_nothing_is_drawn_where_no_mouth_is(models: Path, tmp_path: Path) -> None:
    """Neither while it speaks nor while it idles; beside such frames the mask is weaker."""
    engine = MuseTalkEngine(models, OPTIONS)
    engine.pace = Throughput({4: 0.02})
    session = engine.open(replace(with_lips(tmp_path, 12), mouths=np.array([1, 0.5, 0], np.float32)))
    assert session.missing_idle_patches() == (0, 1)
    made = made_by(engine, [PatchRequest(session, idle_index, session.rest) for idle_index in range(POSES)])
    assert [patch is not None for patch in made] == [True, True, False]
    masks = [patch.mask for patch in made if patch is not None and patch.mask is not None]
    assert masks[0].max() == session.avatar.artefacts.mask(0).max() and abs(masks[1].max() - masks[0].max() / 2) <= 1
    for idle_index in (0, 1):
        patch = made[idle_index]
        assert patch is not None
        session.store_idle_patch(idle_index, patch)
    assert [session.idle(idle_index) is not None for idle_index in range(POSES)] == [True, True, False]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_face_that_lies_is_not_drawn(models: Path, tmp_path: Path, turns: int) -> None:
    engine = MuseTalkEngine(models, OPTIONS)
    picture, points = moved(40, 20, 0.5, (400, 400))
    x, y = points.T
    lying = np.stack(((y, 399 - x), (399 - x, 399 - y), (399 - y, x))[turns - 1], 1).astype(np.float32)
    session = engine.open(bundle_of(tmp_path, [(np.ascontiguousarray(np.rot90(picture, turns)), lying)]))
    assert made_by(engine, [PatchRequest(session, 0, features(engine, 1)[0])]) == [None]
    assert session.missing_idle_patches() == ()


def test_idle_mouths_are_left_alone_on_a_device_too_slow_for_them(models: Path, tmp_path: Path) -> None:
    engine = MuseTalkEngine(models, OPTIONS)
    engine.pace = Throughput({1: 2.0})
    assert engine.open(with_lips(tmp_path, 12)).missing_idle_patches() == ()


def test_patches_are_the_references_faces_on_their_boxes(engine: MuseTalkEngine, bundle: Bundle, models: Path) -> None:
    session = engine.open(bundle)
    session.picture = None  # upstream's way
    windows = features(engine, 5)
    made = made_by(engine, [PatchRequest(session, i % POSES, window) for i, window in enumerate(windows)])
    reference = plain(models)
    artefacts = session.avatar.artefacts
    with torch.inference_mode():
        audio = engine.network.encoder(torch.from_numpy(np.stack(windows)))
    for index, patch in enumerate(made):
        assert patch is not None and patch.mask is not None
        latents = torch.from_numpy(np.array(artefacts.latents[index % POSES]))
        face = reference.decoded(reference.predicted(audio[index], latents))
        wanted = artefacts.patch(index % POSES, face)
        assert patch.box == wanted.box
        assert difference(patch.pixels, wanted.pixels) <= 1
        assert np.array_equal(patch.mask, wanted.mask)
    session.close()


def test_latents_are_prepared_as_the_reference_encodes(engine: MuseTalkEngine, bundle: Bundle, models: Path) -> None:
    seen: list[tuple[int, int]] = []
    engine.prepare(bundle, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (POSES, POSES)
    faces = np.random.default_rng(1).integers(0, 255, (9, 256, 256, 3), np.uint8)
    made = engine._encode(faces)
    reference = plain(models)
    assert made.shape == (9, 8, 32, 32)
    wanted = np.stack([reference.encoded(face) for face in faces[[0, 4, 8]]])
    # a masked face is half constant, which amplifies float32's rounding: diffusers itself is 2.4e-4 from its own float64
    assert np.abs(made[[0, 4, 8]].astype(np.float32) - wanted.astype(np.float32)).max() <= 5e-4


def test_silence_costs_nothing(engine: MuseTalkEngine, bundle: Bundle) -> None:
    session = engine.open(bundle)
    assert session.idle(0) is None
    assert session.rest.shape == features(engine, 1)[0].shape
    before = engine.launch([])
    flight = engine.launch([PatchRequest(session, 0, session.rest, blend_weight=0.0)] * 3)
    assert flight.pieces == before.pieces == []
    flight.wait()
    assert flight.patches() == [None, None, None]
    mixed = made_by(engine, [PatchRequest(session, 0, session.rest, blend_weight=p) for p in (0.0, 0.5, 1.0)])
    assert mixed[0] is None and mixed[1] is not None and mixed[2] is not None
    assert mixed[1].mask is not None and mixed[2].mask is not None
    assert 0 < mixed[1].mask.max() < mixed[2].mask.max()
    session.close()


def test_patches_outlive_the_memory_they_came_through(engine: MuseTalkEngine, bundle: Bundle) -> None:
    session, windows = engine.open(bundle), features(engine, 2)
    first = made_by(engine, [PatchRequest(session, 0, windows[0])])[0]
    assert first is not None
    kept = first.pixels.copy()
    made_by(engine, [PatchRequest(session, 0, windows[1])])
    assert np.array_equal(first.pixels, kept)
    session.close()


async def test_two_sessions_in_one_batch_get_what_each_gets_alone(models: Path, bundle: Bundle) -> None:
    engine = MuseTalkEngine(models, OPTIONS)
    one, two = engine.open(bundle), engine.open(bundle)
    one.picture = two.picture = None  # what the picture keeps from frame to frame has tests of its own
    requests = [
        PatchRequest(session, k, window)
        for seed, session in enumerate((one, two))
        for k, window in enumerate(features(engine, POSES, seed))
    ]
    alone = [made_by(engine, [request])[0] for request in requests]
    batcher = Batcher(engine)
    await batcher.start()
    together = await asyncio.gather(*(batcher.submit(request, request.idle_index) for request in requests))
    assert max(batcher.statistics().sizes or {}) > 1
    await batcher.aclose()
    engine.close()
    for a, b in zip(alone, together, strict=True):
        assert a is not None and b is not None
        assert difference(a.pixels, b.pixels) <= 1
    assert difference(alone[0].pixels, alone[POSES].pixels) > 1  # type: ignore[union-attr]


def test_sessions_of_an_avatar_share_its_latents_and_the_last_leaves_them(
    engine: MuseTalkEngine, bundle: Bundle
) -> None:
    one, two = engine.open(bundle), engine.open(bundle)
    assert one.avatar is two.avatar
    assert engine.memory() == {"allocated": 0, "avatars": POSES * 8 * 32 * 32 * 2}
    one.close()
    one.close()
    two.close()
    assert one.avatar.sessions == 0
    again = engine.open(bundle)
    assert again.avatar is one.avatar
    again.close()


def test_sessions_take_a_place_for_restoration_and_give_it_back_once(
    models: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Restorer:
        def seconds(self) -> float:
            return 0.009

    monkeypatch.setattr(engine_module, "live_restoration", lambda folder: LiveRestoration(cast("Any", Restorer())))
    made = MuseTalkEngine(models, replace(OPTIONS, restore="live"))
    opened = [made.open(bundle) for _ in range(3)]
    pictures = [session.picture for session in opened]
    assert [picture is not None and picture.restoration is not None for picture in pictures] == [True, True, False]
    opened[0].close()
    opened[0].close()
    later = [made.open(bundle).picture for _ in range(2)]
    assert [picture is not None and picture.restoration is not None for picture in later] == [True, False]
    assert made.stats()["restoration"] == {"ms": 9.0, "busy": 0.45, "note": None}
    made.close()
    asked = MuseTalkEngine(models, replace(OPTIONS, restore="asked"))
    for restore, place in ((None, False), (False, False), (True, True)):
        picture = asked.open(bundle, AvatarSettings(restore=restore)).picture
        assert picture is not None and (picture.restoration is not None) is place
    asked.close()
    assert "restoration" not in MuseTalkEngine(models, OPTIONS).stats()


def test_avatars_without_sessions_are_dropped_oldest_first(
    engine: MuseTalkEngine, bundle: Bundle, tmp_path: Path
) -> None:
    session = engine.open(bundle)
    artefacts = session.avatar.artefacts
    store = AvatarStore(CpuCard(), spare_bytes=2 * artefacts.latents.nbytes)
    names = [tmp_path / name for name in "abcd"]
    for name in names:
        store.take(name, lambda: artefacts)
    for name in names:
        store.give_back(name)
    loads: list[int] = []
    for name in (names[3], names[2], names[0]):
        store.take(name, lambda: loads.append(1) or artefacts)  # type: ignore[func-returns-value]
    assert len(loads) == 1  # c and d were kept
    session.close()


def test_faces_that_are_no_numbers_become_the_idle_frame_and_are_counted(
    models: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    broken = MuseTalkEngine(models, OPTIONS)
    norm = broken.network.decoder.decoder.conv_norm_out
    norm.weight = torch.nn.Parameter(norm.weight * float("nan"), requires_grad=False)
    session = broken.open(bundle)
    with caplog.at_level(logging.WARNING):
        assert made_by(broken, [PatchRequest(session, 0, w) for w in features(broken, 3)]) == [None] * 3
    assert broken.unfit_faces == 3
    assert len(caplog.records) == 1
    session.close()


@pytest.mark.parametrize("profile", ["lower", "fast"])
def test_other_profiles_make_patches_of_the_same_boxes(
    models: Path, engine: MuseTalkEngine, bundle: Bundle, profile: str
) -> None:
    other = MuseTalkEngine(models, Options(profile=profile))
    assert other.fingerprint == engine.fingerprint
    session, theirs, window = engine.open(bundle), other.open(bundle), features(engine, 1)[0]
    session.picture = theirs.picture = None
    wanted = made_by(engine, [PatchRequest(session, 1, window)])[0]
    made = made_by(other, [PatchRequest(theirs, 1, window)])[0]
    assert made is not None and wanted is not None
    assert made.box == wanted.box and made.pixels.std() > 0
    if profile == "lower":
        assert wanted.mask is not None
        seen = wanted.mask > 0
        assert np.abs(made.pixels[seen].astype(int) - wanted.pixels[seen]).mean() < 10
    session.close()
    theirs.close()


def test_the_fingerprint_is_of_what_preparation_reads(models: Path, tmp_path: Path) -> None:
    first = MuseTalkEngine(models, OPTIONS).fingerprint
    assert MuseTalkEngine(models, OPTIONS).fingerprint == first
    assert MuseTalkEngine(models, Options(precision="float16")).fingerprint == first
    assert MuseTalkEngine(models, Options(bbox_shift=5)).fingerprint != first
    assert MuseTalkEngine(write_models(tmp_path, seed=1)).fingerprint != first


def test_what_is_asked_wrongly_is_said(models: Path, engine: MuseTalkEngine, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no profile"):
        MuseTalkEngine(models, Options(profile="best"))
    with pytest.raises(EngineUnavailable, match="no precision"):
        MuseTalkEngine(models, Options(precision="int8"))  # type: ignore[arg-type]
    with pytest.raises(WeightsMissing):
        MuseTalkEngine(tmp_path)
    with pytest.raises(WeightsMissing, match="fetch-models fast"):
        MuseTalkEngine(write_models(tmp_path), Options(profile="fast"))
    stranger = PatternEngine().open(pattern_bundle(64, 64, 25))
    with pytest.raises(TypeError, match="PatternSession"):
        engine.launch([PatchRequest(stranger, 0, engine.open(bundle).rest)])
    with pytest.raises(IndexError):
        engine.launch([PatchRequest(engine.open(bundle), POSES, engine.open(bundle).rest)])


def test_its_pace_is_measured_when_it_is_warm(engine: MuseTalkEngine) -> None:
    assert set(engine.pace.seconds) == {1, 2, 4}
    assert engine.capacity(25) == engine.pace.capacity(25)
    assert engine.capacity(1) == int(0.75 * engine.pace.frames_per_second)
    assert isinstance(engine.batch_sizes, tuple) and engine.device == "cpu"


def test_a_session_that_ends_after_its_engine_gives_back_without_an_error(models: Path, bundle: Bundle) -> None:
    """As after a device failure: the engine is closed while its sessions still leave their rooms."""
    broken = MuseTalkEngine(models, OPTIONS)
    session, other = broken.open(bundle), broken.open(bundle)
    broken.close()
    session.close()
    other.close()
    assert broken.memory()["avatars"] == 0
    with pytest.raises(EngineUnavailable, match="closing"):
        broken.open(bundle)


def test_an_engine_releases_every_part_on_a_card_that_refuses_each(
    models: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = MuseTalkEngine(models, OPTIONS)
    broken.open(bundle)
    done: list[str] = []

    def refuse(part: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            done.append(part)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return call

    for part in (broken._encoder, broken.network):
        monkeypatch.setattr(part, "to_empty", refuse(type(part).__name__))
    monkeypatch.setattr(broken.card, "empty_cache", refuse("empty_cache"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        broken.close()
    assert done == [type(broken.network).__name__, type(broken._encoder).__name__, "empty_cache"]
    assert broken.memory()["avatars"] == 0 and not broken._runner._buckets


def test_a_face_that_cannot_be_resized_keeps_no_memory_of_the_card(
    engine: MuseTalkEngine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open(bundle)
    batch = [PatchRequest(session, 0, features(engine, 1)[0])]
    made_by(engine, batch)
    slots = len(engine._runner._slots)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a box of no size")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "patch", broken)
        with pytest.raises(ValueError, match="no size"):
            made_by(engine, batch)
    assert len(engine._runner._slots) == slots > 0
    session.close()


def test_a_shifted_box_has_artefacts_of_its_own(models: Path, tmp_path: Path) -> None:
    """Asked for at the start or set for the agent, it is the same."""
    engine, settings = MuseTalkEngine(models, OPTIONS), AvatarSettings(bbox_shift=8)
    assert engine.fingerprint_with(AvatarSettings(mouth_gain=2, sharpen=1, smoothing="off")) == engine.fingerprint
    assert engine.fingerprint_with(settings) != engine.fingerprint
    assert engine.fingerprint_with(settings) == MuseTalkEngine(models, replace(OPTIONS, bbox_shift=8)).fingerprint
    bundle = clip(tmp_path)
    engine.prepare(bundle, settings=settings)
    assert bundle.engine_path(engine.fingerprint_with(settings)).exists()
    assert not bundle.engine_path(engine.fingerprint).exists()
    moved_down = (
        engine.open(bundle, settings).avatar.artefacts.boxes[:, 1] - engine.open(bundle).avatar.artefacts.boxes[:, 1]
    )
    assert moved_down.tolist() == [16] * POSES  # the middle by 8, the top by twice that


def test_the_gain_moves_what_is_heard_away_from_silence(engine: MuseTalkEngine, bundle: Bundle) -> None:
    window = features(engine, 1)[0]
    usual, half, twice = (engine.open(bundle, AvatarSettings(mouth_gain=gain)) for gain in (1.0, 0.5, 2.0))
    assert usual.heard(window) is window
    for session in (half, twice):
        assert np.array_equal(session.heard(window)[-1], window[-1])  # positions are no sound
    silence = usual.rest[:-1]
    assert np.allclose(half.heard(window)[:-1] - silence, (window[:-1] - silence) / 2, atol=1e-5)
    louder = twice.heard(window)[:-1]
    assert np.allclose(louder, np.minimum(2 * window[:-1] - silence, 1.65), atol=1e-5)
    assert np.array_equal(twice.heard(usual.rest), usual.rest)
