"""The folder of the avatar library. Its methods read and write the disk: call them in a thread.

    avatars/<avatar_id>/
        avatar.json     the record; put in place whole
        poster.jpg
    sources/<sha256>    the bytes of clips, as they came

A clip that several avatars have is there once. What happened is what files there are, so that any number of orchestrators may share
the folder.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from orchestrator.avatars.avatar_record import AVATAR_ID, AvatarRecord

_DIGEST = "sha256:"
_POSTER = "poster.jpg"
LEFT_S = 3600.0
"""What is here and of no use is left alone for so long: another process may be about to use it."""


class AvatarFolder:
    """See the module. A disk that fails raises OSError."""

    def __init__(self, root: Path) -> None:
        self._avatars, self._sources = root / "avatars", root / "sources"

    def make(self) -> None:
        """Makes the folders where they are not there."""
        for folder in (self._avatars, self._sources):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def records(self) -> list[AvatarRecord]:
        """Every avatar that there is, in no order."""
        return [record for name in os.listdir(self._avatars) if (record := self.read(name)) is not None]

    def read(self, avatar_id: str) -> AvatarRecord | None:
        """The record; None for what is no avatar, or was written by a version that this one does not understand."""
        if not AVATAR_ID.fullmatch(avatar_id):
            return None
        try:
            return AvatarRecord.model_validate_json((self._avatars / avatar_id / "avatar.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, record: AvatarRecord) -> None:
        """Stores a record, new or known."""
        folder = self._avatars / record.avatar_id
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder / f".avatar.{secrets.token_hex(4)}"
        made.write_text(record.model_dump_json(exclude_unset=False))
        made.replace(folder / "avatar.json")

    def poster(self, avatar_id: str) -> Path | None:
        """The file of the poster; None before there is one."""
        path = self._avatars / avatar_id / _POSTER
        return path if path.is_file() else None

    def write_poster(self, avatar_id: str, data: bytes) -> None:
        """Stores the poster, JPEG."""
        folder = self._avatars / avatar_id
        made = folder / f".poster.{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):  # the avatar was deleted meanwhile
            made.write_bytes(data)
            made.replace(folder / _POSTER)

    def delete(self, avatar_id: str) -> None:
        """Removes an avatar; its clips stay until `sweep`."""
        shutil.rmtree(self._avatars / avatar_id, ignore_errors=True)

    def source(self, source: str) -> Path | None:
        """The file with a clip's bytes; None where it is not here."""
        path = self._sources / source.removeprefix(_DIGEST)
        return path if path.is_file() else None

    def incoming(self, store: Callable[[str, Path], None] | None = None) -> IncomingClip:
        """A clip that is about to come. `store` takes its name and its file when it is whole, before it is put in place."""
        return IncomingClip(self._sources, store)

    def remove_sources(self, sources: set[str]) -> None:
        """Removes clips."""
        for source in sources:
            (self._sources / source.removeprefix(_DIGEST)).unlink(missing_ok=True)

    def sweep(self, used: set[str]) -> None:
        """Removes what a process that died left: clips that no avatar has, and halves of clips, an hour old at least."""
        kept = {source.removeprefix(_DIGEST) for source in used}
        for entry in os.scandir(self._sources):
            with suppress(FileNotFoundError):
                if entry.name not in kept and time.time() - entry.stat().st_mtime > LEFT_S:
                    os.unlink(entry.path)


class IncomingClip:
    """Writes and hashes a clip's bytes as they come. `keep` or `drop` ends it. `store` as in `AvatarFolder.incoming`."""

    def __init__(self, folder: Path, store: Callable[[str, Path], None] | None = None) -> None:
        self._folder, self._store = folder, store
        self._path = folder / f".{secrets.token_hex(8)}"
        self._file = self._path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes) -> None:
        """More bytes."""
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def keep(self) -> tuple[str, Path]:
        """Puts the clip in place; returns its name (`sha256:…`) and its file."""
        self._file.close()
        name = self._digest.hexdigest()
        if self._store is not None:
            self._store(_DIGEST + name, self._path)
        path = self._folder / name
        self._path.replace(path)
        return _DIGEST + name, path

    def drop(self) -> None:
        """Removes what is not kept. Safe to call after `keep`."""
        self._file.close()
        self._path.unlink(missing_ok=True)
