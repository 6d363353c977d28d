"""Whatever is in a message, it crosses the link unchanged; whatever comes instead of one is refused and breaks nothing."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from musetalk_agent.protocol import messages as m

COUNT = st.integers(0, 2**53)
SECONDS = st.floats(0, 1e9)
TEXT = st.text(max_size=40)
PIECES = st.tuples(TEXT, COUNT, COUNT)
EVENTS: st.SearchStrategy[m.Event] = st.one_of(
    st.builds(m.PlaybackStarted, segment=COUNT),
    st.builds(m.PlaybackFinished, segment=COUNT, position_s=SECONDS, interrupted=st.booleans()),
    st.builds(m.Cleared, dropped_s=SECONDS),
    st.builds(m.WarningEvent, code=TEXT, message=TEXT, suspicion=st.none() | TEXT),
    st.builds(m.ErrorEvent, code=TEXT, message=TEXT),
    st.builds(m.PublisherChanged, publisher=TEXT, reason=TEXT),
)
TO_AGENT: st.SearchStrategy[m.LinkMessage] = st.one_of(
    st.builds(
        m.SegmentStart,
        segment=st.integers(1, 2**53),
        sample_rate=st.integers(8000, 48_000),
        heard_s=SECONDS,
        received=st.none() | COUNT,
        in_s=st.floats(0, 5),
        traceparent=st.none() | st.text(max_size=64),
    ),
    st.builds(
        m.SegmentCues,
        segment=COUNT,
        cues=st.lists(PIECES.map(lambda p: m.CueItem(phoneme=p[0], start=p[1], end=p[2])), max_size=5),
    ),
    st.builds(
        m.SegmentCaptions,
        segment=COUNT,
        words=st.lists(PIECES.map(lambda p: m.CaptionWord(text=p[0], start=p[1], end=p[2])), max_size=5),
    ),
    st.builds(m.SegmentEnd, segment=COUNT),
    st.just(m.LinkClear()),
)
FROM_AGENT: st.SearchStrategy[m.AgentMessage] = st.one_of(
    st.builds(m.LinkHello, items=COUNT, segments=COUNT, received_samples=st.none() | COUNT, events=COUNT),
    st.builds(
        m.LinkAck,
        items=COUNT,
        position_s=SECONDS,
        buffered_s=SECONDS,
        segment=COUNT,
        heard_s=SECONDS,
        frames=COUNT,
        draining=st.booleans(),
        resting=st.booleans(),
    ),
    st.builds(m.LinkVoice, segment=COUNT, heard_s=SECONDS, in_s=st.floats(-10, 10), held=st.booleans()),
    st.builds(m.LinkEvent, id=st.integers(1, 2**53), event=EVENTS),
)


@given(TO_AGENT)
def test_what_the_orchestrator_says_arrives_as_it_was_said(message: m.LinkMessage) -> None:
    assert m.link_message.validate_json(message.model_dump_json()) == message


@given(FROM_AGENT)
def test_what_the_agent_says_arrives_as_it_was_said(message: m.AgentMessage) -> None:
    assert m.agent_message.validate_json(message.model_dump_json()) == message


@given(EVENTS, COUNT)
def test_an_event_keeps_what_it_says_when_it_gets_its_public_number(event: m.Event, number: int) -> None:
    public = json.loads(event.model_copy(update={"id": number}).model_dump_json())
    inner = json.loads(m.LinkEvent(id=1, event=event).model_dump_json())["event"]
    assert public == inner | {"id": number}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
DOORS: list[TypeAdapter[Any]] = [m.client_message, m.link_message, m.agent_message]


def taken(door: TypeAdapter[Any], sent: str | bytes) -> m.Message | None:
    """The message, None where it was refused. Whatever else is raised is a fault."""
    try:
        made = door.validate_json(sent)
    except ValidationError:
        return None
    assert isinstance(made, m.Message)
    return made


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60), JSON.map(json.dumps)))
def test_what_is_no_message_is_refused_by_every_door(sent: str | bytes) -> None:
    for door in DOORS:
        taken(door, sent)


@given(st.one_of(TO_AGENT, FROM_AGENT), st.data())
def test_a_message_with_one_part_replaced_is_refused_or_has_values_of_its_types(
    message: m.LinkMessage | m.AgentMessage, data: st.DataObject
) -> None:
    """What passes can be written down again and is the same then: nothing of another type has slipped in."""
    wire = json.loads(message.model_dump_json())
    wire[data.draw(st.sampled_from(sorted(wire)))] = data.draw(JSON)
    for door in DOORS:
        made = taken(door, json.dumps(wire))
        assert made is None or door.validate_json(made.model_dump_json()) == made


@given(st.one_of(TO_AGENT, FROM_AGENT), st.integers(0, 400))
def test_a_message_that_was_cut_off_is_refused(message: m.LinkMessage | m.AgentMessage, at: int) -> None:
    written = message.model_dump_json()
    for door in DOORS:
        assert taken(door, written[: at % len(written)]) is None
