"""What is reported of a session, in each of its states, and what of it survives the way into the store and back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.http import (
    AgentSession,
    AudioSource,
    AvatarSource,
    Diagnosis,
    DiagnosisCode,
    Picture,
    PublisherMode,
    RtmpTarget,
    SessionState,
    VideoCodec,
    VoiceSource,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.livekit_rooms import RoomIngress
from orchestrator.metrics import Metrics
from orchestrator.session.journal import SessionJournal, from_record, to_record
from orchestrator.session.model import ManagedSession, SessionRequest, iso
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.store.session_store import Progress, Seal, StoredSession
from tests.fakes.memory_store import MemoryStore
from tests.orchestrator.session.world import ORDER
from tests.virtual_loop import EPOCH_S, virtually

AGENT_TOLD: dict[str, Any] = {
    "session_id": "ses_1",
    "state": "speaking",
    "room": "r",
    "publisher": "livekit",
    "engine": "warp",
    "engine_note": "no card",
    "fps": 30,
    "width": 640,
    "height": 480,
    "avatar": {"avatar_id": "a", "frames": 1, "width": 1, "height": 1, "fps": 25, "face_px": 1},
    "viewers": 3,
    "playback": {"position_s": 7.5, "buffered_s": 1.25, "segments": 4},
    "transport": {"mode": "auto"},
    "diagnosis": {"code": "no_audio", "message": "No audio came."},
    "funnel": [],
    "tracks": [],
    "started_at": "2026-11-21T10:00:00Z",
    "last_audio_at": "2026-11-21T10:00:05Z",
}


def reported(**fields: Any) -> AgentSession:
    return AgentSession.model_validate(AGENT_TOLD | fields)


def session(state: SessionState = SessionState.READY, **order: Any) -> ManagedSession:
    made = ManagedSession(
        "ses_1", replace(ORDER, **order), time.time() + 60, asyncio.get_running_loop().create_future()
    )
    made.base_state = state
    return made


def live(**fields: Any) -> SpeechPipeline:
    """An audio path that says this of itself."""
    heard = {"position_s": 2.0, "backlog_s": 0.5, "segments": 2, "last_audio_at": EPOCH_S, "speaking": True}
    return cast(SpeechPipeline, SimpleNamespace(**{**heard, "dropping": False, **fields}))


@virtually
async def test_before_an_agent_has_spoken_the_view_is_what_was_ordered() -> None:
    made = session(SessionState.STARTING, picture=Picture(fps=20, width=320, height=240))
    made.created_at = EPOCH_S
    view = made.view()
    assert (view["state"], view["engine"], view["fps"], view["width"], view["height"]) == (
        *("starting", "pattern", 20, 320, 240),
    )
    assert view["publisher"] is None and view["viewers"] == 0 and view["error"] is None
    assert view["started_at"] == "2027-01-15T08:00:00.000Z" and view["expires_at"] == "2027-01-15T08:01:00.000Z"
    assert view["diagnosis"]["code"] == "room_not_joined" and made.funnel == []
    assert view["playback"] == {"position_s": 0.0, "buffered_s": 0.0, "segments": 0}


@virtually
async def test_then_it_is_what_the_agent_says_and_what_was_heard() -> None:
    made = session()
    made.snapshot, made.live = reported(), live()
    view = made.view()
    assert (view["state"], view["engine"], view["engine_note"], view["fps"]) == ("speaking", "warp", "no card", 30)
    assert (view["width"], view["height"], view["viewers"], view["publisher"]) == (640, 480, 3, "livekit")
    assert view["playback"] == {"position_s": 2.0, "buffered_s": 0.5, "segments": 2}, "ours, not the agent's"


@virtually
async def test_where_speech_comes_through_the_room_the_agent_is_the_one_who_knows() -> None:
    made = session(audio_source=AudioSource.DATASTREAM, speaker="bot")
    made.snapshot, made.live = reported(), live(speaking=False)
    view = made.view()
    assert view["state"] == "speaking" and view["last_audio_at"] == "2026-11-21T10:00:05.000Z"
    assert view["playback"] == {"position_s": 7.5, "buffered_s": 1.25, "segments": 4}
    made.snapshot = reported(state="ready", last_audio_at=None)
    assert made.state is SessionState.READY and made.heard.last_audio_at is None
    with pytest.raises(ProblemError, match="from 'bot'") as caught:
        made.speakable()
    assert (caught.value.code, caught.value.value) == (ErrorCode.SPEECH_ELSEWHERE, "bot")


@virtually
async def test_after_the_end_it_is_readable_and_buffers_nothing() -> None:
    made = session()
    made.snapshot = reported()
    made.live = live(progress=lambda: Progress(segments=2))
    made.retire()
    made.base_state, made.end_reason = SessionState.FAILED, "agent_lost"
    made.error = ProblemError(ErrorCode.AGENT_UNAVAILABLE, "Gone.")
    view = made.view()
    assert view["playback"] == {"position_s": 2.0, "buffered_s": 0.0, "segments": 2} and made.live is None
    assert (view["viewers"], view["end_reason"], view["error"]["code"]) == (0, "agent_lost", "agent_unavailable")
    assert made.progress == Progress(segments=2)
    with pytest.raises(ProblemError, match=r"Session ses_1 is failed \(agent_lost\): start another one\.") as caught:
        made.running()
    assert caught.value.code is ErrorCode.SESSION_ENDED


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (SessionState.STARTING, ErrorCode.SESSION_CONFLICT),
        (SessionState.READY, None),
        (SessionState.RECOVERING, None),
        (SessionState.DRAINING, ErrorCode.SESSION_ENDED),
        (SessionState.STOPPED, ErrorCode.SESSION_ENDED),
    ],
)
def test_it_can_be_spoken_to_while_it_runs(state: SessionState, code: ErrorCode | None) -> None:
    @virtually
    async def played() -> None:
        made = session(state)
        made.live = live()
        if code is None:
            assert made.running() is made.live is made.speakable()
        else:
            with pytest.raises(ProblemError) as caught:
                made.running()
            assert caught.value.code is code

    played()


@pytest.mark.parametrize("code", list(DiagnosisCode))
def test_pcm_that_is_dropped_after_a_clear_is_reported_in_its_place_along_the_codes(code: DiagnosisCode) -> None:
    @virtually
    async def played() -> None:
        made = session()
        agents = Diagnosis(code=code, message="the agent's")
        made.live = live(dropping=True)
        codes = list(DiagnosisCode)
        first = codes.index(code) < codes.index(DiagnosisCode.DROPPING_AFTER_CLEAR)
        assert made.diagnosed(agents).code is (code if first else DiagnosisCode.DROPPING_AFTER_CLEAR)
        made.live = live(dropping=False)
        assert made.diagnosed(agents) is agents

    played()


@virtually
async def test_while_it_moves_no_media_leave_and_its_mode_is_kept() -> None:
    made = session()
    made.snapshot, made.publisher_mode = reported(), PublisherMode.RTMP
    assert made.transport.mode == "auto"
    made.base_state = SessionState.RECOVERING
    assert (made.transport.mode, made.transport.rung) == (PublisherMode.RTMP, "none")


@pytest.mark.parametrize(
    ("at", "text"),
    [(None, None), (0.0, "1970-01-01T00:00:00.000Z"), (1_800_000_000.9996, "2027-01-15T08:00:00.999Z")],
)
def test_times_are_iso_8601_to_the_millisecond(at: float | None, text: str | None) -> None:
    assert iso(at) == text


# --- into the store and back

_names = st.text(max_size=20)
_orders = st.builds(
    SessionRequest,
    room=_names,
    avatar=st.just(AvatarSource()),
    picture=st.builds(Picture, fps=st.sampled_from([15, 25, 30])),
    engine=st.none() | _names,
    connect_livekit=st.booleans(),
    speaker=st.none() | _names,
    voice=st.sampled_from(VoiceSource),
    audio_source=st.sampled_from(AudioSource),
    rtmp_url=st.none() | st.just("rtmp://host/app/SECRET"),
    wants_rtmp=st.booleans(),
    publisher=st.sampled_from(PublisherMode),
    captions=st.booleans(),
    video_codec=st.sampled_from(VideoCodec),
    simulcast=st.booleans(),
    key=_names,
    webhook_url=st.none() | st.just("https://hooks.example/SECRET"),
    webhook_secret=st.none() | st.just("SECRET"),
)


def journal() -> SessionJournal:
    made = SessionJournal(MemoryStore(), "secret", "https://me", Metrics())
    made.seal = Seal(bytes(32))
    return made


@given(order=_orders, mode=st.sampled_from(PublisherMode), moves=st.integers(0, 9), ingress=st.booleans())
def test_a_session_comes_back_from_its_record_and_the_record_shows_no_secret(
    order: SessionRequest, mode: PublisherMode, moves: int, ingress: bool
) -> None:
    async def played() -> None:
        made, book = session(SessionState.READY), journal()
        made.order, made.publisher_mode, made.moves = order, mode, moves
        made.progress = Progress(segments=3, unfinished={3: True}, received_samples=100)
        if ingress:
            made.ingress = RoomIngress("IN_1", RtmpTarget(url="rtmp://ingress/SECRET", ingress=True))
        record = StoredSession.model_validate_json(to_record(made, book).model_dump_json())
        assert "SECRET" not in record.model_dump_json()
        assert (record.owner, record.owner_url) == (book.owner, "https://me")
        again = from_record(record, book.seal)
        assert (again.order, again.publisher_mode, again.moves) == (order, mode, moves)
        assert (again.progress, again.ingress, again.expires_at) == (made.progress, made.ingress, made.expires_at)
        assert again.adopted and again.placed and again.readable

    asyncio.run(played())


@virtually
async def test_with_another_secret_it_can_only_be_ended() -> None:
    made = session(room="lobby", key="alice")
    made.ingress = RoomIngress("IN_1", RtmpTarget(url="rtmp://ingress/x", ingress=True))
    again = from_record(to_record(made, journal()), Seal(bytes(31) + b"x"))
    assert not again.readable and (again.order.room, again.order.key) == ("lobby", "alice")
    assert again.ingress is not None and again.ingress.ingress_id == "IN_1", "so that it can be removed"


@virtually
async def test_one_that_is_being_adopted_is_written_as_one_that_moves() -> None:
    """A process that dies while it adopts must not leave a session that "was lost while it was starting"."""
    made = session(SessionState.STARTING)
    assert to_record(made, journal()).state is SessionState.STARTING
    made.adopted = True
    assert to_record(made, journal()).state is SessionState.RECOVERING
