"""The diagnosis while the engine fails: never `ok`, and over with the first good frame."""

from __future__ import annotations

import pytest

from musetalk_agent.protocol.http import DiagnosisCode
from musetalk_agent.session.diagnosis import DiagnosisInput, PipelineStats

WELL = DiagnosisInput(joined=True, viewers=1, subscribed=True)


def speaking() -> PipelineStats:
    funnel = PipelineStats()
    funnel.add("samples", 16_000)
    funnel.peak = 9000
    return funnel


@pytest.mark.parametrize("stage", ["features", "patches"])
def test_an_engine_that_has_made_nothing_but_failures_is_the_diagnosis(stage: str) -> None:
    funnel = speaking()
    assert funnel.diagnose(WELL).code is DiagnosisCode.OK
    funnel.fail(stage, "RuntimeError: lips on fire")
    reported = funnel.diagnose(WELL)
    assert reported.code is DiagnosisCode.ENGINE_FAILING and "lips on fire" in reported.message
    funnel.add(stage, 1)
    assert funnel.diagnose(WELL).code is DiagnosisCode.OK


def test_three_failures_in_a_row_are_reported_after_good_frames_one_is_not() -> None:
    funnel = speaking()
    funnel.add("patches", 100)
    for expected in (DiagnosisCode.OK, DiagnosisCode.OK, DiagnosisCode.ENGINE_FAILING):
        funnel.fail("patches", "an error")
        assert funnel.diagnose(WELL).code is expected
    funnel.add("patches", 1)
    assert funnel.diagnose(WELL).code is DiagnosisCode.OK


def test_failing_goes_before_slow() -> None:
    facts = DiagnosisInput(joined=True, viewers=1, subscribed=True, failing="half of them fail", slow="late")
    assert speaking().diagnose(facts).code is DiagnosisCode.ENGINE_FAILING


def test_what_is_missing_is_named_where_it_is_known() -> None:
    stats = PipelineStats()
    missing = "Waiting for 'anna': no participant of this identity is in the room."
    found = stats.diagnose(DiagnosisInput(joined=True, missing=missing))
    assert (found.code, found.message) == (DiagnosisCode.NO_AUDIO, missing)
    found = stats.diagnose(DiagnosisInput(joined=True))
    assert found.code is DiagnosisCode.NO_AUDIO and found.message.startswith("No PCM has arrived yet")
    assert speaking().diagnose(DiagnosisInput(joined=True, missing=missing)).message == missing
