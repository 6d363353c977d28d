"""What a provider's refusal means: its code, whether it is tried again, what is reported of it; and how long silence is borne."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.problems import ErrorCode
from orchestrator.tts.synthesizer import (
    NO_SOUND,
    SLOWEST,
    TOTAL_ANSWERS,
    Patience,
    ProviderError,
    silent,
    unreachable,
    word_of,
)

QUOTA, KEY, UNKNOWN, FAILED = (
    ErrorCode.VOICE_QUOTA_EXCEEDED,
    ErrorCode.VOICE_UNAUTHORIZED,
    ErrorCode.VOICE_UNKNOWN,
    ErrorCode.TTS_FAILED,
)


@pytest.mark.parametrize(
    ("word", "status", "code", "passing"),
    [
        ("", 401, KEY, False),
        ("", 403, KEY, False),
        ("", 402, QUOTA, False),
        ("", 404, FAILED, False),
        ("", 422, FAILED, False),
        ("", 400, FAILED, False),
        ("", 429, FAILED, True),
        ("", 500, FAILED, True),
        ("", 502, FAILED, True),
        ("", 503, FAILED, True),
        ("", 0, FAILED, False),
        # the provider's word says more than its status
        ("insufficient_quota", 429, QUOTA, False),
        ("quota_exceeded", 401, QUOTA, False),
        ("voice_not_found", 403, UNKNOWN, False),
        ("voice_not_found", 500, UNKNOWN, False),
        ("invalid_api_key", 500, KEY, False),
        ("rate_limit_exceeded", 400, FAILED, True),
        ("system_busy", 0, FAILED, True),
        ("detected_unusual_activity", 0, KEY, False),
        ("some_other_word", 429, FAILED, True),
        ("some_other_word", 400, FAILED, False),
        (NO_SOUND, 0, FAILED, True),
    ],
)
def test_a_refusal_has_a_code_and_is_tried_again_or_not(word: str, status: int, code: ErrorCode, passing: bool) -> None:
    refusal = ProviderError("prov", "prov:ann", word, status)
    problem = refusal.problem("PROV_KEY")
    assert (problem.code, refusal.passing) == (code, passing)
    assert "prov" in problem.detail
    if code is UNKNOWN:
        assert (problem.field, problem.value) == ("voice", "prov:ann")
    else:
        assert (word or f"HTTP {status}") in problem.detail
    assert ("PROV_KEY" in problem.detail) == (code is KEY)


@pytest.mark.parametrize(
    ("asked_s", "reported_s"),
    [(None, None), (0.0, 0), (0.2, 1), (120.0, 120), (1e9, 24 * 3600), (24 * 3600.5, 24 * 3600)],
)
def test_a_wait_that_was_asked_for_is_reported_in_whole_seconds_up_to_a_day(
    asked_s: float | None, reported_s: int | None
) -> None:
    assert ProviderError("p", "v", "", 429, asked_s).problem("K").retry_after_s == reported_s


def test_long_words_and_names_are_reported_in_part() -> None:
    problem = ProviderError("p", "v" * 500, "w" * 500, 400).problem("K")
    assert "w" * 60 in problem.detail and "w" * 61 not in problem.detail
    unknown = ProviderError("p", "v" * 500, "voice_not_found", 404).problem("K")
    assert len(str(unknown.value)) == 80 and len(unknown.detail) < 150


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"error": {"code": "invalid_api_key", "type": "invalid_request_error"}}, "invalid_api_key"),
        ({"error": {"code": None, "type": "server_error"}}, "server_error"),
        ({"error": {"code": 401, "message": "No auth"}}, ""),
        ({"error": "unauthorized"}, "unauthorized"),
        ({"detail": {"status": "quota_exceeded", "message": "…"}}, "quota_exceeded"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body"], "msg": "missing"}]}, ""),
        ({"error": None, "detail": {"status": "system_busy"}}, "system_busy"),
        ({"error": "w" * 500}, "w" * 100),
        ({}, ""),
        ([], ""),
        ("text", ""),
        (None, ""),
    ],
)
def test_the_word_of_an_error_is_found_where_providers_put_it(body: Any, word: str) -> None:
    assert word_of(json.dumps(body).encode()) == word


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"{", b"[" * 100_000])
def test_a_body_that_is_no_json_has_no_word(body: bytes) -> None:
    assert word_of(body) == word_of(bytearray(body)) == ""


def test_silence_and_a_connection_that_fails_say_who_and_what_to_do() -> None:
    assert (silent("prov", 2.5).code, silent("prov", 2.5).limit) == (ErrorCode.VOICE_TIMEOUT, 2.5)
    assert silent("prov", 2.5).detail == "prov gave no sound for 2.5 s: try again."
    assert (unreachable("prov").code, "prov" in unreachable("prov").detail) == (FAILED, True)


EVENTS = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=60)


@settings(max_examples=60)
@given(st.floats(0.1, 10), EVENTS)
def test_patience_ends_after_the_longest_silence_and_after_a_total_that_sound_extends(
    answer_s: float, events: list[tuple[float, float]]
) -> None:
    patience, waited, silence, heard = Patience(answer_s), 0.0, 0.0, 0.0
    assert patience.left_s == pytest.approx(answer_s)
    for wait_s, sound_s in events:
        patience.waited(wait_s)
        waited, silence = waited + wait_s, silence + wait_s
        patience.heard(sound_s)
        if sound_s:
            heard, silence = heard + sound_s, 0.0
        total_s = TOTAL_ANSWERS * answer_s + SLOWEST * heard - waited
        assert patience.left_s == pytest.approx(max(0.0, min(answer_s - silence, total_s)), abs=1e-6)


def test_a_trickle_does_not_extend_patience_for_ever() -> None:
    patience, seconds = Patience(1.0), 0.0
    while patience.left_s > 0:
        patience.waited(0.5)
        patience.heard(0.01)
        seconds += 0.5
    assert seconds == pytest.approx(TOTAL_ANSWERS / (1 - SLOWEST * 0.01 / 0.5), abs=0.5)
