"""Arrays in files: whole or not at all when they are written, whole or one error when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.arrays import DamagedArrays, damage_errors, load_array, map_array, open_arrays, save_arrays
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.features.mouth_network import MouthNetwork


def test_what_was_saved_comes_back_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a.npz", {"one": np.arange(6).reshape(2, 3), "number": 1.5})
    save_arrays(tmp_path / "a.npz", {"one": np.arange(4), "number": 2.5})
    with open_arrays(tmp_path / "a.npz") as stored:
        assert stored["one"].tolist() == [0, 1, 2, 3] and float(stored["number"]) == 2.5
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_nothing_there_is_not_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_arrays(tmp_path / "a.npz"):
        raise AssertionError("there is nothing to read")


def test_a_reader_that_finds_something_else_says_that_the_file_is_damaged(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a.npz", {"one": np.zeros(3)})
    with pytest.raises(DamagedArrays, match=r"a\.npz: KeyError"), open_arrays(tmp_path / "a.npz") as stored:
        stored["two"]
    with pytest.raises(DamagedArrays, match="3 instead of 4"), open_arrays(tmp_path / "a.npz"):
        raise ValueError("3 instead of 4")


def test_a_mistake_in_the_code_that_reads_is_no_damage() -> None:
    with pytest.raises(AssertionError), damage_errors("a.npz"):
        raise AssertionError("a mistake")
    with pytest.raises(KeyboardInterrupt), damage_errors("a.npz"):
        raise KeyboardInterrupt


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=np.array([print], object))
    with pytest.raises(DamagedArrays, match="pickle"), open_arrays(tmp_path / "a.npz") as stored:
        stored["one"]


@pytest.mark.parametrize("place", ["PK directory", "magic", "end"])
def test_weights_of_the_mouth_network_that_are_damaged_are_reported_as_such(tmp_path: Path, place: str) -> None:
    path = tmp_path / "mouth.npz"
    save_arrays(path, {"conv.w": np.zeros((2, 2), np.float16)})
    data = bytearray(path.read_bytes())
    at = {"PK directory": data.index(b"PK\x01\x02") + 10, "magic": 0, "end": len(data) - 20}[place]
    path.write_bytes(data[:at] + bytes([data[at] ^ 0x63]) + data[at + 1 :])
    with pytest.raises(WeightsMissing, match=r"mouth\.npz"):
        MouthNetwork.load(path)


def test_a_header_that_was_not_parsed_is_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load, failures = tmp_path / "a.npy", np.load, 2
    np.save(path, np.arange(6).reshape(2, 3))

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise SystemError("AST constructor recursion depth mismatch (before=54, after=107)")
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", failing)
    assert np.array_equal(load_array(path), [[0, 1, 2], [3, 4, 5]])
    failures = 1
    assert isinstance(map_array(path), np.memmap)
    failures = 99
    with pytest.raises(SystemError):
        load_array(path)
