"""Which frames lend their lips, what is steadied over time, and what is kept on disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.arrays import DamagedArrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp import WarpEngine
from musetalk_agent.engines.warp.artefacts import FILE, WarpArtefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, closed
from musetalk_agent.engines.warp.engine import IDLE_PATCHES_FILE as QUIET
from musetalk_agent.engines.warp.engine import WarpSession, _load, _save, closed_mouth_patches
from musetalk_agent.engines.warp.enlarged import FILE as MOUTHS
from musetalk_agent.engines.warp.idle_shapes import (
    APART,
    BENT,
    MOST,
    _shares,
    apertures,
    chosen,
    closed_to,
    explained,
    fallen,
    nearest,
    outlines,
    over_time,
    rest_shapes,
    settled,
    steadied,
    whole_chins,
)
from musetalk_agent.engines.warp.mouth_space import eye_frame, mesh_shape, to_mouth
from musetalk_agent.media_types import Box, Patch
from tests.musetalk_agent.engines.warp import faces

POINTS = faces.demo_points()
ANGLE = st.floats(-0.9, 0.9)
POSES = st.lists(st.tuples(ANGLE, ANGLE, st.floats(0, 0.2)), min_size=1, max_size=40)


@given(POSES, st.data())
def test_every_pose_is_near_a_reference_that_it_can_borrow_from(
    idle_shapes: list[tuple[float, float, float]], drawn: st.DataObject
) -> None:
    angles = np.array([idle_index[:2] for idle_index in idle_shapes], np.float32)
    openness = np.array([idle_index[2] for idle_index in idle_shapes], np.float32)
    usable = np.array(sorted(drawn.draw(st.sets(st.integers(0, len(idle_shapes) - 1), min_size=1))), np.int64)
    first = int(usable[openness[usable].argmin()])
    found = chosen(angles, openness, usable, first)
    assert found[0] == first and len(set(found.tolist())) == len(found) <= MOST and set(found) <= set(usable)
    if len(found) < MOST:
        away = np.linalg.norm(angles[:, None] - angles[found][None], axis=2).min(1)
        shut = usable[openness[usable] <= closed_to(float(openness[first]))]
        assert away[usable].max() <= BENT + 1e-6 and away[shut].max(initial=0) <= APART + 1e-6


@given(POSES)
def test_a_pose_shows_the_nearest_reference_and_a_reference_itself(
    idle_shapes: list[tuple[float, float, float]],
) -> None:
    angles = np.array([idle_index[:2] for idle_index in idle_shapes], np.float32)
    references = np.unique(np.array([0, len(idle_shapes) // 2, len(idle_shapes) - 1], np.int64))
    shown = nearest(angles, references)
    for idle_index, choice in enumerate(shown):
        away = np.linalg.norm(angles[idle_index] - angles[references], axis=1)
        assert away[choice] == away.min()
    assert all(np.linalg.norm(angles[references[shown[k]]] - angles[k]) == 0 for k in references)


def test_between_closed_lips_and_open_ones_closed_ones_are_shown_further() -> None:
    """With lips 0.12 apart at 45° and closed ones at 0°, the change is at 34°; of two closed ones it is half way."""
    angles = np.radians([[k, 0] for k in range(46)]).astype(np.float32)
    openness, references = np.zeros(46, np.float32), np.array([0, 45], np.int64)
    assert np.flatnonzero(nearest(angles, references, openness))[0] == 23
    openness[45] = 0.12
    shown = nearest(angles, references, openness)
    assert np.flatnonzero(shown)[0] == 34 and shown[45] == 1


def test_a_still_head_has_one_reference() -> None:
    assert chosen(np.zeros((30, 2), np.float32), np.full(30, 0.01, np.float32), np.arange(30), 7).tolist() == [7]


@given(st.floats(0, 0.2), st.floats(20, 300), st.floats(-3, 3))
def test_how_open_lips_are_does_not_depend_on_the_face_s_size_or_tilt(gap: float, eyes: float, angle: float) -> None:
    here = apertures(faces.placed(faces.opened(POINTS, gap), (0, 0), eyes, angle)[None])
    there = apertures(faces.opened(POINTS, gap)[None])
    assert here == pytest.approx(there, abs=1e-3)


@pytest.mark.parametrize(("below", "whole"), [(200, True), (9, True), (3, False), (-20, False)])
def test_a_chin_is_whole_when_there_is_room_below_it(below: int, whole: bool) -> None:
    """The room is 4 % of the eyes' distance: five pixels here."""
    points = faces.placed(POINTS, (320, 240), 125)
    height = int(points[152, 1]) + 1 + below
    assert whole_chins(points[None], 640, height).tolist() == [whole]


@given(st.integers(1, 40), st.floats(-5, 5, width=32), st.floats(0.5, 4))
def test_smoothing_keeps_what_stands_still(count: int, value: float, sigma: float) -> None:
    rows = np.full((count, 3), value, np.float32)
    assert over_time(rows, sigma) == pytest.approx(rows, abs=1e-4)


@given(st.integers(3, 40), st.integers(0, 99))
def test_smoothing_makes_nothing_larger_and_the_same_backwards(count: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    made = steadied(rows)
    assert made.shape == rows.shape and np.isfinite(made).all()
    assert (made.max(0) <= rows.max(0) + 1e-5).all() and (made.min(0) >= rows.min(0) - 1e-5).all()
    assert steadied(np.ascontiguousarray(rows[::-1]))[::-1] == pytest.approx(made, abs=1e-5)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_the_references_shares_of_a_pose_sum_to_one(count: int, references: int, seed: int) -> None:
    shown = np.random.default_rng(seed).integers(0, references, count)
    shares = _shares(shown, references)
    assert shares.shape == (count, references) and shares.min() >= -1e-6
    assert shares.sum(1) == pytest.approx(np.ones(count), abs=1e-4)


@given(st.integers(0, 99))
def test_what_goes_with_the_head_isexplained_and_noise_is_not(seed: int) -> None:
    source = np.random.default_rng(seed)
    angles = source.uniform(-0.5, 0.5, (200, 2)).astype(np.float32)
    turn, nod = angles.T
    driven_by = np.stack([turn, nod + turn * nod], 1) * 0.2
    noise = source.normal(0, 0.02, (200, 2))
    found = explained((driven_by + noise).astype(np.float32), angles)
    left = driven_by - driven_by.mean(0) - found
    assert left.std() < 0.25 * driven_by.std()


def test_a_head_that_stands_still_explains_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert not explained(rows, np.zeros((50, 2), np.float32)).any()


def shapes(gaps: list[float]) -> list:
    made = []
    for gap in gaps:
        points = faces.opened(POINTS, gap)
        made.append(mesh_shape(to_mouth(eye_frame(points), points)))
    return made


def test_a_mouth_that_stands_still_is_settled_as_it_is() -> None:
    meshes = shapes([0.02] * 12)
    angles, references = np.zeros((12, 2), np.float32), np.zeros(1, np.int64)
    made = settled(meshes, angles, (meshes[0],), references, np.zeros(12, np.int64))
    for shape, mesh in zip(made, meshes, strict=True):
        assert np.abs(shape.curves - mesh.curves).max() < 1e-4 and shape.half == pytest.approx(mesh.half, abs=1e-5)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 0.15), min_size=3, max_size=12), st.floats(0, 1))
def test_at_rest_every_pose_has_its_lips_together(gaps: list[float], smile: float) -> None:
    idle_shapes = tuple(shapes(gaps))
    first = int(np.argmin(gaps))
    references, shown = np.array([first], np.int64), np.zeros(len(gaps), np.int64)
    rests = rest_shapes(
        idle_shapes,
        (idle_shapes[first],),
        references,
        shown,
        fallen(list(idle_shapes), np.zeros((len(gaps), 2), np.float32)),
        smile,
    )
    assert len(rests) == len(gaps)
    for rest in rests:
        assert rest.opening < 1e-4 and rest.half == pytest.approx(closed(idle_shapes[first]).half, abs=1e-5)


def test_an_upright_face_s_outline_is_beside_its_mouth_on_both_sides() -> None:
    points = faces.placed(POINTS, (320, 240), 120)
    frame = eye_frame(points)
    rest = closed(mesh_shape(to_mouth(frame, points)))
    sides = outlines(frame[None], points[None], (rest,))
    assert sides.shape == (1, 2) and (sides > rest.half).all() and (sides < 1.2).all()


SIZE = (320, 320)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    points = [faces.placed(faces.opened(POINTS, gap), (160, 200), 80) for gap in (0.0, 0.1, 0.1)]
    pictures = [faces.drawn(one, SIZE) for one in points]
    return faces.bundle_of(tmp_path_factory.mktemp("drawn"), pictures, points)


@pytest.fixture(scope="module")
def artefacts(bundle: Bundle) -> WarpArtefacts:
    return WarpArtefacts.of(bundle)


def test_artefacts_come_back_as_they_were_saved(artefacts: WarpArtefacts, bundle: Bundle, tmp_path: Path) -> None:
    artefacts.save(bundle, tmp_path / "a")
    loaded = WarpArtefacts.load(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {FILE, MOUTHS}
    for name in ("frames", "references", "shown", "sides", "light", "parts"):
        assert np.array_equal(getattr(loaded, name), getattr(artefacts, name)), name
    for name in ("idle_shapes", "rests", "shapes"):
        for one, other in zip(getattr(loaded, name), getattr(artefacts, name), strict=True):
            assert np.array_equal(one.curves, other.curves)
            assert (one.centre, one.half) == pytest.approx((other.centre, other.half), abs=1e-6)
    assert loaded.top == artefacts.top and loaded.reference == artefacts.reference
    assert np.array_equal(loaded.palette.upper.tile, artefacts.palette.upper.tile)


def replaced(**arrays: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[Path], None]:
    """Writes the file anew with some arrays changed, or left out."""

    def change(path: Path) -> None:
        with np.load(path) as stored:
            kept = {name: stored[name] for name in stored.files}
        for name, how in arrays.items():
            if how is None:
                del kept[name]
            else:
                kept[name] = how(kept[name])
        np.savez(path, **kept)

    return change


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "emptied": emptied,
    "another number of samples": replaced(curves=lambda curves: curves[..., :-1]),
    "a shape too few": replaced(curves=lambda curves: curves[:-1], sizes=lambda sizes: sizes[:-1]),
    "curves without sizes": replaced(sizes=lambda sizes: sizes[:-1]),
    "an idle frame too few": replaced(frames=lambda frames: frames[:-1]),
    "another reference": replaced(references=lambda references: np.append(references, 0)),
    "nothing of an idle frame": replaced(shown=lambda shown: shown[:-1]),
    "no colours": replaced(palette=None),
    "no frames": replaced(frames=None),
    "a row of teeth too few": replaced(teeth=lambda teeth: teeth[:1]),
    "a colour too few": replaced(palette=lambda palette: palette[:2]),
    "an array and no archive": lambda path: not path.write_bytes(npy(np.zeros(3))),
    "objects": replaced(light=lambda light: np.array([print], object)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_artefacts_that_are_not_whole_are_noticed_and_made_again(
    artefacts: WarpArtefacts,
    bundle: Bundle,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = WarpEngine(faces.NoFeatures())
    folder = bundle.engine_path(engine.fingerprint)
    artefacts.save(bundle, folder)
    DAMAGE[damage](folder / FILE)
    with pytest.raises(DamagedArrays, match=FILE):
        WarpArtefacts.load(folder)
    monkeypatch.setattr(WarpArtefacts, "of", lambda _: artefacts)
    engine.open(bundle)
    assert "made again" in caplog.text
    assert np.array_equal(WarpArtefacts.load(folder).frames, artefacts.frames)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_of_a_file_is_one_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    """A flag of an archive that is not known, a shape that no memory holds: none of it may end a session's start."""
    path = tmp_path_factory.getbasetemp() / QUIET
    _save(path.parent, (None, patch(2, 4, 6)))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    try:
        assert len(_load(path, 2)) == 2
    except DamagedArrays as error:
        assert QUIET in str(error)


@pytest.mark.parametrize("signature", [b"PK\x01\x02", b"PK\x03\x04"], ids=["directory", "entries"])
def test_every_byte_of_an_archive_s_records_may_be_wrong(tmp_path: Path, signature: bytes) -> None:
    _save(tmp_path, (None, patch(2, 4, 6)))
    whole = (tmp_path / QUIET).read_bytes()
    start = whole.index(signature)
    for place in range(start, start + 46):
        for value in (0x00, 0x41, 0xFF):
            (tmp_path / QUIET).write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with suppress(DamagedArrays):
                _load(tmp_path / QUIET, 2)


def test_a_save_that_fails_leaves_what_was_there(
    artefacts: WarpArtefacts, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefacts.save(bundle, tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        artefacts.save(bundle, tmp_path)
    assert (tmp_path / FILE).read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {FILE, MOUTHS}


def patch(x: int, width: int, height: int) -> Patch:
    pixels = np.random.default_rng(x).integers(0, 256, (height, width, 3), np.uint8)
    return Patch(Box(x, 2, x + width, 2 + height), pixels)


@pytest.mark.parametrize(
    "patches", [(), (None,), (patch(2, 4, 6),), (None, patch(2, 4, 6), None, patch(8, 2, 2), patch(4, 10, 8))]
)
def test_closed_lips_of_a_talking_clip_come_back_frame_by_frame(
    tmp_path: Path, patches: tuple[Patch | None, ...]
) -> None:
    _save(tmp_path, patches)
    loaded = _load(tmp_path / QUIET, len(patches))
    assert [path.name for path in tmp_path.iterdir()] == [QUIET]
    for one, other in zip(loaded, patches, strict=True):
        if other is None or one is None:
            assert one is other is None
        else:
            assert one.box == other.box and np.array_equal(one.pixels, other.pixels)
    with pytest.raises(DamagedArrays, match=f"{len(patches)} patches for"):
        _load(tmp_path / QUIET, len(patches) + 1)


def test_a_talking_clip_gets_a_patch_for_each_frame_once(
    bundle: Bundle, artefacts: WarpArtefacts, tmp_path: Path
) -> None:
    made = closed_mouth_patches(bundle, artefacts, tmp_path)
    assert len(made) == 3 and all(one is not None for one in made)
    (tmp_path / QUIET).write_bytes((tmp_path / QUIET).read_bytes()[:100])
    again = closed_mouth_patches(bundle, artefacts, tmp_path)
    for one, other in zip(made, again, strict=True):
        assert one is not None and other is not None and np.array_equal(one.pixels, other.pixels)
    assert len(_load(tmp_path / QUIET, 3)) == 3


FEATURES = st.lists(st.floats(-2, 2, width=32), min_size=FEATURE_SIZE, max_size=FEATURE_SIZE)


@settings(max_examples=12)
@given(FEATURES, st.floats(-0.5, 1.5), st.integers(0, 2))
def test_any_request_is_a_patch_in_its_face_window_or_none(
    bundle: Bundle, values: list[float], blend_weight: float, idle_index: int
) -> None:
    engine = WarpEngine(faces.NoFeatures())
    session = engine.open(bundle)
    request = PatchRequest(session, idle_index, np.array(values, np.float32), blend_weight)
    (made,) = engine.launch([request]).patches()
    (again,) = engine.launch([request]).patches()
    assert made is not None and again is not None and np.array_equal(made.pixels, again.pixels)
    window, box = bundle.box(idle_index), made.box
    assert window.x0 <= box.x0 < box.x1 <= window.x1 and window.y0 <= box.y0 < box.y1 <= window.y1
    assert all(value % 2 == 0 for value in (box.x0, box.y0, box.x1, box.y1))
    assert made.pixels.shape == (box.height, box.width, 3) and made.mask is None


@given(FEATURES, st.floats(0, 1))
def test_on_the_way_to_rest_a_mouth_does_less_of_the_same(values: list[float], amount: float) -> None:
    feature = np.array(values, np.float32)
    made = WarpSession.fade_to_silence(None, feature, amount)  # type: ignore[arg-type]  # it needs nothing of the session
    assert made.dtype == np.float32 and (np.abs(made) <= np.abs(feature)).all()
    assert (made * feature >= 0).all()
