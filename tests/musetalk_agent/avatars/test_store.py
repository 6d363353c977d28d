from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.avatars.store import ArrayWriter, read_rows

ROWS = np.random.default_rng(2).integers(0, 255, (7, 6, 10, 3), np.uint8)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    writer = ArrayWriter(tmp_path / "a.npy")
    for row in ROWS:
        writer.append(row)
    writer.close()
    return tmp_path / "a.npy"


def test_rows_come_back_one_by_one(written: Path) -> None:
    assert np.array_equal(np.stack(list(read_rows(written))), ROWS)
    assert np.array_equal(np.stack(list(read_rows(written, 2, 3))), ROWS[2:5])
    assert np.array_equal(np.load(written), ROWS)


def test_a_file_that_is_cut_or_of_another_kind_is_no_array(written: Path, tmp_path: Path) -> None:
    written.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(ValueError):
        list(read_rows(written))
    np.save(tmp_path / "b.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="other rows"):
        list(read_rows(tmp_path / "b.npy"))
