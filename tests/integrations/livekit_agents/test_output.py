"""The way of an agent's speech to its avatar, with a room made for it: what is lost, late or cancelled hangs nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integrations.livekit_agents.world import MISSING, PATHS, python
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))  # `make test` brings the environment
EXPECTED: dict[str, list[object]] = {
    "paused_in_a_long_speech": [True, None, 1000, 20.0, False],
    "interrupted_while_a_clear_is_answered": [2, 0.0, True],
    "a_report_that_never_comes": [0.2, False],
    "a_report_that_is_late": [True, 1, 0.3, False],
    "another_avatar": [1.0, 1.0, False],
    "the_same_avatar_again": [1, 1.0, False],
    "no_avatar": [0.0, True],
    "a_room_that_breaks": [True, 0.3, False],
    "more_than_may_wait": [True, 0.0, True],
    "a_voice_slower_than_it_is_sent": [True, True, 0.2, False],
    "closed": [True, True, 11],
}
"""By the case's name in `output_cases`."""


@pytest.fixture(scope="module")
def found() -> dict[str, list[object]]:
    program = Path(__file__).with_name("output_cases.py")
    environment = {**os.environ, "PYTHONPATH": PATHS}
    run = subprocess.run([python(), program], env=environment, stdout=-1, timeout=NEVER_S, check=True)
    return {name: value for line in run.stdout.splitlines() for name, value in json.loads(line).items()}


@pytest.mark.parametrize("case", EXPECTED)
def test_it(case: str, found: dict[str, list[object]]) -> None:
    assert found[case] == EXPECTED[case]
