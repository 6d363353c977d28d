"""Errors on the wire: codes that stay, statuses that agree with the table of retries, the body of RFC 9457."""

from __future__ import annotations

import json

import pytest

from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import MEDIA_TYPE, STATUS, ErrorCode, ProblemError
from musetalk_agent.protocol.retries import RetryVerdict, verdict


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_is_a_word_for_programs_and_its_title_one_for_people(code: ErrorCode) -> None:
    assert code.value.replace("_", "").isalpha() and code.value == code.value.lower()
    problem = Problem.of(ProblemError(code, "Why."))
    assert problem.title[0].isupper() and problem.title.lower() == code.value.replace("_", " ")
    assert problem.status == STATUS.get(code, 422) and 400 <= problem.status < 600


def test_the_statuses_that_clients_rely_on() -> None:
    by_status: dict[int, set[str]] = {}
    for code in ErrorCode:
        by_status.setdefault(ProblemError(code, "x").status, set()).add(code.value)
    assert by_status[401] == {"unauthorized"} and by_status[403] == {
        "forbidden",
        "origin_forbidden",
        "minutes_exhausted",
    }
    assert by_status[404] == {
        "not_found",
        "session_not_found",
        "avatar_not_found",
        "clip_not_found",
        "recording_not_found",
        "render_not_found",
    }
    assert by_status[405] == {"method_not_allowed"} and by_status[413] == {"message_too_large"}
    assert by_status[429] == {"rate_limited", "quota_exceeded"} and by_status[421] == {"session_elsewhere"}
    assert by_status[500] == {"internal_error"} and by_status[504] == {"voice_timeout"}


@pytest.mark.parametrize("code", [code for code in ErrorCode if STATUS.get(code) == 503])
def test_what_is_unavailable_may_come_back_but_for_what_this_process_will_never_have(code: ErrorCode) -> None:
    never = {
        ErrorCode.ENGINE_UNAVAILABLE,
        ErrorCode.VOICE_UNAVAILABLE,
        ErrorCode.CONVERSATION_UNAVAILABLE,
        ErrorCode.RENDERS_UNAVAILABLE,
    }
    assert verdict(503, code.value) is (RetryVerdict.FINAL if code in never else RetryVerdict.LATER)


def test_the_body_is_that_of_rfc_9457_with_the_field_the_value_and_the_limit() -> None:
    error = ProblemError(
        ErrorCode.AVATAR_TOO_LARGE, "The file has 9 bytes; 7 at most.", field="frames_zip_url", limit=7, value=9
    )
    assert json.loads(Problem.of(error).model_dump_json()) == {
        "type": "about:blank",
        "title": "Avatar too large",
        "status": 422,
        "code": "avatar_too_large",
        "detail": "The file has 9 bytes; 7 at most.",
        "field": "frames_zip_url",
        "limit": 7,
        "value": 9,
    }
    assert MEDIA_TYPE == "application/problem+json" and str(error) == error.detail


@pytest.mark.parametrize("value", ["a", 5, 0.5, 0, "", None])
def test_values_keep_their_types_on_the_wire(value: str | int | float | None) -> None:
    problem = Problem.of(ProblemError(ErrorCode.INVALID_REQUEST, "Why.", value=value, limit=value))
    again = Problem.model_validate_json(problem.model_dump_json())
    assert again == problem and type(again.value) is type(value) and type(again.limit) is type(value)


def test_when_to_try_again_is_a_header_and_not_in_the_body() -> None:
    error = ProblemError(ErrorCode.RATE_LIMITED, "Slow down.", retry_after_s=7)
    assert error.retry_after_s == 7 and "retry" not in Problem.of(error).model_dump_json()
