"""Bodies of the agent's HTTP surface: the limits of a start, fields by name, numbers that JSON has, secrets that are not shown."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from musetalk_agent.protocol.http import (
    MAX_PIXELS,
    MAX_SIDE,
    AgentHealth,
    AgentSession,
    AgentStartRequest,
    AvatarReport,
    AvatarSource,
    Capacity,
    Diagnosis,
    DiagnosisCode,
    Picture,
    Playback,
    PublisherRequest,
    RtmpTarget,
    SessionState,
    Timestamp,
)

START: dict[str, Any] = {
    "session_id": "ses_1",
    "room": "lobby",
    "livekit_url": "ws://127.0.0.1:7880",
    "livekit_token": "eyJ-the-token",
    "avatar": {"avatar_id": "demo"},
}


def at_fault(body: dict[str, Any]) -> list[str]:
    """The fields that a start with this body is refused for; empty where it is taken."""
    try:
        AgentStartRequest.model_validate_json(json.dumps(body))
    except ValidationError as refused:
        return [".".join(map(str, error["loc"])) for error in refused.errors()]
    return []


def test_the_least_of_a_start_means_a_room_by_webrtc_at_25_pictures_with_captions_for_six_hours() -> None:
    taken = AgentStartRequest.model_validate(START)
    assert (taken.picture.fps, taken.picture.width, taken.picture.height) == (25, None, None)
    assert (taken.connect_livekit, taken.voice, taken.publisher_mode, taken.captions) == (True, "agent", "auto", True)
    assert (taken.max_duration_s, taken.backlog_s, taken.engine, taken.rtmp) == (21_600, 120, None, None)


def test_a_start_crosses_the_wire_unchanged() -> None:
    more = {
        "picture": {"fps": 30, "width": 720, "height": 1280},
        "engine": "warp",
        "voice": "orchestrator",
        "rtmp": {"url": "rtmp://live.example/app/key", "ingress": True},
        "publisher_mode": "rtmp",
        "livekit_agent": "agent-7",
        "probe_token": "eyJ-probe",
        "captions": False,
        "max_duration_s": 60,
        "backlog_s": 600,
    }
    asked = AgentStartRequest.model_validate(START | more)
    assert AgentStartRequest.model_validate_json(asked.model_dump_json()) == asked
    assert asked.rtmp is not None and asked.rtmp.ingress and not asked.rtmp.beside


@pytest.mark.parametrize("field", ["session_id", "room", "livekit_url", "livekit_token", "avatar"])
def test_what_a_start_cannot_do_without_is_named(field: str) -> None:
    assert at_fault({key: value for key, value in START.items() if key != field}) == [field]


@pytest.mark.parametrize(
    ("within", "field"),
    [
        ((), "fpss"),
        (("picture",), "depth"),
        (("avatar",), "url"),
        (("rtmp",), "key"),
    ],
)
def test_a_field_that_is_not_known_is_named_with_its_place(within: tuple[str, ...], field: str) -> None:
    inner: dict[str, Any] = {"picture": {}, "avatar": {"avatar_id": "demo"}, "rtmp": {"url": "rtmp://a.example/b/c"}}
    body = START | {field: 1} if not within else START | {within[0]: inner[within[0]] | {field: 1}}
    assert at_fault(body) == [".".join((*within, field))]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("session_id", ["s", "s" * 64], ["", "s" * 65, None, 5]),
        ("room", ["r", "r" * 256, "räum ☂"], ["", "r" * 257]),
        ("livekit_agent", [None, "a", "a" * 256], ["", "a" * 257]),
        ("max_duration_s", [1, 10**9], [0, -1, 1.5, "soon"]),
        ("backlog_s", [1, 600], [0, 601]),
        ("voice", ["agent", "orchestrator"], ["Agent", "client", ""]),
        ("video_codec", ["vp8", "h264", "auto"], ["VP8", "h265", "av1", "", None]),
        ("simulcast", [True, False], [None, 3, "perhaps"]),
        ("publisher_mode", ["auto", "webrtc", "rtmp"], ["whip", ""]),
        ("avatar.frames_zip_url", ["x" * 4096, None], ["x" * 4097]),
        ("avatar.idle_video_url", ["x" * 4096, None], ["x" * 4097]),
        ("avatar.avatar_id", ["x" * 128], ["x" * 129]),
        ("picture.fps", [15, 25, 60], [14, 61, 0, -25, 25.5]),
        ("picture.width", [64, 1919, 1920, None], [63, 1921, 0, -64]),
        ("picture.height", [64, 1919, 1920, None], [63, 1921, 0, -64]),
        ("rtmp.url", ["rtmp://a", "r" * 2048], ["rtmp://", "r" * 2049]),
    ],
)
def test_the_bounds_of_each_field(field: str, good: list[Any], bad: list[Any]) -> None:
    outer, _, inner = field.rpartition(".")
    for value, refused in [*((one, False) for one in good), *((one, True) for one in bad)]:
        body = START | ({outer: {inner: value}} if outer else {field: value})
        assert at_fault(body) == ([field] if refused else []), value


SIDE = st.none() | st.integers(1, 2200)


@given(SIDE, SIDE)
def test_a_size_is_taken_in_either_orientation_up_to_the_pixels_of_full_hd(
    width: int | None, height: int | None
) -> None:
    sides = [side for side in (width, height) if side is not None]
    fits = all(64 <= side <= MAX_SIDE for side in sides)
    if len(sides) == 2:
        fits = fits and sides[0] * sides[1] <= MAX_PIXELS
    for one, other in ((width, height), (height, width)):
        assert (at_fault(START | {"picture": {"width": one, "height": other}}) == []) == fits


def test_too_many_pixels_are_reported_with_the_size_and_what_would_do() -> None:
    assert Picture(width=1080, height=1920) and Picture(width=1440, height=1440)
    with pytest.raises(ValidationError) as refused:
        Picture(width=1920, height=1082)
    (error,) = refused.value.errors()
    assert error["loc"] == ("height",)
    assert "1920×1082 has 2077440 pixels; at most 2073600" in error["msg"] and "1080×1920" in error["msg"]


@pytest.mark.parametrize(
    ("source", "empty"),
    [
        ({}, True),
        ({"frames_zip_url": "", "idle_video_url": "", "avatar_id": ""}, True),
        ({"avatar_id": "demo"}, False),
        ({"frames_zip_url": "https://a.example/b.zip"}, False),
        ({"idle_video_url": "https://a.example/b.mp4"}, False),
    ],
)
def test_a_source_is_empty_when_it_names_nothing(source: dict[str, Any], empty: bool) -> None:
    assert AvatarSource.model_validate(source).empty is empty


def test_secrets_do_not_show_when_a_request_is_printed() -> None:
    asked = AgentStartRequest.model_validate(
        START | {"probe_token": "eyJ-probe", "rtmp": {"url": "rtmp://live.example/app/the-stream-key"}}
    )
    shown = f"{asked!r} {asked} {asked.rtmp!r}"
    assert "ses_1" in shown and "lobby" in shown
    for secret in ("eyJ-the-token", "eyJ-probe", "the-stream-key"):
        assert secret not in shown
    assert RtmpTarget(url="rtmp://a.example/b/c").url == "rtmp://a.example/b/c"


def test_a_change_of_the_way_names_a_mode_and_nothing_else() -> None:
    assert PublisherRequest.model_validate({"mode": "webrtc"}).mode == "webrtc"
    for body in ({}, {"mode": "whip"}, {"mode": "auto", "now": True}):
        with pytest.raises(ValidationError):
            PublisherRequest.model_validate(body)


TIMES = TypeAdapter[str](Timestamp)


@pytest.mark.parametrize("text", ["2026-11-28T20:53:00.123Z", "2026-11-28T20:53:00+01:00", "1970-01-01T00:00:00Z"])
def test_a_time_with_a_zone_is_a_time(text: str) -> None:
    assert TIMES.validate_python(text) == text, "and stays as it was written"


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2026-11-28", "2026-11-28T20:53:00", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "1764363180"],
)
def test_what_has_no_zone_or_is_of_another_age_is_no_time(text: str) -> None:
    with pytest.raises(ValidationError):
        TIMES.validate_python(text)


def session(**more: Any) -> dict[str, Any]:
    """What an agent says of a session, at the least."""
    diagnosis = Diagnosis(code=DiagnosisCode.OK, message="All is well.").model_dump()
    return {
        "session_id": "ses_1",
        "state": "ready",
        "room": "lobby",
        "publisher": "livekit",
        "engine": "warp",
        "fps": 25,
        "width": 640,
        "height": 480,
        "diagnosis": diagnosis,
        "started_at": "2026-11-28T20:53:00Z",
        **more,
    }


def test_what_an_agent_of_another_version_says_of_a_session_is_read() -> None:
    read = AgentSession.model_validate(session(moons=2, playback={"position_s": 1.5, "colour": "red"}))
    assert read.state is SessionState.READY and read.playback == Playback(position_s=1.5)
    assert (read.transport.rung, read.viewers, read.funnel, read.speaker_present) == ("livekit", 0, [], None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_answer_has_only_numbers_that_json_has(number: float) -> None:
    for body in (session(playback={"position_s": number}), session(statistics={"spoken": 1, "late_ms": number})):
        with pytest.raises(ValidationError):
            AgentSession.model_validate(body)
    with pytest.raises(ValidationError):
        AvatarReport(avatar_id="a", frames=1, width=2, height=2, fps=25, motion_px=number)


def test_lists_of_one_answer_are_not_those_of_the_next() -> None:
    first, second = (AvatarReport(avatar_id="a", frames=1, width=2, height=2, fps=25) for _ in range(2))
    first.frames_without_face.append(1)
    assert second.frames_without_face == [] and second.warnings is not first.warnings


def test_health_says_what_an_older_agent_leaves_out_as_not_draining() -> None:
    capacity = Capacity(sessions=1, sessions_max=8)
    older = AgentHealth.model_validate(
        {"status": "ok", "version": "1", "engine": "warp", "capacity": capacity.model_dump()}
    )
    assert (older.draining, older.instance, older.engine_note) == (False, "", None)
