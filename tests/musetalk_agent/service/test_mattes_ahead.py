"""Mattes that are made after their avatars are ready: one at a time, when nothing better is to be done."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.protocol.http import DEMO_AVATAR_ID
from musetalk_agent.service import mattes_ahead
from musetalk_agent.service.mattes_ahead import WAITING_MOST, MattesAhead
from tests.musetalk_agent.service.served import agent
from tests.waiting import turns, until


class Named(list[None]):
    """A bundle of so many frames of 100×100 pixels."""

    def __init__(self, name: str, frames: int) -> None:
        super().__init__([None] * frames)
        self.path, self.width, self.height = Path(name), 100, 100


class Library:
    """Makes mattes at once, but for names that begin with `no`."""

    def __init__(self) -> None:
        self.made: list[str] = []

    async def matte(self, bundle: Bundle) -> None:
        if bundle.path.name.startswith("no"):
            raise WeightsMissing("there is no network")
        self.made.append(bundle.path.name)


def ahead(library: Library, speaking: list[int]) -> MattesAhead:
    return MattesAhead(cast("AvatarLibrary", library), 1_000_000, lambda: speaking[0])


def bundle(name: str, frames: int = 1) -> Bundle:
    """As much of a bundle as is looked at."""
    return cast("Bundle", Named(name, frames))


async def test_they_are_made_one_after_the_other_while_no_session_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mattes_ahead, "_LOOK_S", 0.0)
    monkeypatch.setattr(mattes_ahead, "_AFTER_S", 0.0)
    library, speaking = Library(), [1]
    made = ahead(library, speaking)
    for name in ("one", "none", "two"):
        made.want(bundle(name))
    made.want(bundle("large", frames=5))
    task = asyncio.create_task(made.run())
    try:
        await turns()
        assert not library.made
        speaking[0] = 0
        await until(lambda: library.made == ["one", "two"])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_oldest_go_where_too_many_wait() -> None:
    made = ahead(Library(), [0])
    for k in range(WAITING_MOST + 3):
        made.want(bundle(str(k)))
    assert made._waiting[0][1].path.name == "3" and len(made._waiting) == WAITING_MOST


@pytest.mark.parametrize("background", ["keep", "blur"])
async def test_a_prepared_avatar_has_its_matte_soon(
    tmp_path: Path, background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mattes_ahead, "_AFTER_S", 0.0)
    async with agent(tmp_path, engine="warp") as here:
        body = {
            "avatar": {"avatar_id": DEMO_AVATAR_ID},
            "engine": "warp",
            "avatar_settings": {"background": background},
            "picture": {"width": 160, "height": 160},
        }
        answer = await here.http.post("/avatars/prepare", json=body)
        assert '"prepared"' in answer.text, answer.text
        assert background == "keep" or list(tmp_path.rglob("mattes/*/alpha.npy")), "its settings ask for one"
        await until(lambda: bool(list(tmp_path.rglob("mattes/*/alpha.npy"))))
