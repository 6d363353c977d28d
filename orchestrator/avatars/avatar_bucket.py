"""The avatar library in a bucket, for orchestrators that share no disk. A folder has copies of what was read and written here.

    avatars/<avatar_id>/avatar.json, poster.jpg
    sources/<sha256>

Clips never change and are copied once. Records are asked for each time, and posters when they are newer than their copies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from pydantic import ValidationError

from orchestrator.avatars.avatar_folder import LEFT_S, AvatarFolder, IncomingClip
from orchestrator.avatars.avatar_record import AVATAR_ID, AvatarRecord
from orchestrator.s3_bucket import open_bucket

_DIGEST = "sha256:"
_RECORD, _POSTER = "avatar.json", "poster.jpg"


@contextmanager
def _failing_as_a_disk() -> Iterator[None]:
    """Raises OSError in place of obstore's errors."""
    try:
        yield
    except BaseError as error:
        raise OSError(f"the bucket of avatars: {type(error).__name__}: {str(error)[:300]}") from error


class AvatarBucket:
    """See `AvatarStorage`.

    Args:
        url: as in `open_bucket`.
        folder: where the copies are.

    Raises ValueError for an invalid address.
    """

    def __init__(self, url: str, folder: AvatarFolder) -> None:
        self._bucket, self._folder = open_bucket(url), folder
        self._known: dict[str, tuple[str, AvatarRecord | None]] = {}  # by avatar: the tag of what was read, and that

    @_failing_as_a_disk()
    def make(self) -> None:
        """Makes the folder, and asks whether the bucket can be read."""
        self._folder.make()
        next(iter(obstore.list(self._bucket, prefix="avatars", chunk_size=1)), None)

    @_failing_as_a_disk()
    def records(self) -> list[AvatarRecord]:
        """Reads those that have changed since the last call."""
        tags = {path.split("/")[-2]: tag for path, tag, _ in self._objects("avatars") if path.endswith(f"/{_RECORD}")}
        before, known = self._known, {}
        for name, tag in tags.items():
            last = before.get(name)
            known[name] = last if last is not None and last[0] == tag else (tag, self._read(name))
        self._known = known  # replaced whole: other threads read the one before
        return [record for _, record in known.values() if record is not None]

    @_failing_as_a_disk()
    def read(self, avatar_id: str) -> AvatarRecord | None:
        """See `AvatarStorage.read`."""
        return self._read(avatar_id)

    @_failing_as_a_disk()
    def write(self, record: AvatarRecord) -> None:
        """See `AvatarStorage.write`."""
        data = record.model_dump_json(exclude_unset=False).encode()
        obstore.put(self._bucket, _path(record.avatar_id, _RECORD), data)

    @_failing_as_a_disk()
    def poster(self, avatar_id: str) -> Path | None:
        """See `AvatarStorage.poster`."""
        here, path = self._folder.poster(avatar_id), _path(avatar_id, _POSTER)
        try:
            made = obstore.head(self._bucket, path)["last_modified"].timestamp()
            if here is not None and here.stat().st_mtime > made:
                return here
            data = bytes(obstore.get(self._bucket, path).bytes())
        except FileNotFoundError:
            return None
        if (record := self._read(avatar_id)) is not None:
            self._folder.write(record)  # its folder of copies
        self._folder.write_poster(avatar_id, data)
        return self._folder.poster(avatar_id)

    @_failing_as_a_disk()
    def write_poster(self, avatar_id: str, data: bytes) -> None:
        """See `AvatarStorage.write_poster`."""
        record = self._read(avatar_id)
        if record is None:
            return
        obstore.put(self._bucket, _path(avatar_id, _POSTER), data)
        self._folder.write(record)
        self._folder.write_poster(avatar_id, data)

    @_failing_as_a_disk()
    def delete(self, avatar_id: str) -> None:
        """The record goes first: what is left of a deletion that broke off is no avatar."""
        obstore.delete(self._bucket, [_path(avatar_id, _RECORD)])
        obstore.delete(self._bucket, [_path(avatar_id, _POSTER)])
        self._folder.delete(avatar_id)

    @_failing_as_a_disk()
    def source(self, source: str) -> Path | None:
        """Copies the clip where it is not here yet."""
        if (here := self._folder.source(source)) is not None:
            return here
        copy = self._folder.incoming()
        try:
            for piece in obstore.get(self._bucket, _clip(source)):
                copy.write(bytes(piece))
            return copy.keep()[1]
        except FileNotFoundError:
            return None
        finally:
            copy.drop()

    def incoming(self) -> IncomingClip:
        """It is in the bucket before it is here."""
        return self._folder.incoming(self._store)

    @_failing_as_a_disk()
    def remove_sources(self, sources: set[str]) -> None:
        """See `AvatarStorage.remove_sources`."""
        if sources:
            obstore.delete(self._bucket, [_clip(source) for source in sources])
        self._folder.remove_sources(sources)

    @_failing_as_a_disk()
    def sweep(self, used: set[str]) -> None:
        """See `AvatarStorage.sweep`."""
        kept = {_clip(source) for source in used}
        clips = [(f"sources/{path.rsplit('/', 1)[-1]}", changed) for path, _, changed in self._objects("sources")]
        unused = [path for path, changed in clips if path not in kept and time.time() - changed > LEFT_S]
        if unused:
            obstore.delete(self._bucket, unused)
        self._folder.sweep(used)

    @_failing_as_a_disk()
    def _store(self, source: str, path: Path) -> None:
        obstore.put(self._bucket, _clip(source), path)

    def _read(self, avatar_id: str) -> AvatarRecord | None:
        if not AVATAR_ID.fullmatch(avatar_id):
            return None
        try:
            return AvatarRecord.model_validate_json(bytes(obstore.get(self._bucket, _path(avatar_id, _RECORD)).bytes()))
        except (FileNotFoundError, ValidationError):
            return None

    def _objects(self, prefix: str) -> Iterator[tuple[str, str, float]]:
        """Path, tag, and when it was written (Unix time), of each object."""
        for batch in obstore.list(self._bucket, prefix=prefix):
            for found in batch:
                yield str(found["path"]), str(found["e_tag"]), found["last_modified"].timestamp()


def _path(avatar_id: str, name: str) -> str:
    return f"avatars/{avatar_id}/{name}"


def _clip(source: str) -> str:
    return f"sources/{source.removeprefix(_DIGEST)}"
