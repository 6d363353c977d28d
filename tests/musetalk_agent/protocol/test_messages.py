"""Messages of the two `/audio` WebSockets: how each is written on the wire, what is refused, what newer peers may add."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from musetalk_agent.protocol import messages as m

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FINISHED = {"type": "playback.finished", "segment": 3, "position_s": 1.5, "interrupted": False, "id": None}
CLIENT: dict[str, tuple[m.Message, dict[str, Any]]] = {
    "audio.start": (m.AudioStart(), {"type": "audio.start"}),
    "audio.end": (m.AudioEnd(), {"type": "audio.end"}),
    "clear": (m.Clear(), {"type": "clear"}),
    "ping": (m.Ping(), {"type": "ping"}),
}
LINK: dict[str, tuple[m.Message, dict[str, Any]]] = {
    "segment.start": (
        m.SegmentStart(segment=1, sample_rate=24_000, heard_s=0.25, received=100, in_s=0.5, traceparent=TRACE),
        {
            "type": "segment.start",
            "segment": 1,
            "sample_rate": 24_000,
            "heard_s": 0.25,
            "received": 100,
            "in_s": 0.5,
            "traceparent": TRACE,
        },
    ),
    "segment.cues": (
        m.SegmentCues(segment=2, cues=[m.CueItem(phoneme="ə", start=0, end=80)]),
        {"type": "segment.cues", "segment": 2, "cues": [{"phoneme": "ə", "start": 0, "end": 80}]},
    ),
    "segment.captions": (
        m.SegmentCaptions(segment=2, words=[m.CaptionWord(text="Grüße, ", start=0, end=80)]),
        {"type": "segment.captions", "segment": 2, "words": [{"text": "Grüße, ", "start": 0, "end": 80}]},
    ),
    "segment.end": (m.SegmentEnd(segment=2), {"type": "segment.end", "segment": 2}),
    "clear": (m.LinkClear(), {"type": "clear"}),
}
AGENT: dict[str, tuple[m.Message, dict[str, Any]]] = {
    "link.hello": (
        m.LinkHello(items=7, segments=2, received_samples=640, events=9),
        {"type": "link.hello", "protocol": 1, "items": 7, "segments": 2, "received_samples": 640, "events": 9},
    ),
    "link.ack": (
        m.LinkAck(items=7, position_s=2.5, buffered_s=0.5, segment=2, heard_s=1.25, frames=60, draining=True),
        {
            "type": "link.ack",
            "items": 7,
            "position_s": 2.5,
            "buffered_s": 0.5,
            "segment": 2,
            "heard_s": 1.25,
            "frames": 60,
            "draining": True,
            "resting": False,
        },
    ),
    "link.voice": (
        m.LinkVoice(segment=2, heard_s=0.5, in_s=0.15, held=True),
        {"type": "link.voice", "segment": 2, "heard_s": 0.5, "in_s": 0.15, "held": True},
    ),
    "link.event": (
        m.LinkEvent(id=4, event=m.PlaybackFinished(segment=3, position_s=1.5, interrupted=False)),
        {"type": "link.event", "id": 4, "event": FINISHED},
    ),
}
EVENTS: dict[str, dict[str, Any]] = {
    "playback.started": {"segment": 1},
    "playback.finished": {"segment": 1, "position_s": 0.0, "interrupted": True},
    "cleared": {"dropped_s": 0.5},
    "warning": {"code": "wrong_format_suspected", "message": "It looks like floats.", "suspicion": "float32"},
    "error": {"code": "engine_failed", "message": "The device failed."},
    "publisher.changed": {"publisher": "rtmp", "reason": "no WebRTC"},
}
DOORS: list[tuple[TypeAdapter[Any], dict[str, tuple[m.Message, dict[str, Any]]]]] = [
    (m.client_message, CLIENT),
    (m.link_message, LINK),
    (m.agent_message, AGENT),
]
EVERY = [pytest.param(door, *case, id=f"{type(case[0]).__name__}") for door, cases in DOORS for case in cases.values()]


@pytest.mark.parametrize(("door", "message", "wire"), EVERY)
def test_each_message_has_its_fields_on_the_wire_and_comes_back_equal(
    door: TypeAdapter[Any], message: m.Message, wire: dict[str, Any]
) -> None:
    written = message.model_dump_json()
    assert json.loads(written) == wire
    assert door.validate_json(written) == message == door.validate_json(written.encode())


@pytest.mark.parametrize(("door", "message", "wire"), EVERY)
def test_what_a_newer_peer_adds_is_left_out(door: TypeAdapter[Any], message: m.Message, wire: dict[str, Any]) -> None:
    newer = {"colour": "green", **wire, "nested": {"type": "clear"}, "__class__": "x"}
    assert door.validate_json(json.dumps(newer)) == message


@pytest.mark.parametrize(("door", "message", "wire"), EVERY)
def test_a_field_without_a_default_that_is_missing_is_named(
    door: TypeAdapter[Any], message: m.Message, wire: dict[str, Any]
) -> None:
    for name, field in type(message).model_fields.items():
        if not field.is_required():
            continue
        with pytest.raises(ValidationError) as refused:
            door.validate_json(json.dumps({key: value for key, value in wire.items() if key != name}))
        assert [(error["loc"][-1], error["type"]) for error in refused.value.errors()] == [(name, "missing")]


@pytest.mark.parametrize(
    ("door", "older", "message"),
    [
        (m.agent_message, {"type": "link.hello", "items": 3}, m.LinkHello(items=3, segments=0, events=0)),
        (m.agent_message, {"type": "link.ack", "items": 3}, m.LinkAck(items=3, draining=False, resting=False)),
        (
            m.agent_message,
            {"type": "link.voice", "segment": 1, "heard_s": 0, "in_s": 0.1},
            m.LinkVoice(segment=1, heard_s=0, in_s=0.1, held=False),
        ),
        (
            m.link_message,
            {"type": "segment.start", "segment": 1, "sample_rate": 8000},
            m.SegmentStart(segment=1, sample_rate=8000, heard_s=0, received=None, in_s=0, traceparent=None),
        ),
    ],
)
def test_what_an_older_peer_does_not_say_has_its_default(
    door: TypeAdapter[Any], older: dict[str, Any], message: m.Message
) -> None:
    assert door.validate_json(json.dumps(older)) == message


@pytest.mark.parametrize("door", [door for door, _ in DOORS], ids=["client", "link", "agent"])
@pytest.mark.parametrize(
    "sent",
    [
        "",
        "null",
        "5",
        "[]",
        '"clear"',
        "{}",
        '{"type": null}',
        '{"type": ""}',
        '{"type": "CLEAR"}',
        '{"type": "clear "}',
        '{"type": ["clear"]}',
        '{"type": {"$ne": 1}}',
        '[{"type": "clear"}]',
        '{"type": "clear"',
        '{"type": "clear"} {"type": "clear"}',
        "{'type': 'clear'}",
        '{"Type": "clear"}',
        "\ufeff{}",
        '{"type": "\\ud800"}',
        "[" * 10_000,
        '{"type":' * 5_000,
    ],
    ids=repr,
)
def test_what_is_no_message_is_refused_and_nothing_else_is_raised(door: TypeAdapter[Any], sent: str) -> None:
    with pytest.raises(ValidationError):
        door.validate_json(sent)


def test_each_side_takes_only_what_is_said_to_it() -> None:
    for door, own in DOORS:
        for _, other in DOORS:
            for kind, (_, wire) in other.items():
                if kind in own:
                    continue
                with pytest.raises(ValidationError, match="does not match any of the expected tags"):
                    door.validate_python(wire)


def test_the_client_s_types_are_those_of_the_door() -> None:
    assert m.CLIENT_TYPES == set(CLIENT)
    for kind in m.CLIENT_TYPES:
        assert m.client_message.validate_python({"type": kind}).type == kind


@pytest.mark.parametrize("kind", EVENTS)
def test_the_link_carries_each_event_with_its_number(kind: str) -> None:
    taken = m.agent_message.validate_python({"type": "link.event", "id": 12, "event": {"type": kind, **EVENTS[kind]}})
    assert isinstance(taken, m.LinkEvent) and taken.event.type == kind and taken.id == 12
    assert taken.event.id is None, "an event's public number is the orchestrator's to give"
    for name, value in EVENTS[kind].items():
        assert getattr(taken.event, name) == value


def test_an_agent_cannot_speak_for_the_session() -> None:
    """Its state is the orchestrator's own; so are greetings of the public connection."""
    for kind in ("session.state", "hello", "ack", "pong", "link.ack"):
        with pytest.raises(ValidationError):
            m.agent_message.validate_python({"type": "link.event", "id": 1, "event": {"type": kind, "state": "ready"}})


START = {"type": "segment.start", "segment": 1, "sample_rate": 16_000}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("segment", [1, 2, 10**6], [0, -1, 1.5, "one", None]),
        ("sample_rate", [8000, 11_025, 48_000], [7999, 48_001, 0, -8000, 16_000.5]),
        ("heard_s", [0, 0.0, 3600.5], [-0.001, math.inf, math.nan, "NaN"]),
        ("received", [None, 0, 2**40], [-1, 0.5]),
        ("in_s", [0, 5, 5.0], [-0.1, 5.001, math.inf, math.nan]),
        ("traceparent", [None, "", "x" * 64], ["x" * 65, 5]),
    ],
)
def test_the_bounds_of_a_segment_s_start(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(m.link_message.validate_python(START | {field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError) as refused:
            m.link_message.validate_python(START | {field: value})
        assert refused.value.errors()[0]["loc"] == ("segment.start", field), value


NUMBERS: list[tuple[TypeAdapter[Any], str, str]] = [
    (m.agent_message, '{"type": "link.ack", "items": 1, "position_s": %s}', "position_s"),
    (m.agent_message, '{"type": "link.voice", "segment": 1, "heard_s": 0, "in_s": %s}', "in_s"),
    (m.agent_message, '{"type": "link.event", "id": 1, "event": {"type": "cleared", "dropped_s": %s}}', "dropped_s"),
]


@pytest.mark.parametrize(("door", "text", "field"), NUMBERS)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(door: TypeAdapter[Any], text: str, field: str, number: str) -> None:
    assert door.validate_json(text % "0.5")
    with pytest.raises(ValidationError) as refused:
        door.validate_json(text % number)
    assert refused.value.errors()[0]["loc"][-1] == field


def test_what_was_not_finite_cannot_be_said_either() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValidationError):
            m.Cleared(dropped_s=value)


def test_the_greeting_of_the_public_connection_tells_where_to_go_on_and_the_limits() -> None:
    limits = m.Limits(message_bytes=65_536, backlog_s=120, bytes_per_s=192_000)
    hello = m.Hello(session_id="ses_1", received_samples=640, sample_rate=16_000, limits=limits)
    assert json.loads(hello.model_dump_json()) == {
        "type": "hello",
        "protocol": 1,
        "session_id": "ses_1",
        "received_samples": 640,
        "sample_rate": 16_000,
        "limits": {"message_bytes": 65_536, "backlog_s": 120.0, "bytes_per_s": 192_000, "segments": 256},
    }
    assert json.loads(m.Ack(received_samples=5).model_dump_json()) == {"type": "ack", "received_samples": 5}
    assert json.loads(m.Pong().model_dump_json()) == {"type": "pong"}


def test_the_codes_with_which_connections_close_are_those_of_rfc_6455_and_the_registry() -> None:
    assert (m.CLOSE_GOING_AWAY, m.CLOSE_POLICY, m.CLOSE_INTERNAL, m.CLOSE_RESTART) == (1001, 1008, 1011, 1012)
