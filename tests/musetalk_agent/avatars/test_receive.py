"""Bytes of a clip as they come: looked at, counted, hashed, and kept only when they are whole."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.receive import Receiver
from musetalk_agent.avatars.sniff import PICTURES, SNIFF_BYTES, Kind
from musetalk_agent.errors import AvatarEmpty, AvatarError, AvatarTooLarge, AvatarUndecodable

LIMIT = 3 << 20
LIMITS = replace(AvatarLimits(), source_bytes=LIMIT)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
ACCEPTED = PICTURES | {Kind.ZIP}


def receiver(folder: Path, name: str = "the picture of the request") -> Receiver:
    return Receiver(AvatarCache(folder, 1 << 30), LIMITS, name, ACCEPTED)


async def received(folder: Path, pieces: list[bytes]) -> tuple[Path, str]:
    async with receiver(folder) as made:
        for piece in pieces:
            await made.write(piece)
        return await made.finish()


def left(folder: Path) -> list[str]:
    """Whatever lies in the cache's folders, but for their own names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent != folder)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 700), max_size=6))
def test_any_pieces_give_the_same_file_and_its_digest(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    places = sorted({0, len(PNG), *(min(cut, len(PNG)) for cut in cuts)})
    pieces = [PNG[a:b] for a, b in itertools.pairwise(places)]
    path, digest = asyncio.run(received(folder, pieces))
    assert digest == hashlib.sha256(PNG).hexdigest() == path.name
    assert path.read_bytes() == PNG and left(folder) == [f"sources/{digest}"]


async def test_a_file_larger_than_a_block_is_written_as_it_comes(tmp_path: Path) -> None:
    data = PNG + bytes((1 << 20) + 5)
    async with receiver(tmp_path) as made:
        await made.write(data)
        (part,) = (path for path in tmp_path.rglob("source"))
        assert part.stat().st_size == len(data), "it waits for no more"
        path, digest = await made.finish()
    assert path.stat().st_size == len(data) and digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("extra", "passes"), [(0, True), (1, False)])
async def test_the_limit_is_the_last_byte_that_is_taken(tmp_path: Path, extra: int, passes: bool) -> None:
    pieces = [PNG, bytes(LIMIT - len(PNG) + extra)]
    if passes:
        await received(tmp_path, pieces)
        return
    with pytest.raises(AvatarTooLarge, match=f"^The picture of the request has more than {LIMIT} bytes") as caught:
        await received(tmp_path, pieces)
    assert caught.value.limit == LIMIT and left(tmp_path) == []


async def test_what_it_is_not_is_said_as_soon_as_it_can_be_known(tmp_path: Path) -> None:
    """After the first bytes, not after the whole of a large upload."""
    async with receiver(tmp_path) as made:
        await made.write(b"<html>" + bytes(SNIFF_BYTES - 7))
        with pytest.raises(AvatarUndecodable):
            await made.write(b"\0")


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (b"", AvatarEmpty, "The picture of the request is empty (0 bytes)."),
        (b"<html></html>", AvatarUndecodable, "looks like an HTML page; expected is "),
        (b"OggS" + bytes(60), AvatarUndecodable, "Export the video as MP4 (H.264)."),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(40), AvatarUndecodable, "looks like an MP4 or MOV video"),
    ],
)
async def test_what_is_not_accepted_is_named_with_what_is(
    tmp_path: Path, data: bytes, error: type[AvatarError], told: str
) -> None:
    with pytest.raises(error) as caught:
        await received(tmp_path, [data] if data else [])
    assert told in caught.value.detail and left(tmp_path) == []


async def test_all_that_is_accepted_is_listed(tmp_path: Path) -> None:
    with pytest.raises(AvatarUndecodable) as caught:
        await received(tmp_path, [b"text"])
    assert all(kind.value in caught.value.detail for kind in ACCEPTED) and " or " in caught.value.detail
    assert caught.value.value == Kind.TEXT.value


async def test_leaving_before_the_end_leaves_nothing(tmp_path: Path) -> None:
    async with receiver(tmp_path) as made:
        await made.write(PNG * 600)
    assert left(tmp_path) == []


async def test_being_cancelled_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def upload() -> None:
        async with receiver(tmp_path) as made:
            await made.write(PNG * 600)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload())
    await begun.wait()
    assert left(tmp_path) != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(tmp_path) == []


async def test_two_of_the_same_bytes_at_once_are_one_source(tmp_path: Path) -> None:
    results = await asyncio.gather(*[received(tmp_path, [PNG]) for _ in range(4)])
    assert len(set(results)) == 1 and left(tmp_path) == [f"sources/{results[0][1]}"]


async def test_a_receiver_that_was_not_entered_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not entered"):
        made = receiver(tmp_path)
        await made.write(PNG)
        await made.finish()
