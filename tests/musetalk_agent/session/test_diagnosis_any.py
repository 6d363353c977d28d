"""The diagnosis, whatever holds at once: the first cause along the list is reported, in a sentence, and else that all is well."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.http import FUNNEL_STAGES, DiagnosisCode, Suspicion
from musetalk_agent.session.diagnosis import FAILING_IN_ROW, SILENCE_PEAK, DiagnosisInput, PipelineStats

SENTENCE = st.none() | st.just("A sentence.")


@dataclass
class Situation:
    """What may hold of a session."""

    joined: bool
    suspicion: Suspicion | None
    samples: int
    peak: int
    failing: str | None
    slow: str | None
    fallback: bool
    viewers: int
    subscribed: bool
    watched: bool
    note: str | None = field(default=None)


SITUATIONS = st.builds(
    Situation,
    joined=st.booleans(),
    suspicion=st.none() | st.sampled_from(Suspicion),
    samples=st.sampled_from([0, 1, 16_000]),
    peak=st.sampled_from([0, SILENCE_PEAK - 1, SILENCE_PEAK, 20_000]),
    failing=SENTENCE,
    slow=SENTENCE,
    fallback=st.booleans(),
    viewers=st.integers(0, 2),
    subscribed=st.booleans(),
    watched=st.booleans(),
    note=st.none() | st.just("The engine is 'warp', not MuseTalk: no card."),
)


def first_cause(s: Situation) -> DiagnosisCode:
    """What the documentation says, one question after the other."""
    code = DiagnosisCode
    if not s.joined:
        return code.ROOM_NOT_JOINED
    if s.suspicion:
        return code.WRONG_FORMAT_SUSPECTED
    if not s.samples:
        return code.NO_AUDIO
    if s.peak < SILENCE_PEAK:
        return code.SILENT_AUDIO
    if s.failing:
        return code.ENGINE_FAILING
    if s.slow:
        return code.ENGINE_SLOW
    if s.fallback:
        return code.RTMP_FALLBACK_ACTIVE
    return code.OK if s.viewers and s.subscribed and s.watched else code.TRACK_NOT_SUBSCRIBED


def funnel(s: Situation) -> PipelineStats:
    made = PipelineStats()
    if s.samples:
        made.add("samples", s.samples)
    made.peak = s.peak
    return made


@given(SITUATIONS)
def test_the_first_cause_along_the_list_is_reported(s: Situation) -> None:
    facts = DiagnosisInput(
        joined=s.joined,
        viewers=s.viewers,
        subscribed=s.subscribed,
        watched=s.watched,
        suspicion=s.suspicion,
        suspicion_text="It looks like floats." if s.suspicion else "",
        failing=s.failing,
        slow=s.slow,
        fallback=s.fallback,
        note=s.note,
    )
    reported = funnel(s).diagnose(facts)
    assert reported.code is first_cause(s)
    assert len(reported.message) > 10 and reported.message.endswith((".", "?"))
    wrong_format = reported.code is DiagnosisCode.WRONG_FORMAT_SUSPECTED
    assert reported.suspicion == (s.suspicion if wrong_format else None)
    assert ("not MuseTalk" in reported.message) == (reported.code is DiagnosisCode.OK and s.note is not None)


def test_the_sentences_have_the_numbers() -> None:
    silent = PipelineStats()
    silent.add("samples", 32_000)
    silent.peak = 7
    reported = silent.diagnose(DiagnosisInput(joined=True)).message
    assert "32000 samples" in reported and "peak 7 of 32767" in reported
    silent.peak = 9000
    assert "(0 viewers)" in silent.diagnose(DiagnosisInput(joined=True)).message
    assert (
        PipelineStats().diagnose(DiagnosisInput(join_error="The token is too old.")).message == "The token is too old."
    )


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "fail"]), st.sampled_from(["features", "patches", "composed"])), max_size=25
)


@given(STEPS)
def test_an_engine_fails_when_nothing_went_through_yet_or_three_in_a_row_did_not(steps: list[tuple[str, str]]) -> None:
    """`composed` is no stage of the engine: its failures are not reported as the engine's."""
    made = PipelineStats()
    made.add("samples", 1)
    made.peak = 9000
    counts = dict.fromkeys(FUNNEL_STAGES, 0)
    rows = dict.fromkeys(FUNNEL_STAGES, 0)
    for act, stage in steps:
        if act == "add":
            made.add(stage, 2)
            counts[stage] += 2
            rows[stage] = 0
        else:
            made.fail(stage, f"{stage} broke")
            rows[stage] += 1
        failing = [s for s in ("features", "patches") if rows[s] and (rows[s] >= FAILING_IN_ROW or not counts[s])]
        reported = made.diagnose(DiagnosisInput(joined=True, viewers=1, subscribed=True))
        assert (reported.code is DiagnosisCode.ENGINE_FAILING) == bool(failing)
        assert not failing or f"{failing[0]} broke" in reported.message
    report = {stage.stage: stage for stage in made.report()}
    assert list(report) == list(FUNNEL_STAGES), "in the order of the path"
    for stage, count in counts.items():
        if stage != "samples":
            assert report[stage].count == count and (report[stage].last_at is not None) == (count > 0)


def test_what_the_sfu_says_it_has_replaces_what_it_said_before() -> None:
    made = PipelineStats()
    made.set_acknowledged(120, 1_795_899_180.0)
    made.set_acknowledged(90, None)  # another room
    (stage,) = [one for one in made.report() if one.stage == "acknowledged"]
    assert (stage.count, stage.last_at) == (90, None)
    with pytest.raises(KeyError):
        made.add("elsewhere", 1)
