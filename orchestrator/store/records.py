"""Reads stored records. One that is damaged, hostile or of a newer version is set aside, and the others count."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import from_json

from orchestrator.store.base import VERSION, StoredSession

MAX_RECORD = 256 << 10
"""Bytes of a record; a session with the longest addresses takes 20 KB."""
MAX_RECORDS = 20_000
"""Records that one look at the store reads."""
_MAX_UNREADABLE = 1000
_log = logging.getLogger(__name__)


class Unreadable(Exception):
    """A record cannot be read; the message says why and holds nothing of the record."""


class RecordReader:
    """Reads records. Those it cannot read are logged once and kept in `unreadable`, by id, with the reason.

    A record that has not changed since it was read last is not parsed again.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self.skipped = 0
        """Records set aside so far, each counted when it was first seen."""
        self._read: dict[str, tuple[bytes, StoredSession]] = {}

    def read(self, session_id: str, raw: object) -> StoredSession | None:
        """The record; None for one that cannot be read. `raw` is what the store holds, `MAX_RECORD` bytes at most."""
        known = self._read.get(session_id)
        if known is not None and known[0] == raw:
            return known[1]
        try:
            record = parse(session_id, raw)
        except Unreadable as error:
            self.set_aside(session_id, str(error))
            return None
        self.unreadable.pop(session_id, None)
        self._read[session_id] = (raw if isinstance(raw, bytes) else b"", record)
        return record

    def set_aside(self, session_id: str, reason: str) -> None:
        """Notes a record that cannot be read."""
        self._read.pop(session_id, None)
        if session_id in self.unreadable or len(self.unreadable) >= _MAX_UNREADABLE:
            return
        self.unreadable[session_id] = reason
        self.skipped += 1
        extra = {"session_id": session_id[:64], "reason": reason}
        _log.error("a stored session cannot be read: it is left as it is", extra=extra)

    def keep(self, ids: Iterable[str]) -> None:
        """Forgets what was read of any other session: the store has these only."""
        there = set(ids)
        self._read = {session_id: known for session_id, known in self._read.items() if session_id in there}
        self.unreadable = {session_id: why for session_id, why in self.unreadable.items() if session_id in there}


def parse(session_id: str, raw: object) -> StoredSession:
    """The record of a session. Raises Unreadable."""
    if not isinstance(raw, bytes):
        raise Unreadable(f"it is a {type(raw).__name__}")
    if len(raw) > MAX_RECORD:
        raise Unreadable(f"it passes {MAX_RECORD} bytes")
    try:
        told = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Unreadable("it is not JSON") from error
    version = told.get("version", 1) if isinstance(told, dict) else 1
    if isinstance(version, int) and version > VERSION:
        raise Unreadable(f"it is of version {version}, and this program knows {VERSION}")
    try:
        record = StoredSession.model_validate(told)
        json.dumps(record.view, allow_nan=False)
    except ValidationError as error:
        fields = sorted({str(item["loc"][0])[:40] for item in error.errors() if item["loc"]})
        raise Unreadable(f"wrong fields: {', '.join(fields) or 'all'}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("its view is not JSON") from error
    if record.session_id != session_id:
        raise Unreadable("it names another session")
    return record
