"""Traces of what a session says, from the caller's own span to the agent."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan

from musetalk_agent.protocol.messages import PlaybackFinished
from orchestrator.session.speech_queue import SegmentSpans
from orchestrator.tts.voices import Voices
from tests.fakes.stage import stage
from tests.fakes.tone_voice import TonePerWord
from tests.spans import PARENT, SPAN, TRACE, recorded


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


async def test_a_text_is_traced_within_its_caller() -> None:
    with recorded() as exporter:
        async with stage(voices=Voices("tone:one", synthesizers=[TonePerWord()])) as running:
            async with running.live() as (started, line):
                url = f"/session/{started['session_id']}/speak"
                for text in ("one two", "one break"):
                    await running.http.post(url, json={"text": text}, headers={"traceparent": PARENT})
                await line.wait("playback.finished", count=2)
                starts = [text for text in running.agent.only.texts if text["type"] == "segment.start"]
        spans = exporter.get_finished_spans()
    asked = [span for span in spans if span.name == "POST /session/{session_id}/speak"]
    spoken = [span for span in spans if span.name == "utterance"]
    made = [span for span in spans if span.name == "synthesis"]
    assert [parent_of(span) for span in asked] == [SPAN, SPAN]
    assert [parent_of(span) for span in spoken] == [span.context.span_id for span in asked]
    assert [parent_of(span) for span in made] == [span.context.span_id for span in spoken]
    assert [span.attributes["outcome"] for span in made if span.attributes] == ["ok", "tts_failed"]
    assert [event.name for event in made[0].events] == ["first.sound"]
    sent = [f"00-{TRACE:032x}-{span.context.span_id:016x}-01" for span in spoken]
    assert [start["traceparent"] for start in starts] == sent


def test_pcm_is_a_trace_of_its_own_and_a_lost_agent_is_reported_in_it() -> None:
    with recorded() as exporter:
        utterances = SegmentSpans("ses_1")
        first, second = utterances.begin(1), utterances.begin(2)
        utterances.on_event(PlaybackFinished(segment=1, position_s=1.5, interrupted=True))
        utterances.lost("hung")
        utterances.on_event(PlaybackFinished(segment=2, position_s=0.0, interrupted=False))
        utterances.on_event(PlaybackFinished(segment=2, position_s=0.0, interrupted=False))
        one, two = exporter.get_finished_spans()
    assert first is not None and second is not None and first.split("-")[1] != second.split("-")[1]
    assert one.parent is None and one.attributes is not None
    assert dict(one.attributes) == {"session_id": "ses_1", "segment": 1, "interrupted": True, "position_s": 1.5}
    assert [(event.name, dict(event.attributes or {})) for event in two.events] == [("agent.lost", {"cause": "hung"})]


def test_untraced_there_is_nothing() -> None:
    utterances = SegmentSpans("ses_1")
    assert utterances.begin(1) is None
    utterances.child(1, "synthesis").end()
    utterances.on_event(PlaybackFinished(segment=1, position_s=0.0, interrupted=False))
