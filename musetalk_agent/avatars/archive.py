"""Zip archives of frames: what is refused before anything is unpacked, and the order of the rest.

Nothing is ever extracted to disk: an entry's bytes go from the archive to the image decoder. The policy is here all the
same, because an archive with such entries was not made by an honest packer.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge, AvatarUndecodable, AvatarUnsafeArchive

PICTURE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".avif", ".heic", ".heif", ".hif"}
)
_ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_SMALL_ENTRY_BYTES = 1 << 20
"""Entries below this are not checked for their ratio: a flat image packs absurdly well and does no harm."""
_END_BYTES = 22
_COMMENT_BYTES_MAX = 65_535
_DIRECTORY_ENTRY_BYTES = (46, 1024)
"""Least and most bytes of the directory that one entry may take (PKWARE APPNOTE 4.3.12; names up to about 900 bytes)."""
_DIRECTORY_BYTES_FREE = 64 << 10
"""A directory below this is parsed whatever its end record says of the number of entries."""
_ZIP64_LOCATOR_BYTES, _ZIP64_END_BYTES = 20, 56
_NUMBER = re.compile(r"(\d+)")


def natural_key(name: str) -> list[tuple[str | int, ...]]:
    """Sort key under which `frame_2` comes before `frame_10`, folder by folder, whatever the case.

    Numbers are compared by their length and digits, never converted: a name may hold thousands of digits.
    """
    parts: list[tuple[str | int, ...]] = []
    for folder in name.split("/"):
        key: list[str | int] = []
        for k, part in enumerate(_NUMBER.split(folder)):
            if k % 2:
                digits = "".join(str(unicodedata.decimal(digit)) for digit in part).lstrip("0")
                key += [len(digits), digits]
            else:
                key.append(part.casefold())
        parts.append(tuple(key))
    return [*parts, (name,)]


class FrameArchive:
    """A checked zip of images. `names` are its frames in natural order; `read` may be called from several threads.

    Raises:
        AvatarUndecodable: it is not a whole zip.
        AvatarUnsafeArchive: an entry climbs out, is a link, is encrypted, overlaps another or unpacks beyond reason.
        AvatarTooLarge: too many entries or bytes.
        AvatarEmpty: no image in it.
    """

    def __init__(self, path: Path, limits: AvatarLimits) -> None:
        self._limits = limits
        _check_directory_size(path, limits)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, struct.error, NotImplementedError, OverflowError, ValueError) as error:
            raise AvatarUndecodable("The zip archive is damaged or cut short: its directory cannot be read.") from error
        with ExitStack() as stack:
            stack.callback(self._zip.close)
            entries = self._zip.infolist()
            _check(entries, path.stat().st_size, limits)
            self._entries = _frames(entries)
            self.names: Sequence[str] = sorted(self._entries, key=natural_key)
            self._check_frames(entries)
            stack.pop_all()  # it stays open for `read`

    def _check_frames(self, entries: list[zipfile.ZipInfo]) -> None:
        if not self.names:
            seen = f"; it holds {entries[0].orig_filename[:80]!r}" if entries else ""
            raise AvatarEmpty(f"The archive has no PNG, JPEG, WebP, GIF, AVIF or HEIC picture in it{seen}.")
        if len(self.names) > self._limits.frames:
            raise AvatarTooLarge(
                f"The archive has {len(self.names)} pictures; at most {self._limits.frames} are allowed.",
                limit=self._limits.frames,
                value=len(self.names),
            )

    def read(self, name: str, most: int | None = None) -> bytes:
        """Unpacked bytes of a frame, or the first `most` of them; never more than its directory entry promises (which was checked
        against the limit).

        Raises:
            AvatarUndecodable: the packed bytes are damaged.
        """
        try:
            with self._zip.open(self._entries[name]) as file:
                return file.read(self._limits.zip_entry_bytes if most is None else most)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            struct.error,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise AvatarUndecodable(f"{name!r} in the archive is damaged: it does not unpack.") from error

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._zip.close()


def _check_directory_size(path: Path, limits: AvatarLimits) -> None:
    """Reads the archive's end records, so that a directory of millions of entries is refused before it is parsed.

    A zip64 record counts only where `zipfile` reads it, right before its locator. An archive whose locator points elsewhere has two
    records that may say different things, and is refused.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _COMMENT_BYTES_MAX))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < _END_BYTES:
            raise AvatarUndecodable("The zip archive is cut short: its directory at the end is missing.")
        count, directory_bytes = struct.unpack_from("<HI", tail, at + 10)
        end = size - len(tail) + at
        file.seek(max(0, end - _ZIP64_LOCATOR_BYTES - _ZIP64_END_BYTES))
        before = file.read(end - file.tell())
    locator, record = before[-_ZIP64_LOCATOR_BYTES:], before[:-_ZIP64_LOCATOR_BYTES]
    if locator[:4] == b"PK\x06\x07":
        (offset,) = struct.unpack_from("<Q", locator, 8)
        if offset != end - len(before) or record[:4] != b"PK\x06\x06" or len(record) != _ZIP64_END_BYTES:
            raise AvatarUndecodable("The zip archive is damaged: its zip64 end record does not lie before its locator.")
        count, directory_bytes = struct.unpack_from("<QQ", record, 32)
    least, most = _DIRECTORY_ENTRY_BYTES
    if count > limits.zip_entries or directory_bytes > limits.zip_entries * most:
        entries = max(count, directory_bytes // most)
        raise AvatarTooLarge(
            f"The archive has {entries} entries; at most {limits.zip_entries} are allowed.",
            limit=limits.zip_entries,
            value=entries,
        )
    if not count * least <= directory_bytes <= max(count * most, _DIRECTORY_BYTES_FREE):
        raise AvatarUndecodable(
            f"The zip archive is damaged: its directory of {directory_bytes} bytes does not fit its {count} entries."
        )


def _check(entries: list[zipfile.ZipInfo], archive_bytes: int, limits: AvatarLimits) -> None:
    if len(entries) > limits.zip_entries:
        raise AvatarTooLarge(
            f"The archive has {len(entries)} entries; at most {limits.zip_entries} are allowed.",
            limit=limits.zip_entries,
            value=len(entries),
        )
    names = set()
    for entry in entries:
        _check_name(entry)
        _check_kind(entry)
        _check_cost(entry, limits)
        if entry.orig_filename in names:
            raise _unsafe(entry, "is in the archive twice")
        names.add(entry.orig_filename)
    total = sum(entry.file_size for entry in entries)
    if total > limits.zip_bytes:
        raise AvatarTooLarge(
            f"The archive unpacks to {total} bytes; at most {limits.zip_bytes} are allowed.",
            limit=limits.zip_bytes,
            value=total,
        )
    _check_overlap(entries, archive_bytes)


def _check_name(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name):
        raise _unsafe(entry, "has an absolute path")
    if ".." in parts:
        raise _unsafe(entry, "climbs out of the archive with '..'")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise _unsafe(entry, "has a control character in its name")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise _unsafe(entry, "is a symbolic link")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(entry, "is a device, a pipe or a socket")
    if entry.flag_bits & _ENCRYPTED_FLAGS:
        raise _unsafe(entry, "is encrypted")
    if PurePosixPath(entry.orig_filename).suffix.lower() in _ARCHIVE_SUFFIXES:
        raise _unsafe(entry, "is an archive within the archive")
    if entry.compress_type not in _METHODS:
        raise AvatarUndecodable(
            f"{_shown(entry)} is packed by method {entry.compress_type}; pack it stored or deflated.",
            value=entry.compress_type,
        )


def _check_cost(entry: zipfile.ZipInfo, limits: AvatarLimits) -> None:
    if entry.file_size > _SMALL_ENTRY_BYTES and entry.file_size > limits.zip_ratio * max(1, entry.compress_size):
        raise AvatarUnsafeArchive(
            f"{_shown(entry)} unpacks to {entry.file_size} bytes from {entry.compress_size}: more than "
            f"{limits.zip_ratio} times its packed size.",
            limit=limits.zip_ratio,
            value=entry.file_size // max(1, entry.compress_size),
        )
    if entry.file_size > limits.zip_entry_bytes:
        raise AvatarTooLarge(
            f"{_shown(entry)} unpacks to {entry.file_size} bytes; at most {limits.zip_entry_bytes} are allowed.",
            limit=limits.zip_entry_bytes,
            value=entry.file_size,
        )


def _check_overlap(entries: list[zipfile.ZipInfo], archive_bytes: int) -> None:
    """Entries that share their packed bytes are how a small archive becomes petabytes."""
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if entry.header_offset < end:
            raise _unsafe(entry, "overlaps another entry")
        end = entry.header_offset + entry.compress_size
        if end > archive_bytes:
            raise AvatarUndecodable(f"The zip archive is cut short: {_shown(entry)} is not wholly in it.")


def _frames(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Entries that may be frames, by name. A GIF among other images is a preview of them."""
    frames = {entry.orig_filename: entry for entry in entries if _is_frame(entry)}
    return {name: entry for name, entry in frames.items() if not name.lower().endswith(".gif")} or frames


def _is_frame(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.orig_filename.replace("\\", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not entry.is_dir() and not hidden and path.suffix.lower() in PICTURE_SUFFIXES


def _shown(entry: zipfile.ZipInfo) -> str:
    return repr(entry.orig_filename[:120])


def _unsafe(entry: zipfile.ZipInfo, what: str) -> AvatarUnsafeArchive:
    return AvatarUnsafeArchive(f"{_shown(entry)} {what}; pack plain pictures.", value=entry.orig_filename[:120])
