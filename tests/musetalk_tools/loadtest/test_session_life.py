"""The life of one session of the load test, on virtual time: what it measures, how it fails, that it ends what it began."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest

from musetalk_tools.loadtest.deployment import CallError, Deployment
from musetalk_tools.loadtest.load_session import FIRST_PICTURE_S, LoadSession, Shared
from musetalk_tools.loadtest.plan import Plan
from musetalk_tools.loadtest.speech_source import UTTERANCE_S, SpeechSource, tones
from musetalk_tools.loadtest.viewer_messages import Link
from musetalk_tools.loadtest.viewer_metrics import Figure, Histogram
from musetalk_tools.loadtest.viewer_pool import ViewerPool
from tests.musetalk_tools.loadtest.world import REFUSED, World, inhabit
from tests.virtual_loop import virtually


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield inhabit(World(), monkeypatch)


def shared_with(world: World, speech: SpeechSource | None = None, **plan: object) -> Shared:
    asked = Plan(**{"url": "http://service", "sessions": 1, "minutes": 1.0, "engine": "pattern", **plan})  # type: ignore[arg-type]  # a table of fields
    deployment, crowd = cast(Deployment, world), cast(ViewerPool, world)
    return Shared(asked, speech or tones(), deployment, crowd, asyncio.Event())


async def lived(shared: Shared, seconds: float, index: int = 0) -> LoadSession:
    """A session that ran so long and was then stopped with the run, unless it had ended before."""
    session = LoadSession(shared, index)
    task = asyncio.create_task(session.run())
    await asyncio.wait({task}, timeout=seconds)
    shared.stop.set()
    await task
    session.settle(asyncio.get_running_loop().time() + 60)
    return session


def only(tally: Histogram) -> Figure:
    figure = tally.figure()
    assert figure is not None
    return figure


@virtually
async def test_what_a_session_measures_is_what_the_world_did(world: World) -> None:
    shared = shared_with(world, speak_share=1.0, interrupt_every=0)
    session = await lived(shared, 0.8 + 0.3 + 3 * UTTERANCE_S + 0.03)
    assert (session.error, session.session_id, session.engine) == (None, "ses_0", "pattern")
    assert session.start_s == pytest.approx(0.8) and session.first_picture_s == pytest.approx(1.1)
    assert only(shared.tallies.start_s).max == 0.8 and only(shared.tallies.first_picture_s).max == 1.1
    # a mark is the end of the 40 ms in which its sound begins: its second sample is loud, 638 before their end
    assert only(shared.tallies.sound_ms).min == only(shared.tallies.sound_ms).max == 160.1
    assert only(shared.tallies.picture_ms).max == 180.1
    assert only(shared.tallies.skew_ms).mean == 20.0
    assert only(shared.tallies.gap_ms).max == 40.0
    assert session.sight.said == session.sight.heard == session.sight.shown == 12, "four bursts in each utterance"
    assert shared.counts.utterances == 4 and shared.counts.finished == 3, "the fourth had begun"


@virtually
async def test_every_nth_utterance_is_interrupted_and_timed(world: World) -> None:
    shared = shared_with(world, speak_share=1.0, interrupt_every=2)
    await lived(shared, 30.0)
    kinds = [kind for kind, _ in world.senders[0].said]
    assert kinds[:4] == ["audio.start", "audio.end", "audio.start", "audio.end"]
    at = [moment for kind, moment in world.senders[0].said if kind == "audio.start"]
    assert at[1] - at[0] == pytest.approx(UTTERANCE_S)
    assert at[2] - at[1] == pytest.approx(1.2 + 2.0), "interrupted after 1.2 s, and then two seconds of silence"
    figure = only(shared.tallies.interrupt_ms)
    assert figure.min == figure.max == 150.0 and figure.count == shared.counts.interrupts == 4


@virtually
async def test_the_share_of_the_time_in_which_it_speaks_is_kept(world: World) -> None:
    shared = shared_with(world, speak_share=0.25, interrupt_every=0)
    await lived(shared, 60.0, index=0)
    at = [moment for kind, moment in world.senders[0].said if kind == "audio.start"]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps == pytest.approx([UTTERANCE_S / 0.25] * len(gaps)) and len(gaps) == 3


@virtually
async def test_sessions_begin_to_speak_spread_over_the_pause(world: World) -> None:
    shared = shared_with(world, sessions=8, speak_share=0.5, interrupt_every=0)
    sessions = [LoadSession(shared, index) for index in range(8)]
    tasks = [asyncio.create_task(session.run()) for session in sessions]
    await asyncio.sleep(10)
    shared.stop.set()
    await asyncio.gather(*tasks)
    first = sorted(speaker.said[0][1] for speaker in world.senders)
    steps = [later - earlier for earlier, later in pairwise(first)]
    assert 0 <= first[-1] - first[0] < UTTERANCE_S and min(steps) > 0.2, "no two in the same moment"


@pytest.mark.parametrize("step", REFUSED)
def test_wherever_it_fails_it_has_a_code_and_ends_what_it_began(step: str, world: World) -> None:
    error, code = REFUSED[step]

    @virtually
    async def played() -> None:
        world.errors[step] = error
        shared = shared_with(world, speak_share=1.0, interrupt_every=1 if step == "interrupt" else 0)
        session = await lived(shared, 100.0)
        assert (session.error, session.detail) == (code, str(error))
        assert dict(shared.counts.errors) == {code: 1}
        assert not session.active
        assert world.calls.count("leave 0") == 1
        assert ("stop ses_0" in world.calls) == (session.session_id is not None)
        assert all(sender.closed for sender in world.senders)
        assert not world.shows, "the viewer left"

    played()


@virtually
async def test_a_session_that_shows_nothing_has_failed(world: World) -> None:
    world.first_picture_s = None
    shared = shared_with(world)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    session = await lived(shared, 100.0)
    assert (session.error, session.detail) == ("no_picture", "no picture within 30 s")
    assert loop.time() - begun == pytest.approx(0.8 + FIRST_PICTURE_S, abs=0.1)
    assert session.first_picture_s is None and world.sessions["ses_0"]["state"] == "stopped"


@pytest.mark.parametrize("shown", [True, False])
def test_a_viewer_that_is_gone_ends_the_session_with_its_reason(shown: bool, world: World) -> None:
    @virtually
    async def played() -> None:
        world.first_picture_s = 0.3 if shown else None
        shared = shared_with(world, speak_share=1.0)
        session = LoadSession(shared, 0)
        task = asyncio.create_task(session.run())
        await asyncio.sleep(2.0)
        world.lose_viewer("0")
        await asyncio.wait({task}, timeout=10)
        assert task.done() and (session.error, session.detail) == ("viewer_lost", "disconnected: SERVER_SHUTDOWN")
        assert world.sessions["ses_0"]["state"] == "stopped"

    played()


@virtually
async def test_a_stop_that_fails_is_counted_and_is_no_failure_of_the_session(world: World) -> None:
    world.errors["stop"] = CallError("timeout", "late")
    shared = shared_with(world)
    session = await lived(shared, 5.0)
    assert session.error is None and dict(shared.counts.errors) == {"timeout": 1}
    assert session.left.packets_received == 1000, "what its viewer counted is there all the same"


@virtually
async def test_a_run_that_stops_while_the_start_is_under_way_leaves_the_viewer(world: World) -> None:
    world.start_s = 50.0
    session = await lived(shared_with(world), 5.0)
    assert (session.error, session.session_id, session.start_s) == (None, None, None)
    assert world.calls[-1] == "leave 0" and not any(call.startswith("stop") for call in world.calls)


@virtually
async def test_reconnects_moves_and_warnings_are_counted(world: World) -> None:
    shared = shared_with(world, speak_share=1.0, interrupt_every=0)
    session = LoadSession(shared, 0)
    task = asyncio.create_task(session.run())
    await asyncio.sleep(3.0)
    (sender,), watch = world.senders, world.watches["0"]
    sender.reconnects = 2
    watch.on_link(Link(name="0", state="reconnecting"))
    watch.on_link(Link(name="0", state="reconnected"))
    sender.on_message({"type": "warning", "code": "format_suspected"})
    sender.on_message({"type": "session.state", "state": "ready"})  # not from a move
    sender.on_message({"type": "session.state", "state": "recovering"})
    await asyncio.sleep(1.5)
    sender.on_message({"type": "session.state", "state": "ready"})
    sender.on_message({"type": "session.state", "state": "ready"})  # reported once more
    shared.stop.set()
    await task
    counts = shared.counts
    assert (counts.audio_reconnects, counts.viewer_reconnects, counts.moves, session.moves) == (2, 1, 1, 1)
    assert dict(counts.warnings) == {"format_suspected": 1}
    assert only(shared.tallies.move_s).max == 1.5


@pytest.mark.parametrize(
    ("engine", "with_tones", "pattern"), [("pattern", True, True), ("warp", True, False), ("pattern", False, False)]
)
def test_pictures_are_measured_where_the_pattern_shows_tones(
    engine: str, with_tones: bool, pattern: bool, world: World
) -> None:
    @virtually
    async def played() -> None:
        world.engine = engine
        speech = tones()
        speech = (
            speech if with_tones else SpeechSource(speech.utterances, speech.interrupted, speech.window_s, tones=False)
        )
        shared = shared_with(world, speech, speak_share=1.0, interrupt_every=0)
        session = await lived(shared, 10.0)
        assert session.sight.pattern is pattern
        assert (session.sight.shown > 0) is pattern and session.sight.heard > 0
        assert (shared.tallies.skew_ms.figure() is not None) is pattern

    played()
