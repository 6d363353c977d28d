from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.archive import FrameArchive, natural_key
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarTooLarge

from .clips import archive, encoded, face

PNG = encoded(face(64))


def names(tmp_path: Path, entries: list[str], limits: AvatarLimits | None = None) -> list[str]:
    path = tmp_path / "a.zip"
    path.write_bytes(archive([(name, PNG) for name in entries], zipfile.ZIP_STORED))
    opened = FrameArchive(path, limits or AvatarLimits())
    opened.close()
    return list(opened.names)


def test_natural_order(tmp_path: Path) -> None:
    assert names(tmp_path, ["f10.png", "f9.png", "F1.png", "f100.png"]) == ["F1.png", "f9.png", "f10.png", "f100.png"]


def test_order_goes_folder_by_folder(tmp_path: Path) -> None:
    given_names = ["b/1.png", "a 10/2.png", "a 10/10.png", "a 9/5.png", "1.png"]
    assert names(tmp_path, given_names) == ["1.png", "a 9/5.png", "a 10/2.png", "a 10/10.png", "b/1.png"]


def test_what_packers_leave_behind_is_passed_over(tmp_path: Path) -> None:
    clutter = ["__MACOSX/._0.png", "clip/.DS_Store", "clip/._0.png", "clip/Thumbs.db", "clip/read me.txt", "clip/"]
    assert names(tmp_path, [*clutter, "clip/0.PNG", "clip/1.jpeg", "clip/2.webp"]) == [
        "clip/0.PNG",
        "clip/1.jpeg",
        "clip/2.webp",
    ]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, unique=True))
def test_any_names_can_be_compared_and_the_order_is_total(unsorted: list[str]) -> None:
    once = sorted(unsorted, key=natural_key)
    assert sorted(once[1:] + once[:1], key=natural_key) == once


def test_frame_limit_is_named(tmp_path: Path) -> None:
    with pytest.raises(AvatarTooLarge) as caught:
        names(tmp_path, ["0.png", "1.png", "2.png"], AvatarLimits(frames=2))
    assert (caught.value.limit, caught.value.value) == (2, 3)
