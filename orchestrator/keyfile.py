"""The keys file: read when it changes, and added to by `musetalk-orchestrator key new`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator.keys import NAME, Key, KeyEntry, KeyRing, KeysError, Scope, digest, generate, parse
from orchestrator.metrics import Metrics
from orchestrator.supervisor import supervise

POLL_S = 1.0
MAX_BYTES = 1 << 20
_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


class KeysFile:
    """Keeps a key ring at what the file says. A file that is broken or gone changes nothing and is told in the log."""

    def __init__(self, path: Path, ring: KeyRing, metrics: Metrics, poll_s: float = POLL_S) -> None:
        self._path = path
        self._ring = ring
        self._metrics = metrics
        self._poll_s = poll_s
        self._stamp: _Stamp | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Reads the file and watches it from now on. Raises KeysError when it cannot be used."""
        try:
            self._stamp = await asyncio.to_thread(_stamp, self._path)
            self._ring.replace(await asyncio.to_thread(read, self._path))
        except OSError as error:
            raise KeysError(f"ORCHESTRATOR_KEYS_FILE {self._path}: {error.strerror}") from error
        except KeysError as error:
            raise KeysError(f"ORCHESTRATOR_KEYS_FILE {self._path}: {error}") from error
        self._metrics.keys.set(len(self._ring))
        self._watching = asyncio.create_task(supervise("keys-file", self._watch, self._metrics), name="keys-file")

    async def aclose(self) -> None:
        """Stops watching. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._look()

    async def _look(self) -> None:
        try:
            stamp = await asyncio.to_thread(_stamp, self._path)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._ring.replace(await asyncio.to_thread(read, self._path))
        except (OSError, KeysError) as error:
            self._metrics.keys_file_errors.inc()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            _log.error("the keys file is broken; the keys of before still count", extra={"reason": reason})
            return
        self._metrics.keys.set(len(self._ring))
        _log.info("keys read", extra={"keys": len(self._ring)})


def _stamp(path: Path) -> _Stamp:
    """What changes when the file does."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def read(path: Path) -> tuple[Key, ...]:
    """The file's keys. Blocks. Raises OSError, KeysError."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise KeysError(f"it passes {MAX_BYTES} bytes")
    return parse(data)


def new(name: str, scope: Scope) -> tuple[str, KeyEntry]:
    """A new key, and the entry that makes it count: the entry holds only the key's hash. Raises KeysError."""
    if not re.fullmatch(NAME, name):
        raise KeysError(f"the name {name[:64]!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
    key = generate()
    return key, KeyEntry(name=name, scope=scope, sha256=digest(key).hex())


def add(path: Path, entry: KeyEntry) -> None:
    """Adds an entry to the file, which is made when it is missing, readable by its owner only. Blocks.

    It gets the limits of the other keys of its name. The file is replaced whole, so that no reader sees half of it. Raises
    OSError, and KeysError when the file is broken already.
    """
    old = path.read_bytes() if path.exists() else b"[]"
    same = [key.caller for key in parse(old) if key.caller.name == entry.name]
    limits = asdict(same[0].limits) if same else {}
    added = entry.model_copy(update=limits).model_dump(mode="json", exclude_none=True)
    text = json.dumps([*json.loads(old), added], indent=2) + "\n"
    KeyRing(()).replace(parse(text))
    handle, partial = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _resemble(partial, path.stat())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            os.unlink(partial)


def _resemble(path: str, like: os.stat_result) -> None:
    """The same owner, so that the service can still read what root has written, and the same mode."""
    with suppress(PermissionError):
        os.chown(path, like.st_uid, like.st_gid)
    os.chmod(path, like.st_mode & 0o777)
