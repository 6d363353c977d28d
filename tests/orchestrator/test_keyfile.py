from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import keys
from orchestrator.keys import KeyRing, KeysError, KeysFile, Scope, operators
from orchestrator.metrics import Metrics
from tests.waiting import NEVER_S, until

OLD, NEW = "the-old-key-of-the-shop", "the-new-key-of-the-shop"


def entry(key: str, **fields: Any) -> dict[str, Any]:
    return {"name": "shop", "scope": "starter", "key": key, **fields}


def write(path: Path, *entries: dict[str, Any]) -> None:
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(entries))
    partial.replace(path)


async def test_keys_change_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, metrics, ring = tmp_path / "keys.json", Metrics(), KeyRing(operators(["operator-key"]))
    errors = lambda: metrics.registry.get_sample_value("avatar_keys_file_errors_total")  # noqa: E731
    write(path, entry(OLD))
    file = KeysFile(path, ring, metrics, poll_s=0.02)
    await file.open()
    try:
        assert ring.find(OLD, time.time()) and not ring.find(NEW, time.time())
        write(path, entry(OLD), entry(NEW))
        await until(lambda: ring.find(NEW, time.time()) is not None)
        assert ring.find(OLD, time.time())
        path.write_text(f'[{{"name": "shop", "key": "{NEW}"')
        await until(lambda: errors() == 1)
        assert ring.find(OLD, time.time()) and ring.find(NEW, time.time())
        path.unlink()
        await until(lambda: errors() == 2)
        assert ring.find(NEW, time.time())
        write(path, entry(NEW))
        await until(lambda: ring.find(OLD, time.time()) is None)
        assert ring.find(NEW, time.time()) and ring.find("operator-key", time.time())
        assert metrics.registry.get_sample_value("avatar_keys") == 2
    finally:
        await file.aclose()
    broken = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(broken) == 2 and NEW not in caplog.text


async def test_a_file_that_is_broken_from_the_start_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(KeysError, match=r"ORCHESTRATOR_KEYS_FILE .*No such file"):
        await KeysFile(path, KeyRing(()), Metrics()).open()
    path.write_text("[{}]")
    with pytest.raises(KeysError, match=r"keys\.json: 0\.name"):
        await KeysFile(path, KeyRing(()), Metrics()).open()
    path.write_bytes(b" " * (keys.MAX_BYTES + 1))
    with pytest.raises(KeysError, match="passes"):
        await KeysFile(path, KeyRing(()), Metrics()).open()


def test_a_new_key_takes_over_the_limits_and_the_files_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([entry(OLD, max_sessions=2, requests_per_second=5)]))
    path.chmod(0o640)
    key, made = keys.new("shop", Scope.STARTER)
    keys.add(path, made)
    ring = KeyRing(())
    ring.replace(keys.read(path))
    caller = ring.find(key, time.time())
    assert caller == ring.find(OLD, time.time()) is not None
    assert caller is not None and caller.limits.max_sessions == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert key not in path.read_text() and os.listdir(tmp_path) == ["keys.json"]


def test_a_broken_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("[")
    with pytest.raises(KeysError):
        keys.add(path, keys.new("shop", Scope.VIEWER)[1])
    assert path.read_text() == "[" and os.listdir(tmp_path) == ["keys.json"]


def test_the_command_prints_a_key_once_and_keeps_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-m", "orchestrator", "key", "new", "--name", "tv", "--scope", "viewer"]
    done = subprocess.run([*command, "--file", str(path)], capture_output=True, text=True, timeout=NEVER_S)
    assert done.returncode == 0 and done.stderr == ""
    key = done.stdout.strip()
    (listed,) = json.loads(path.read_text())
    assert listed["name"] == "tv" and key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = KeyRing(())
    ring.replace(keys.read(path))
    caller = ring.find(key, time.time())
    assert caller is not None and caller.scope is Scope.VIEWER
    failed = subprocess.run(
        [*command, "--file", "/no/such/folder/keys.json"], capture_output=True, text=True, timeout=NEVER_S
    )
    assert failed.returncode == 1 and failed.stdout == "" and "No such file" in failed.stderr
