"""Where the avatar library is kept: a folder, or a bucket with a folder of copies."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.avatars.avatar_folder import IncomingClip
from orchestrator.avatars.avatar_record import AvatarRecord


class AvatarStorage(Protocol):
    """Reads and writes files: its methods block, and are called in threads. What cannot be read or written raises OSError.

    Any number of orchestrators may share it.
    """

    def make(self) -> None:
        """Makes what is not there yet."""

    def records(self) -> list[AvatarRecord]:
        """Every avatar that there is, in no order."""

    def read(self, avatar_id: str) -> AvatarRecord | None:
        """The record; None for what is no avatar, or was written by a version that this one does not understand."""

    def write(self, record: AvatarRecord) -> None:
        """Stores a record, new or known."""

    def poster(self, avatar_id: str) -> Path | None:
        """A file with the poster, JPEG; None before there is one."""

    def write_poster(self, avatar_id: str, data: bytes) -> None:
        """Stores the poster, JPEG; not that of an avatar that was deleted."""

    def delete(self, avatar_id: str) -> None:
        """Removes an avatar; its clips stay until `sweep`."""

    def source(self, source: str) -> Path | None:
        """A file with the bytes of the clip `sha256:…`; None for one that there is not."""

    def incoming(self) -> IncomingClip:
        """A clip that is about to come."""

    def remove_sources(self, sources: set[str]) -> None:
        """Removes clips."""

    def sweep(self, used: set[str]) -> None:
        """Removes what a process that died left: clips that no avatar has, and halves of clips, an hour old at least."""
