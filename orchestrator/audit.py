"""Who did what: one JSON line each, without texts, identities, room names or addresses."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import threading
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from orchestrator.metrics import Metrics

QUEUE_LINES = 4096
"""Lines that may wait for the disk; past it new ones are left out and counted."""
CLOSE_S = 5.0
_log = logging.getLogger("audit")


class AuditLog:
    """Writes to a file of its own from a thread of its own, or to the logger `audit` when there is no file. Never blocks.

    A file that was moved away is opened anew, so that logrotate needs no signal.
    """

    def __init__(self, path: Path | None, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begins to write. Blocks for a moment. Raises OSError when the file cannot be written."""
        if self._path is None:
            return
        file = _File(self._path, self._metrics)
        self._thread = threading.Thread(target=self._run, args=(file,), name="audit", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, for some seconds at most. Blocks. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._lines.put(None, timeout=CLOSE_S)
        except queue.Full:
            return  # the disk hangs: the thread is a daemon and ends with the process
        thread.join(CLOSE_S)

    def note(
        self, key: str, action: str, outcome: str, *, session_id: str | None = None, code: str | None = None
    ) -> None:
        """`key` names the caller, `outcome` is `ok`, `denied`, `failed` or `aborted`, `code` the error's."""
        fields = {"key": key, "action": action, "session_id": session_id, "outcome": outcome, "code": code}
        known = {name: value for name, value in fields.items() if value is not None}
        if self._thread is None:
            _log.info("audit", extra=known)
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._lines.put_nowait(json.dumps({"at": at, **known}))
        except queue.Full:
            self._metrics.audit_dropped.inc()

    def _run(self, file: _File) -> None:
        while (line := self._lines.get()) is not None:
            try:
                file.emit(logging.makeLogRecord({"msg": line}))
            except OSError:  # it was moved away, and the folder with it
                self._metrics.audit_dropped.inc()
        with suppress(OSError):  # what a full disk did not take is counted already
            file.close()


class _File(WatchedFileHandler):
    """Readable by its owner only. A line that cannot be written is counted."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._metrics = metrics
        super().__init__(path, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600))

    def handleError(self, record: logging.LogRecord) -> None:
        """The disk is full."""
        self._metrics.audit_dropped.inc()
