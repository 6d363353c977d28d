"""Films in an S3-compatible store (`s3_bucket`): each append is an object of its own, and nothing is written over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError

from orchestrator.recording.film_store import FilmIndex, StoreFailed, StoreThreads, film_name
from orchestrator.s3_bucket import open_bucket

_INDEX = "index.json"
_LISTINGS = 256
"""Films whose objects are remembered."""
_Result = TypeVar("_Result")


class S3FilmStore:
    """A film is `NAME/OFFSET`, one object for each append, and `NAME/index.json`.

    Args:
        url: as in `open_bucket`.

    Raises ValueError for an invalid address.
    """

    flush_s = 10.0
    flush_bytes = 2 << 20

    def __init__(self, url: str) -> None:
        self._store = open_bucket(url)
        self._threads = StoreThreads("films-s3")
        self._parts: OrderedDict[str, list[tuple[int, int]]] = OrderedDict()

    async def append(self, name: str, at: int, data: bytes) -> None:
        """See `FilmStore.append`."""
        before = [part for part in await self._listing(name, at) if part[0] < at]
        await self._call(partial(obstore.put, self._store, f"{film_name(name)}/{at:015d}", data))
        self._keep(name, [*before, (at, len(data))])

    async def read(self, name: str, begin: int, end: int) -> bytes:
        """See `FilmStore.read`."""
        wanted = [
            (at, max(begin, at) - at, min(end, at + size) - at)
            for at, size in await self._listing(name, end)
            if max(begin, at) < min(end, at + size)
        ]

        def read() -> bytes:
            return b"".join(
                bytes(obstore.get_range(self._store, f"{name}/{at:015d}", start=first, end=last))
                for at, first, last in wanted
            )

        return await self._call(read)

    async def save(self, index: FilmIndex) -> None:
        """See `FilmStore.save`."""
        path = f"{film_name(index.session_id)}/{_INDEX}"
        await self._call(partial(obstore.put, self._store, path, index.model_dump_json().encode()))

    async def load(self, name: str) -> FilmIndex | None:
        """See `FilmStore.load`."""
        path = f"{film_name(name)}/{_INDEX}"

        def read() -> FilmIndex | None:
            try:
                return FilmIndex.model_validate_json(bytes(obstore.get(self._store, path).bytes()))
            except (FileNotFoundError, ValueError):
                return None

        return await self._call(read)

    async def delete(self, name: str) -> None:
        """See `FilmStore.delete`. The index goes last: what is left of a deletion that broke off is found again."""
        self._parts.pop(film_name(name), None)

        def remove() -> None:
            paths = [path for path, _, _ in self._objects(f"{name}/")]
            for path in sorted(paths, key=lambda path: path.endswith(_INDEX)):
                obstore.delete(self._store, path)

        await self._call(remove)

    async def expired(self, before: float) -> list[str]:
        """See `FilmStore.expired`."""

        def look() -> list[str]:
            found = [(path, changed) for path, _, changed in self._objects("") if path.endswith(f"/{_INDEX}")]
            return [path.split("/")[-2] for path, changed in found if changed < before]

        return await self._call(look)

    async def aclose(self) -> None:
        """Lets the threads go."""
        self._threads.close()

    def _objects(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Path, size, and when it was written (Unix time), of each object. Blocks."""
        for batch in obstore.list(self._store, prefix=prefix or None):
            for found in batch:
                yield str(found["path"]), int(found["size"]), found["last_modified"].timestamp()

    async def _listing(self, name: str, end: int) -> list[tuple[int, int]]:
        """Offset and size of the film's objects, in order; remembered where they reach byte `end`."""
        known = self._parts.get(film_name(name))
        if known is not None and (not end or (known and known[-1][0] + known[-1][1] >= end)):
            return known

        def look() -> list[tuple[int, int]]:
            named = [(path.rsplit("/", 1)[-1], size) for path, size, _ in self._objects(f"{name}/")]
            return sorted((int(offset), size) for offset, size in named if offset.isdigit())

        found = await self._call(look)
        self._keep(name, found)
        return found

    def _keep(self, name: str, parts: list[tuple[int, int]]) -> None:
        self._parts[name] = parts
        self._parts.move_to_end(name)
        if len(self._parts) > _LISTINGS:
            self._parts.popitem(last=False)

    async def _call(self, work: Callable[[], _Result]) -> _Result:
        try:
            return await self._threads.run(work)
        except BaseError as error:
            raise StoreFailed(f"{type(error).__name__}: {str(error)[:300]}") from error
