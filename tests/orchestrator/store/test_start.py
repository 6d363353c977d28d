"""What the program says of a store that it cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import NEVER_S

ENVIRONMENT = {
    "LIVEKIT_URL": "ws://127.0.0.1:9",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "secretsecretsecretsecretsecret00",
    "ORCHESTRATOR_API_KEY": "key",
    "AGENT_URL": "http://127.0.0.1:9",
    "AGENT_API_KEY": "key",
}


@pytest.mark.parametrize("kind", ["path", "no database"])
def test_it_is_said_in_a_sentence(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "o.db"
    file.write_bytes(b"no database at all, but as long as one" * 50)
    wrong, said = {
        "path": ({"STORE_PATH": str(file / "below.db")}, "File exists"),
        "no database": ({"STORE_PATH": str(file)}, "not a database"),
    }[kind]
    command = [sys.executable, "-m", "orchestrator", "serve", "--port", "0"]
    environment = {**os.environ, **ENVIRONMENT, **wrong}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=NEVER_S, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr and "Traceback" not in ended.stderr
