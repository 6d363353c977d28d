"""How `make test` lays the tests out over its workers (pytest-xdist).

Most tests wait: for a process that starts, for speech that is played in real time. So there are three workers a core. One of
them has the right of way: it runs what speaks with a real SFU, a real browser or a real clock, one file after the other, and
the others are `nice` to it. When one kind of files is used up, a worker goes on with the other.

One of the others begins with what imports torch.

`make test-network` has three workers, and none is `nice`: nearly all that it runs meets real time, and mostly waits. One makes
networks bad, the others begin with what is long.

The files of a group stay on one worker in their order: what is made once a module, or once a run (a demo for the browser's
tests), is made once.
"""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WORKERS_PER_CORE = 3
MOST_WORKERS = 8
NICENESS = 5
"""Of the workers that have not the right of way: a third of its weight."""
RIGHT_OF_WAY = "gw0"

TOGETHER = ("tests/browser",)
"""Directories whose files share what a run makes once."""

REAL_TIME = (
    "tests/net",
    "tests/browser",
    "tests/musetalk_agent/publishers/test_failover.py",
    "tests/orchestrator/test_real_move.py",
    "tests/integrations/livekit_agents",
    "tests/integrations/conversation",
    "tests/integrations/pipecat/test_example.py",
    "tests/modal/test_killed_container.py",
    "tests/orchestrator/test_real_captions.py",
    "tests/orchestrator/voice/test_speaker.py",
    "tests/orchestrator/voice/test_survival.py",
    "tests/musetalk_agent/publishers/test_livekit.py",
    "tests/musetalk_agent/publishers/test_rtmp.py",
    "tests/musetalk_agent/publishers/test_whip.py",
    "tests/musetalk_tools/loadtest/test_load.py",
    "tests/orchestrator/voice/test_worker.py",
    "tests/system/test_demo.py",
)
"""What meets real time, the longest first."""

LONG = (
    "tests/system/test_accept_gpu.py",
    "tests/orchestrator/test_survival.py",
    "tests/musetalk_agent/service/test_live_judge.py",
    "tests/musetalk_agent/test_card_faults.py",
    "tests/hostile/test_http_surface.py",
    "tests/orchestrator/tts/test_voice_folder.py",
    "tests/musetalk_agent/renders/dub",
    "tests/musetalk_agent/engines/musetalk/test_network.py",
)
"""Of the rest, what takes longest: it is begun first, so that no worker is left alone with it at the end."""

TORCH = "gw1"
WITH_TORCH = (
    "tests/musetalk_agent/engines/musetalk",
    "tests/musetalk_agent/test_auto_engine.py",
    "tests/musetalk_agent/test_card_faults.py",
    "tests/musetalk_agent/test_silence_musetalk.py",
    "tests/musetalk_agent/measure/test_lse.py",
    "tests/musetalk_agent/measure/test_profile.py",
    "tests/musetalk_agent/tools/test_convert_weights.py",
    "tests/musetalk_agent/tools/test_render_film.py",
    "tests/musetalk_agent/features/test_whisper_features.py",
)
"""What imports torch and what is built on it in the worker itself (`tests/late.py`): one worker begins with these, the others take
them last."""


class Lanes(LoadScopeScheduling):
    """Files as units of work; which worker gets which next."""

    def _split_scope(self, nodeid: str) -> str:
        path: str = nodeid.partition("::")[0]
        return next((group for group in TOGETHER if path.startswith(group)), path)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(self._next(node.gateway.id), last=False)
        super()._assign_work_unit(node)

    def _next(self, worker: str) -> str:
        def rank(unit: str) -> tuple[bool, bool, int]:
            real_time, with_torch = unit.startswith(REAL_TIME), unit.startswith(WITH_TORCH)
            order = REAL_TIME if real_time else LONG
            place = next((at for at, start in enumerate(order) if unit.startswith(start)), len(order))
            return real_time is not (worker == RIGHT_OF_WAY), with_torch is not (worker == TORCH), place

        return min(self.workqueue, key=rank)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    return Lanes(config, log)  # type: ignore[arg-type]  # xdist's Producer, which it does not export


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`."""
    return min(MOST_WORKERS, WORKERS_PER_CORE * len(os.sched_getaffinity(0)))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Only a process can make itself nice, before it has threads and children."""
    real_time = session.config.getoption("markexpr") == "network"
    if os.environ.get("PYTEST_XDIST_WORKER", RIGHT_OF_WAY) != RIGHT_OF_WAY and not real_time:
        os.nice(NICENESS)
