"""Where an avatar is to go: outside of a job the room says it, once it is connected. Runs in the environment of livekit-agents."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.integrations.livekit_agents.world import MISSING, PATHS, python
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
PROGRAM = """
import json
from types import SimpleNamespace
from livekit.plugins.musetalk.avatar import _whereabouts
found = []
for connected in (True, False):
    agent = SimpleNamespace(identity="agent-1")
    room = SimpleNamespace(name="hall", local_participant=agent, isconnected=lambda connected=connected: connected)
    try:
        found.append(_whereabouts(room))
    except RuntimeError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_without_a_job_a_room_is_asked_once_it_is_connected() -> None:
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run([python(), "-c", PROGRAM], env=environment, stdout=-1, timeout=NEVER_S, check=True)
    here, error = json.loads(done.stdout)
    assert here == ["hall", "agent-1"]
    assert error.startswith("Connect the room before the avatar starts")
