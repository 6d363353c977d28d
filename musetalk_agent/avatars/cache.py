"""The cache folder: source bytes and bundles by content, replaced whole; the least recently used is evicted first.

    sources/<sha256>      a clip as it was fetched or uploaded
    bundles/<key>/        see `bundle`
    parts/<random>        what is being written; renamed into place when it is whole

All methods touch the disk: call them off the event loop. Several processes may share a folder.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from musetalk_agent.avatars.bundle import HEAD_FILE, Bundle, DamagedBundle, load_bundle
from musetalk_agent.errors import DiskFull

log = logging.getLogger(__name__)

_SOURCES_SHARE = 4
"""Sources get one of so many parts of the cache, bundles the rest: a source is far smaller than its frames."""
_STALE_S = 3600.0
"""Parts older than this belong to a process that died."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WRITTEN = " requested and "
_FULL_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    used: float
    size: int


class AvatarCache:
    """See the module.

    Args:
        folder: made when it is not there.
        capacity_bytes: of sources and bundles together. One in use is never evicted, so that the cache may be larger for a while.
    """

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        self._sources = folder / "sources"
        self._bundles = folder / "bundles"
        self._parts = folder / "parts"
        self._source_bytes = capacity_bytes // _SOURCES_SHARE
        self._bundle_bytes = capacity_bytes - self._source_bytes
        self._held: weakref.WeakValueDictionary[int, Bundle] = weakref.WeakValueDictionary()
        self._tickets = itertools.count()
        self._lock = threading.Lock()
        for path in (self._sources, self._bundles, self._parts):
            path.mkdir(parents=True, exist_ok=True)
        self._clear_stale()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises `DiskFull` in place of an OSError that says that the disk is full."""
        try:
            yield
        except OSError as error:
            # numpy gives no errno when it writes an array, only how much of it was written
            if error.errno not in _FULL and (error.errno is not None or _WRITTEN not in str(error)):
                raise
            log.error("disk full", extra={"folder": str(self._parts)})
            raise DiskFull(
                "The agent's disk is full, so the avatar could not be prepared: free some of it, or lower AVATAR_CACHE_BYTES.",
                retry_after_s=_FULL_RETRY_AFTER_S,
            ) from error

    def part(self) -> Path:
        """A new empty folder to write into."""
        return Path(tempfile.mkdtemp(dir=self._parts))

    def source(self, digest: str) -> Path | None:
        """The source with this sha256, marked as used; None when it is not there."""
        path = self._sources / digest
        return path if _touch(path) else None

    def keep_source(self, part: Path, digest: str) -> Path:
        """Moves a whole file into place as a source."""
        path = self._sources / digest
        part.replace(path)
        _touch(path)
        self._evict(self._sources, self._source_bytes, keep={digest})
        return path

    def bundle(self, key: str) -> Bundle | None:
        """The bundle with this key, marked as used; None when it is not there. A damaged one is removed."""
        folder = self._bundles / key
        if not folder.exists():
            return None
        try:
            bundle = load_bundle(folder, key)
        except DamagedBundle as error:
            log.warning("avatar bundle damaged, building it anew", extra={"key": key, "reason": str(error)})
            self._discard(folder)
            return None
        _touch(folder / HEAD_FILE)
        return bundle

    def hold(self, bundle: Bundle) -> Bundle:
        """Marks a bundle as in use for as long as it is referred to; until then this process does not evict it."""
        with self._lock:
            self._held[next(self._tickets)] = bundle
        return bundle

    def keep_bundle(self, part: Path, key: str) -> Bundle:
        """Moves a whole bundle folder into place and opens it.

        Raises:
            DamagedBundle: what was written cannot be read.
        """
        folder = self._bundles / key
        try:
            part.rename(folder)
        except OSError:
            # Another process was quicker, or something else lies there: theirs is as good as ours if it can be read.
            theirs = self.bundle(key)
            if theirs is not None:
                return theirs
            part.rename(folder)
        bundle = load_bundle(folder, key)
        with self._lock:
            held = {one.path.name for one in self._held.values()}
        self._evict(self._bundles, self._bundle_bytes, keep=held | {key})
        return bundle

    def keep_matte(self, part: Path, folder: Path) -> None:
        """Moves a bundle's matte into place, `folder`, which is within a bundle that is held; another's that is there stays."""
        folder.parent.mkdir(exist_ok=True)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise

    def discard_matte(self, folder: Path) -> None:
        """Removes a matte that is damaged."""
        self._discard(folder)

    def discard_part(self, part: Path) -> None:
        """Removes what `part` gave, if it is still there."""
        shutil.rmtree(part, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        """Renames first, so that no process opens a bundle of which half is gone."""
        aside = self.part() / "gone"
        try:
            path.rename(aside)
        except OSError:
            return
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)

    def _evict(self, folder: Path, capacity: int, keep: set[str]) -> None:
        items = sorted((item for path in folder.iterdir() if (item := _item(path))), key=lambda item: item.used)
        total = sum(item.size for item in items)
        for item in items:
            if total <= capacity:
                return
            if item.path.name not in keep:
                self._discard(item.path)
                total -= item.size

    def _clear_stale(self) -> None:
        for path in self._parts.iterdir():
            try:
                stale = time.time() - path.stat().st_mtime > _STALE_S
            except OSError:
                continue
            if stale:
                shutil.rmtree(path, ignore_errors=True)


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _item(path: Path) -> _Item | None:
    """Size and last use of a source or a bundle; None when it has just been removed."""
    try:
        if path.is_file():
            stat = path.stat()
            return _Item(path, stat.st_mtime, stat.st_size)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        head = path / HEAD_FILE
        used = (head if head.exists() else path).stat().st_mtime
    except OSError:
        return None
    return _Item(path, used, size)
