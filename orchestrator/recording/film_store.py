"""The interface of film stores, and the store that is a folder."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel

from musetalk_agent.protocol.http import RecordingState
from orchestrator.recording.film_joiner import JoinState

_Result = TypeVar("_Result")
_THREADS = 4
_CALL_S = 30.0
_NAME = re.compile(r"[A-Za-z0-9_]{1,80}")


class StoreFailed(Exception):
    """The store could not be read or written; the message says why."""


class FilmOf(StrEnum):
    """Whom a film shows: the avatar, or all of its room by LiveKit Egress."""

    AVATAR = "avatar"
    ROOM = "room"


class FilmIndex(BaseModel):
    """What is known of a film beside its bytes.

    `key` and `public_token` name whose it is. `size` bytes of it are stored. `dropped_frames` and `lost_audio` (blocks) were not
    encoded in time, `lost` fragments not fetched in time. `log_id` and `entry` say how far the agent's log is stored. Times are
    Unix. A film of a room has `egress_id`, once it is there `room_s` seconds, or `error` says why there is none.
    """

    session_id: str
    key: str = ""
    public_token: str = ""
    state: RecordingState = RecordingState.RECORDING
    skip_idle: bool = False
    width: int | None = None
    height: int | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    size: int = 0
    parts: int = 0
    frames: int = 0
    dropped_frames: int = 0
    lost_audio: int = 0
    lost: int = 0
    log_id: str = ""
    entry: int = 0
    join: JoinState = JoinState()
    of: FilmOf = FilmOf.AVATAR
    egress_id: str = ""
    room_s: float = 0.0
    error: str = ""


class FilmStore(Protocol):
    """Keeps films by name: bytes that are only appended, and an index. Every method raises StoreFailed; cancelling is safe.

    Attributes:
        flush_s, flush_bytes: how long, and how much, it is worth to wait before an append.
    """

    flush_s: float
    flush_bytes: int

    async def append(self, name: str, at: int, data: bytes) -> None:
        """Writes `data` at byte `at`; what was there behind it is gone."""
        ...

    async def read(self, name: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`, or fewer where the film ends before."""
        ...

    async def save(self, index: FilmIndex) -> None:
        """Writes the index."""
        ...

    async def load(self, name: str) -> FilmIndex | None:
        """The index, or None where there is no such film, or none that can be read."""
        ...

    async def delete(self, name: str) -> None:
        """Removes film and index; any number of times."""
        ...

    async def expired(self, before: float) -> list[str]:
        """Names of the films that were changed last before that time (Unix)."""
        ...

    async def aclose(self) -> None:
        """Frees what it holds."""
        ...


def film_name(name: str) -> str:
    """The name, which is part of a path. Raises StoreFailed for one that no film has."""
    if not is_name(name):
        raise StoreFailed(f"{name[:80]!r} is no name of a film")
    return name


def is_name(name: str) -> bool:
    """Whether a film may have this name."""
    return _NAME.fullmatch(name) is not None


class StoreThreads:
    """Threads of a store's own: a disk or a network that hangs takes these and no others."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, name)

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """The result of `work`. Raises what it raises; StoreFailed for an OSError, and when it takes longer than 30 s.

        Cancelling leaves the work to its thread.
        """
        try:
            async with asyncio.timeout(_CALL_S):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except TimeoutError as error:
            raise StoreFailed(f"no answer within {_CALL_S:g} s") from error
        except OSError as error:
            raise StoreFailed(f"{error.strerror or error or type(error).__name__}: {error.filename}") from error

    def close(self) -> None:
        """Takes no more work, and waits for none."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class FolderStore:
    """`NAME.mp4` and `NAME.json` in one folder, which several orchestrators may share."""

    flush_s = 0.5
    flush_bytes = 1 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = StoreThreads("films-folder")

    async def append(self, name: str, at: int, data: bytes) -> None:
        """See `FilmStore.append`."""
        path = self._path(name, "mp4")

        def write() -> None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(path, "r+b" if path.exists() else "w+b") as film:
                film.truncate(at)
                film.seek(at)
                film.write(data)

        await self._threads.run(write)

    async def read(self, name: str, begin: int, end: int) -> bytes:
        """See `FilmStore.read`."""
        path = self._path(name, "mp4")

        def read() -> bytes:
            with open(path, "rb") as film:
                film.seek(begin)
                return film.read(max(0, end - begin))

        return await self._threads.run(read)

    async def save(self, index: FilmIndex) -> None:
        """See `FilmStore.save`; the file is replaced in one step."""
        path, text = self._path(index.session_id, "json"), index.model_dump_json()

        def write() -> None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_suffix(".tmp")
            draft.write_text(text, "utf-8")
            os.replace(draft, path)

        await self._threads.run(write)

    async def load(self, name: str) -> FilmIndex | None:
        """See `FilmStore.load`."""
        path = self._path(name, "json")

        def read() -> FilmIndex | None:
            try:
                return FilmIndex.model_validate_json(path.read_bytes())
            except (FileNotFoundError, ValueError):
                return None

        return await self._threads.run(read)

    async def delete(self, name: str) -> None:
        """See `FilmStore.delete`."""
        paths = [self._path(name, kind) for kind in ("mp4", "json", "tmp")]

        def remove() -> None:
            for path in paths:
                path.unlink(missing_ok=True)

        await self._threads.run(remove)

    async def expired(self, before: float) -> list[str]:
        """See `FilmStore.expired`."""

        def look() -> list[str]:
            if not self._folder.exists():
                return []
            files = [path for path in self._folder.iterdir() if path.suffix in (".mp4", ".json")]
            newest: dict[str, float] = {}
            for path in files:
                with suppress(FileNotFoundError):  # another orchestrator deletes films in this folder, too
                    newest[path.stem] = max(newest.get(path.stem, 0.0), path.stat().st_mtime)
            return [name for name, at in newest.items() if at < before and is_name(name)]

        return await self._threads.run(look)

    async def aclose(self) -> None:
        """Lets the threads go."""
        self._threads.close()

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / f"{film_name(name)}.{kind}"
