from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from orchestrator import audit
from orchestrator.audit import AuditLog
from orchestrator.metrics import Metrics
from tests.waiting import NEVER_S, wait_until


def dropped(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("avatar_audit_dropped_total")


def test_lines_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    path, metrics = tmp_path / "audit.log", Metrics()
    log = AuditLog(path, metrics)
    log.open()
    log.note("shop", "start", "ok", session_id="ses_a")
    log.note("-", "stop", "denied", code="unauthorized")
    log.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.pop("at").endswith("Z") and second.pop("at").endswith("Z")
    assert first == {"key": "shop", "action": "start", "session_id": "ses_a", "outcome": "ok"}
    assert second == {"key": "-", "action": "stop", "outcome": "denied", "code": "unauthorized"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert dropped(metrics) == 0 and "audit" not in {thread.name for thread in threading.enumerate()}
    log.close()


def test_without_a_file_they_are_in_the_services_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = AuditLog(None, Metrics())
    log.open()
    log.note("shop", "start", "ok", session_id="ses_a")
    log.close()
    (record,) = caplog.records
    assert (record.name, record.__dict__["key"], record.__dict__["action"]) == ("audit", "shop", "start")


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log = AuditLog(path, Metrics())
    log.open()
    log.note("shop", "start", "ok")
    wait_until(path.read_text)
    path.rename(moved)
    log.note("shop", "stop", "ok")
    log.close()
    assert json.loads(moved.read_text())["action"] == "start"
    assert json.loads(path.read_text())["action"] == "stop"


def test_a_disk_that_hangs_costs_lines_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUEUE_LINES", 4)
    hangs, metrics = threading.Event(), Metrics()

    def emit(self: object, record: logging.LogRecord) -> None:
        hangs.wait(NEVER_S)

    monkeypatch.setattr(audit._File, "emit", emit)
    log = AuditLog(tmp_path / "audit.log", metrics)
    log.open()
    for _ in range(20):
        log.note("shop", "start", "ok")
    assert (dropped(metrics) or 0) >= 15  # one is being written, four wait
    hangs.set()
    log.close()


def test_a_full_disk_is_counted() -> None:
    metrics = Metrics()
    log = AuditLog(Path("/dev/full"), metrics)
    log.open()
    log.note("shop", "start", "ok")
    log.close()
    assert dropped(metrics) == 1


def test_a_folder_that_is_gone_costs_lines_only(tmp_path: Path) -> None:
    folder, metrics = tmp_path / "logs", Metrics()
    folder.mkdir()
    log = AuditLog(folder / "audit.log", metrics)
    log.open()
    folder.rename(tmp_path / "old")
    log.note("shop", "start", "ok")
    wait_until(lambda: dropped(metrics))
    folder.mkdir()
    log.note("shop", "stop", "ok")
    log.close()
    assert dropped(metrics) == 1
    assert json.loads((folder / "audit.log").read_text())["action"] == "stop"


def test_a_file_that_cannot_be_made_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AuditLog(tmp_path / "no" / "audit.log", Metrics()).open()
