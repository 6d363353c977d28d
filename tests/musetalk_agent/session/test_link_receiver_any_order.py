"""What the inbox counts and hands on, whatever the orchestrator sends in whatever order, beside a plain model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.segment import Word
from musetalk_agent.media_types import Cue, Pcm
from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.session.link import LinkReceiver


@dataclass
class Heard:
    """A pipeline that writes down what it is handed. `player` says what a test says of the queue."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    player: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(buffered_s=0.0, open_segments=0))

    def begin(self, number: int, rate: int, heard_s: float, in_s: float, traceparent: str | None) -> None:
        self.calls.append(("begin", number, rate, heard_s, in_s, traceparent))

    def push(self, samples: Pcm) -> None:
        self.calls.append(("push", samples.tolist()))

    def end(self) -> None:
        self.calls.append(("end",))

    def clear(self) -> None:
        self.calls.append(("clear",))

    def cue(self, cues: list[Cue]) -> None:
        self.calls.append(("cue", cues))

    def caption(self, words: list[Word]) -> None:
        self.calls.append(("caption", words))


def receiver(backlog_s: int = 120) -> tuple[LinkReceiver, Heard, list[m.Event]]:
    heard, events = Heard(), list[m.Event]()
    return LinkReceiver(cast(Pipeline, heard), backlog_s, 25, events.append), heard, events


def start(number: int, **more: Any) -> str:
    return m.SegmentStart(segment=number, sample_rate=16_000, **more).model_dump_json()


ITEMS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(1, 9), st.booleans()),
        st.tuples(st.just("pcm"), st.integers(0, 2000), st.booleans()),
        st.tuples(st.sampled_from(["end", "clear"]), st.just(0), st.booleans()),
    ),
    max_size=40,
)


@given(ITEMS)
def test_every_item_counts_once_and_samples_of_audio_count_where_they_are_asked_to(
    items: list[tuple[str, int, bool]],
) -> None:
    taken, heard, _ = receiver()
    received: int | None = None
    counting, highest, pushed = False, 0, 0
    for number, (act, much, over_audio) in enumerate(items, 1):
        if act == "start":
            taken.take(start(much, received=received or 0) if over_audio else start(much))
            received, counting, highest = (received or 0) if over_audio else received, over_audio, max(highest, much)
        elif act == "pcm":
            taken.take(np.full(much, 7, "<i2").tobytes())
            pushed += much
            received = received + much if counting and received is not None else received
        else:
            taken.take(m.SegmentEnd(segment=1).model_dump_json() if act == "end" else m.LinkClear().model_dump_json())
        assert (taken.items, taken.segments, taken.received_samples) == (number, highest, received)
    assert sum(len(call[1]) for call in heard.calls if call[0] == "push") == pushed
    assert [call[1] for call in heard.calls if call[0] == "begin"] == [much for act, much, _ in items if act == "start"]
    assert sum(call[0] == "clear" for call in heard.calls) == sum(act == "clear" for act, *_ in items)


def test_a_segment_that_goes_on_elsewhere_is_counted_from_where_it_was_heard() -> None:
    taken, heard, _ = receiver()
    taken.take(start(4, heard_s=0.25, received=100, in_s=0.5, traceparent="00-ab-cd-01"))
    assert heard.calls == [("end",), ("begin", 4, 16_000, 0.25, 0.5, "00-ab-cd-01")]
    assert taken.received_samples == 4100 and taken.segments == 4
    taken.take(bytes(20))
    assert taken.received_samples == 4110
    taken.take(start(2))
    assert taken.segments == 4 and taken.received_samples == 4110, "a text counts no samples of /audio"
    taken.take(bytes(20))
    assert taken.received_samples == 4110


def test_samples_are_little_endian_and_phonemes_and_words_are_handed_on() -> None:
    taken, heard, _ = receiver()
    taken.take(m.SegmentStart(segment=1, sample_rate=8000).model_dump_json())
    assert taken.last_audio_at is None
    begun = time.time()
    taken.take(b"\x01\x00\xff\xff\x00\x80\xff\x7f")
    assert heard.calls[-1] == ("push", [1, -1, -32_768, 32_767])
    assert taken.last_audio_at is not None and begun <= taken.last_audio_at <= time.time(), "seconds since 1970"
    taken.take(m.SegmentCues(segment=1, cues=[m.CueItem(phoneme="a", start=80, end=160)]).model_dump_json())
    assert heard.calls[-1] == ("cue", [Cue("a", 80, 160)])
    taken.take(m.SegmentCaptions(segment=1, words=[m.CaptionWord(text="Hi ", start=800, end=1600)]).model_dump_json())
    assert heard.calls[-1] == ("caption", [Word("Hi ", 0.1)]), "in seconds of the segment"


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (b"\x00", "PCM of 1 bytes is not whole int16 samples"),
        (bytes(641), "PCM of 641 bytes"),
        ("", "not a link message"),
        ("{}", "not a link message"),
        ("null", "not a link message"),
        ('{"type": "ping"}', "ping"),
        ('{"type": "segment.start", "segment": 0, "sample_rate": 16000}', "segment"),
        ('{"type": "segment.start", "segment": 1, "sample_rate": 4000}', "sample_rate"),
        ("[" * 9999, "not a link message"),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_a_code_and_counts_as_nothing(item: str | bytes, says: str) -> None:
    taken, heard, events = receiver()
    taken.take(start(1))
    before = list(heard.calls)
    with pytest.raises(ProblemError) as refused:
        taken.take(item)
    assert refused.value.code is ErrorCode.INVALID_MESSAGE and says in refused.value.detail
    assert taken.items == 1 and heard.calls == before and not events
    taken.take(b"\x00\x00")
    assert taken.items == 2


@pytest.mark.parametrize(("backlog_s", "buffered_s", "refused"), [(1, 6.0, False), (1, 6.01, True), (600, 605.5, True)])
def test_speech_that_waits_longer_than_the_backlog_and_a_margin_ends_its_segment_once(
    backlog_s: int, buffered_s: float, refused: bool
) -> None:
    taken, heard, events = receiver(backlog_s)
    taken.take(start(3))
    heard.player.buffered_s = buffered_s
    for _ in range(3):
        taken.take(bytes(640))
    assert [type(event) for event in events] == ([m.WarningEvent] if refused else [])
    assert heard.calls.count(("end",)) == 1 + refused, "the first was of the start"
    if refused:
        reported = json.loads(events[0].model_dump_json())
        assert reported["code"] == "backlog_exceeded"
        assert (
            reported["message"]
            == f"Segment 3 is not spoken further: more than {backlog_s} s of speech wait to be played."
        )
    heard.player.buffered_s = 0.0
    taken.take(start(4))
    assert heard.calls[-1][:2] == ("begin", 4), "the next segment is taken"


@pytest.mark.parametrize(("waiting", "refused"), [(255, False), (256, True), (1000, True)])
def test_a_segment_too_many_is_refused_and_finished_where_it_was_heard(waiting: int, refused: bool) -> None:
    taken, heard, events = receiver()
    heard.player.open_segments = waiting
    taken.take(start(300, heard_s=1.5))
    assert (heard.calls[-1][0] == "begin") is not refused
    if refused:
        assert isinstance(events[0], m.WarningEvent) and "more than 256 segments wait" in events[0].message
        assert events[1:] == [m.PlaybackFinished(segment=300, position_s=1.5, interrupted=True)]
    assert taken.items == 1 and taken.segments == 300, "it counts as taken, so that it is not sent again"
