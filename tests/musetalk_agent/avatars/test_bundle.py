"""A bundle on disk: what was written comes back, and anything else is damage that is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.avatars.bundle import (
    HEAD_FILE,
    SCHEMA_VERSION,
    ArrayWriter,
    Bundle,
    DamagedBundle,
    load_bundle,
    read_rows,
    write_head,
)
from musetalk_agent.media_types import Box
from musetalk_agent.protocol.http import AvatarReport

KEY, FRAMES, WIDTH, HEIGHT = "k" * 16, 3, 8, 6
ARRAYS: dict[str, np.ndarray] = {
    "frames": np.arange(FRAMES * HEIGHT * 3 // 2 * WIDTH, dtype=np.uint8).reshape(FRAMES, HEIGHT * 3 // 2, WIDTH),
    "landmarks": np.full((FRAMES, 468, 2), 3.5, np.float32),
    "boxes": np.array([[0, 0, 4, 2], [2, 2, 6, 4], [4, 4, 8, 6]], np.int32),
    "faces": np.zeros((FRAMES, 2, 4, 3), np.uint8),
    "mouths": np.array([0.0, 0.25, 1.0], np.float32),
}


def written(folder: Path, **other: np.ndarray) -> Path:
    """A bundle's folder, with some of its arrays replaced."""
    folder.mkdir(exist_ok=True)
    for name, array in (ARRAYS | other).items():
        np.save(folder / f"{name}.npy", array)
    report = AvatarReport(avatar_id="a", frames=FRAMES, width=WIDTH, height=HEIGHT, fps=25)
    write_head(folder, KEY, 25, report)
    return folder


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    bundle = load_bundle(written(tmp_path), KEY)
    for name, array in ARRAYS.items():
        assert np.array_equal(getattr(bundle, name), array), name
    assert (bundle.width, bundle.height, bundle.fps, len(bundle), bundle.report.avatar_id) == (8, 6, 25, 3, "a")


def test_its_arrays_cannot_be_written_to_and_frames_are_mapped(tmp_path: Path) -> None:
    bundle = load_bundle(written(tmp_path), KEY)
    assert isinstance(bundle.frames, np.memmap) and isinstance(bundle.faces, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        bundle.frames[0, 0, 0] = 1


def test_it_stays_readable_when_its_folder_is_gone(tmp_path: Path) -> None:
    """The cache throws out what another process may be showing."""
    bundle = load_bundle(written(tmp_path / "b"), KEY)
    shutil.rmtree(tmp_path / "b")
    assert np.array_equal(bundle.frames, ARRAYS["frames"])


NOT_A_NUMBER = ARRAYS["landmarks"].copy()
NOT_A_NUMBER[1, 7, 0] = np.nan
DAMAGED: dict[str, dict[str, np.ndarray]] = {
    "one frame less": {"frames": ARRAYS["frames"][:2]},
    "no frame": {"frames": ARRAYS["frames"][:0]},
    "frames of another height": {"frames": ARRAYS["frames"][:, :-1]},
    "frames of another kind": {"frames": ARRAYS["frames"].astype(np.int16)},
    "points of another mesh": {"landmarks": ARRAYS["landmarks"][:, :400]},
    "double points": {"landmarks": ARRAYS["landmarks"].astype(np.float64)},
    "a point that is no number": {"landmarks": NOT_A_NUMBER},
    "an infinite point": {"landmarks": np.where(NOT_A_NUMBER == 3.5, NOT_A_NUMBER, np.inf).astype(np.float32)},
    "a window left of the picture": {"boxes": ARRAYS["boxes"] - np.int32(2)},
    "a window right of the picture": {"boxes": ARRAYS["boxes"] + np.int32(2)},
    "an empty window": {"boxes": ARRAYS["boxes"][:, [0, 1, 0, 3]], "faces": np.zeros((3, 2, 0, 3), np.uint8)},
    "windows in 64 bits": {"boxes": ARRAYS["boxes"].astype(np.int64)},
    "faces of another size": {"faces": np.zeros((FRAMES, 4, 2, 3), np.uint8)},
    "faces without colour": {"faces": np.zeros((FRAMES, 2, 4), np.uint8)},
    "more of a mouth than all": {"mouths": np.array([0, 1, 1.01], np.float32)},
    "less of a mouth than none": {"mouths": np.array([-0.01, 1, 1], np.float32)},
    "a mouth that is no number": {"mouths": np.array([np.nan, 1, 1], np.float32)},
    "a mouth too many": {"mouths": np.ones(FRAMES + 1, np.float32)},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_array_that_does_not_fit_is_damage(tmp_path: Path, damage: str) -> None:
    with pytest.raises(DamagedBundle):
        load_bundle(written(tmp_path, **DAMAGED[damage]), KEY)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), HEAD_FILE])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "longer", "a folder"])
def test_a_file_that_is_not_whole_is_damage(tmp_path: Path, name: str, how: str) -> None:
    path = written(tmp_path) / name
    data = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"\0"}[how])
    if how == "longer" and name in ("landmarks.npy", "boxes.npy", "mouths.npy"):
        assert np.array_equal(load_bundle(tmp_path, KEY).boxes, ARRAYS["boxes"]), "numpy reads what it needs"
    else:
        with pytest.raises(DamagedBundle):
            load_bundle(tmp_path, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": SCHEMA_VERSION - 1},
        {"schema": str(SCHEMA_VERSION)},
        {"key": "another"},
        {"report": None},
        {"report": {"frames": "many"}},
        {"width": None},
        {"fps": "fast"},
        {"width": WIDTH + 2},
        {"height": float("inf")},
    ],
    ids=str,
)
def test_a_head_that_says_something_else_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path) / HEAD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedBundle):
        load_bundle(tmp_path, KEY)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"head"'])
def test_a_head_that_is_no_object_is_damage(tmp_path: Path, text: str) -> None:
    (written(tmp_path) / HEAD_FILE).write_text(text)
    with pytest.raises(DamagedBundle):
        load_bundle(tmp_path, KEY)


SIGNS = b"()[]{}'\",:0129LfFT\\\n #\0\xff"
HEADER = st.lists(st.tuples(st.integers(0, 127), st.sampled_from(SIGNS)), min_size=1, max_size=3)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(st.sampled_from(sorted(ARRAYS)), HEADER)
def test_any_damage_of_an_array_s_header_is_noticed_or_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    """numpy parses headers as Python, and raises whatever the parser raises: a bundle would never be made again."""
    folder = written(tmp_path_factory.getbasetemp() / "headers")
    data = bytearray((folder / f"{name}.npy").read_bytes())
    for place, value in changes:
        data[place] = value
    (folder / f"{name}.npy").write_bytes(data)
    try:
        bundle = load_bundle(folder, KEY)
    except DamagedBundle:
        return
    assert len(bundle) == FRAMES and getattr(bundle, name).shape == ARRAYS[name].shape


@pytest.mark.parametrize("header", [b"{'shape': (3, 9, 8,", b"{'descr': 010}", b"'" * 3, b"{" * 99])
def test_a_header_that_is_no_python_is_damage(tmp_path: Path, header: bytes) -> None:
    path = written(tmp_path) / "frames.npy"
    path.write_bytes(path.read_bytes()[:10] + header.ljust(118) + path.read_bytes()[128:])
    with pytest.raises(DamagedBundle):
        load_bundle(tmp_path, KEY)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    folder = written(tmp_path)
    np.save(folder / "mouths.npy", np.array([print, print, print], object), allow_pickle=True)
    with pytest.raises(DamagedBundle, match="pickle"):
        load_bundle(folder, KEY)


def some(tmp_path: Path, mouths: list[float] | None) -> Bundle:
    report = AvatarReport(avatar_id="a", frames=FRAMES, width=WIDTH, height=HEIGHT, fps=25)
    shares = None if mouths is None else np.array(mouths, np.float32)
    arrays = [ARRAYS[name] for name in ("frames", "landmarks", "boxes", "faces")]
    return Bundle(tmp_path, WIDTH, HEIGHT, 25, *arrays, report, shares)


@pytest.mark.parametrize(
    ("mouths", "best"),
    [
        (None, [0, 1, 2]),
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 0.5], [1]),
        ([0, 0.25, 0.5], [1, 2]),
        ([0, 0, 0], [0, 1, 2]),
    ],
)
def test_the_frames_that_show_their_mouths_best(tmp_path: Path, mouths: list[float] | None, best: list[int]) -> None:
    bundle = some(tmp_path, mouths)
    assert bundle.with_mouth().tolist() == best
    assert [bundle.mouth(pose) for pose in range(FRAMES)] == ([1.0] * 3 if mouths is None else mouths)


def test_windows_and_folders_are_by_the_pose_and_the_engine(tmp_path: Path) -> None:
    bundle = some(tmp_path, None)
    assert bundle.box(1) == Box(2, 2, 6, 4)
    assert bundle.engine_path("warp-1") == tmp_path / "engines" / "warp-1"
    assert bundle.engine_path("warp-1") != bundle.engine_path("warp-2")


@settings(max_examples=40)
@given(st.integers(1, 6), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.data())
def test_any_rows_are_read_from_any_place(
    tmp_path_factory: pytest.TempPathFactory, count: int, shape: tuple[int, int], drawn: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.npy"
    rows = np.random.default_rng(count).integers(0, 255, (count, *shape), np.uint8)
    writer = ArrayWriter(path)
    for row in rows:
        writer.append(row.T.copy().T)
    writer.close()
    start = drawn.draw(st.integers(0, count))
    many = drawn.draw(st.one_of(st.none(), st.integers(0, count - start)))
    found = list(read_rows(path, start, many))
    assert [row.tolist() for row in found] == rows[start : None if many is None else start + many].tolist()
    assert np.array_equal(np.load(path), rows)


def test_a_row_of_another_shape_is_refused_and_what_was_written_stays(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a.npy")
    writer.append(np.ones((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"row of shape \(3, 2\) in an array of \(2, 3\)"):
        writer.append(np.ones((3, 2), np.uint8))
    writer.close()
    writer.close()
    assert np.load(tmp_path / "a.npy").shape == (1, 2, 3) and writer.rows == 1


def test_a_writer_that_got_no_row_leaves_no_array(tmp_path: Path) -> None:
    ArrayWriter(tmp_path / "a.npy").close()
    assert (tmp_path / "a.npy").stat().st_size == 0
    with pytest.raises(ValueError):
        list(read_rows(tmp_path / "a.npy"))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "another version": lambda data: data[:6] + b"\x02" + data[7:],
    "not an array": lambda data: b"PNG" + data[3:],
    "fortran's order": lambda data: data.replace(b"'fortran_order': False", b"'fortran_order': True "),
    "signed rows": lambda data: data.replace(b"|u1", b"|i1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_of_another_file_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.uint8))
    path.write_bytes(CHANGES[change](path.read_bytes()))
    with pytest.raises(ValueError):
        list(read_rows(path))


ROWS = np.random.default_rng(2).integers(0, 255, (7, 6, 10, 3), np.uint8)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    writer = ArrayWriter(tmp_path / "a.npy")
    for row in ROWS:
        writer.append(row)
    writer.close()
    return tmp_path / "a.npy"


def test_rows_come_back_one_by_one(rows_file: Path) -> None:
    assert np.array_equal(np.stack(list(read_rows(rows_file))), ROWS)
    assert np.array_equal(np.stack(list(read_rows(rows_file, 2, 3))), ROWS[2:5])
    assert np.array_equal(np.load(rows_file), ROWS)


def test_a_file_that_is_cut_or_of_another_kind_is_no_array(rows_file: Path, tmp_path: Path) -> None:
    rows_file.write_bytes(rows_file.read_bytes()[:-1])
    with pytest.raises(ValueError):
        list(read_rows(rows_file))
    np.save(tmp_path / "b.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="other rows"):
        list(read_rows(tmp_path / "b.npy"))
