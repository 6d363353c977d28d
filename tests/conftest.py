"""What every test gets: no task left behind, a clean environment, and a real livekit-server where one is asked for."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.weights import default_models_dir
from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from tests.fakes import known_fields, known_signatures, known_starts, known_trust
from tests.late import settle
from tests.waiting import NEVER_S

pytest_plugins = ["tests.lanes"]

gc.disable()  # until all tests are collected: next to nothing of what is made meanwhile goes again

_STATUS = pytest.StashKey[int]()
_SCRUBBED = (
    "LIVEKIT_",
    "ORCHESTRATOR_",
    "AGENT_",
    "AVATAR_",
    "AVATARS_",
    "ALLOW_PRIVATE_URLS",
    "ENGINE",
    "ELEVENLABS_",
    "OPENAI_",
    "STORE_PATH",
    "REDIS_URL",
    "DRAIN_S",
    "OTEL_",
)

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("suite")
"""No property depends on the machine's pace, and two runs try the same. `--hypothesis-profile default` tries others."""
providers._get_local_constants = lambda: providers._local_constants
"""Nor on the tests before it: else Hypothesis also draws the constants of whatever modules are imported by then."""
known_fields.remember()
known_signatures.remember()
known_starts.remember()
known_trust.remember()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The collector need not look at thousands of tests and modules again: half a second whenever a session ends. What a test
    leaves goes with the young. What is old seldom goes, and is looked at less often: all that the tests' applications made."""
    if "torch" in sys.modules:
        raise pytest.UsageError("a test file imports torch as it is collected: see tests/late.py")
    gc.freeze()
    gc.set_threshold(700, 10, 100)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function):
        settle(item.module)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves at once where the LiveKit SDK was loaded: its threads abort now and then when the interpreter goes away under them.
    Triton says that it leaks what is frozen."""
    if ("livekit.rtc" in sys.modules or "torch" in sys.modules) and _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_SCRUBBED):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENT_MAX_SESSIONS", "8")  # what this machine can hold, and how busy it is, decides no test


@pytest.fixture(autouse=True)
async def _no_task_left() -> AsyncIterator[None]:
    """Fails a test that leaves a task running."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = [t for t in asyncio.all_tasks() - before - {asyncio.current_task()} if not t.done()]
    shaking_hands = [t for t in left if getattr(t.get_coro(), "__name__", "") == "_accept_connection2"]
    if shaking_hands:  # asyncio's own: a TLS client that went in the middle is noticed a moment later
        await asyncio.wait(shaking_hands, timeout=NEVER_S)
        left = [t for t in left if not t.done()]
    assert not left, f"tasks left running: {[t.get_name() for t in left]}"


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Children that the test starts heed SIGINT. They inherit that it is ignored where a shell runs the suite in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for features and composition."""
    with ThreadPoolExecutor(2, "media") as pool:
        yield pool


@pytest.fixture(scope="session")
def decoders() -> Iterator[DecoderPools]:
    """Decoder processes that all tests of avatars share: each takes a second to start."""
    made = DecoderPools(default_models_dir())
    yield made
    made.close()


@pytest.fixture
async def livekit_server() -> AsyncIterator[LiveKitAccess]:
    """A livekit-server of the test's own, on loopback and free ports."""
    program = find()
    assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
    server = LiveKitServer(program, log_level="error")
    try:
        await server.start()
        yield server.access
    finally:
        await server.stop()
