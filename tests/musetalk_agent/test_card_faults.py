"""A card that dies, hangs or is full at each of its calls, in each state of a session: the real engine on a fake of `torch.cuda`.

Whatever fails, every session goes on or ends with `engine_failed`, none is stuck, and the agent is well again or ends itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from musetalk_agent.errors import AgentError, EngineFailed
from musetalk_agent.session.session import ENDED, Session
from tests.fakes.card_failures import KINDS, Kind
from tests.fakes.weights import write_models
from tests.late import late_imports
from tests.musetalk_agent.card_world import CardWorld, card_world, hurry, paint
from tests.waiting import NEVER_S, until

with late_imports("torch", "diffusers", "transformers"):
    from tests.fakes.cuda import fake_cuda

CALLS: dict[str, dict[str, tuple[Kind, ...]]] = {
    "warming up": {
        "h2d": KINDS,  # the weights
        "record": ("dies",),  # the mark behind them
        "query": ("hangs",),
        "allocation": ("dies", "full"),  # of a bucket
        "replay": KINDS,  # while it is measured
    },
    "idle": {  # of another session, whose avatar is prepared and opened
        "h2d": KINDS,
        "record": ("full",),
        "query": ("dies", "hangs"),
        "d2h": ("full",),
    },
    "first batch": {"h2d": KINDS, "synchronize": KINDS},
    "speaking": {"replay": KINDS, "record": ("dies",), "synchronize": KINDS, "d2h": ("full",)},
    "closing": {"empty_cache": KINDS, "replay": ("dies", "hangs"), "synchronize": ("dies", "hangs")},
    "restarting": {  # after a failure that the card itself survived
        "allocation": KINDS,  # of the probe, the first thing that is asked of the card
        "query": ("hangs",),
        "empty_cache": KINDS,  # as the old engine is closed
        "h2d": KINDS,
        "replay": KINDS,
    },
}
"""The calls that are made in each state, and how each fails there. One stands for those after which the same code runs: what raises
or hangs in `Runner._start` is one, whether it copies, replays or marks."""
LONG_S = 20.0
TABLE = [
    pytest.param(state, call, kind, id=f"{state}-{call}-{kind}")
    for state, calls in CALLS.items()
    for call, kinds in calls.items()
    for kind in kinds
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


def _over(session: Session) -> bool:
    """It has ended, or has said what it had to say."""
    return session.state in ENDED or "playback.finished" in [e.event.type for e in session.events.after(0)]


def _pictures(session: Session) -> int:
    """Frames whose lips were made; on a busy machine they may all have come too late to be shown."""
    statistics = session.status().statistics
    return statistics["spoken"] + statistics["dropped"]


async def _speaking(here: CardWorld) -> Session:
    session = await here.start("a")
    here.speak("a", LONG_S)
    await until(lambda: _pictures(session) > 2)
    return session


async def _idle(here: CardWorld, call: str, kind: Kind) -> None:
    await here.start("a")
    here.cuda.arm(call, kind)
    with pytest.raises(AgentError):
        await here.start("b")


async def _first_batch(here: CardWorld, call: str, kind: Kind) -> None:
    session = await here.start("a")
    here.cuda.arm(call, kind)
    here.speak("a", 0.4)
    await until(lambda: _over(session))


async def _in_speech(here: CardWorld, call: str, kind: Kind) -> None:
    await _speaking(here)
    here.cuda.arm(call, kind)
    await until(here.cuda.hit.is_set)


async def _restarting(here: CardWorld, call: str, kind: Kind) -> None:
    await here.start("a")
    here.cuda.arm(call, kind)
    here.factory.engines.batcher("musetalk").fail(EngineFailed("a batch failed"))
    await until(here.cuda.hit.is_set)


BRING = {"idle": _idle, "first batch": _first_batch, "speaking": _in_speech, "restarting": _restarting}


async def _all_ended(here: CardWorld) -> None:
    """Those on a card that is gone with the code, and the others as one asks them to."""
    gone = here.cuda.dead or here.cuda.hanging or not here.factory.engines.ready
    for session in list(here.sessions._sessions.values()):
        if gone:
            await until(lambda of=session: of.state in ENDED)  # type: ignore[misc]  # mypy infers no type for its default
            assert session.error is not None and session.error["code"] == "engine_failed"
        async with asyncio.timeout(NEVER_S):
            assert (await here.sessions.stop(session.id)).state in ENDED


async def _well_or_gone(here: CardWorld) -> None:
    """The agent ends itself, or speaks in a new session."""
    pool = here.factory.engines
    await until(lambda: pool.lost or pool.ready)
    assert pool.lost == here.lost.is_set()
    if pool.lost:
        return
    again = await here.start("again")
    here.speak("again", 0.4)
    await until(lambda: _over(again))
    assert again.state not in ENDED and _pictures(again)


@asynccontextmanager
async def _started(folder: Path, models: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[CardWorld]:
    """An agent whose engine is MuseTalk on a fake card, with short deadlines."""
    hurry(patch)
    with fake_cuda(patch) as cuda:
        paint(patch, cuda)
        async with card_world(folder, models, cuda, patch, engine="musetalk") as here:
            await here.factory.start()
            yield here


@pytest.mark.parametrize(("state", "call", "kind"), [row for row in TABLE if row.values[0] in BRING])
async def test_no_session_is_lost_or_stuck(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, state: str, call: str, kind: Kind
) -> None:
    async with _started(tmp_path, models, monkeypatch) as here:
        await BRING[state](here, call, kind)
        assert here.cuda.hit.is_set()
        if kind == "full":
            here.cuda.disarm()  # another process on the card has ended
        await _all_ended(here)
        await _well_or_gone(here)


@pytest.mark.parametrize(("state", "call", "kind"), [row for row in TABLE if row.values[0] == "warming up"])
async def test_auto_ends_in_a_working_engine_and_says_why(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, state: str, call: str, kind: Kind
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("musetalk_agent.engine_pool.START_WITHIN_S", 5.0)
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        cuda.arm(call, kind)
        async with card_world(tmp_path, models, cuda, monkeypatch) as here:
            await here.factory.start()
            assert cuda.hit.is_set()
            assert here.factory.engines.default == "warp" and here.factory.engines.ready
            note = here.factory.engines.note(None)
            assert note is not None and "'warp', not MuseTalk" in note
            said = {"dies": "illegal memory access", "hangs": "(has not answered|was not ready)", "full": "memory"}[
                kind
            ]
            assert re.search(said, note)


@pytest.mark.parametrize(("state", "call", "kind"), [row for row in TABLE if row.values[0] == "closing"])
async def test_the_agent_closes(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, state: str, call: str, kind: Kind
) -> None:
    async with _started(tmp_path, models, monkeypatch) as here:
        session = await _speaking(here)
        here.cuda.arm(call, kind)
        async with asyncio.timeout(NEVER_S):
            await here.sessions.aclose()
            await here.factory.aclose()
        assert session.ended.is_set() and session.state in ENDED
