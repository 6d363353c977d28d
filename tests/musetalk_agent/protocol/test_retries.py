"""The table of retries: what it says of every code, and how long its waits are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from musetalk_agent.protocol import retries
from musetalk_agent.protocol.problems import STATUS, ErrorCode
from musetalk_agent.protocol.retries import RetryVerdict, Schedule, Tries, close_verdict, retry_after_s, verdict
from tests.waiting import NEVER_S

PASSING = {
    "agent_unavailable",
    "at_capacity",
    "body_timeout",
    "disk_full",
    "draining",
    "engine_failed",
    "livekit_unavailable",
    "not_ready",
    "quota_exceeded",
    "rate_limited",
    "recording_unavailable",
    "render_not_done",
    "session_conflict",
    "session_elsewhere",
    "store_unavailable",
}
PERHAPS_DONE = {"internal_error", "tts_failed", "voice_quota_exceeded", "voice_timeout", "voice_unauthorized"}


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_of_http_has_the_verdict_that_the_protocol_says(code: ErrorCode) -> None:
    wanted = (
        RetryVerdict.LATER if code in PASSING else RetryVerdict.UNKNOWN if code in PERHAPS_DONE else RetryVerdict.FINAL
    )
    if code is not ErrorCode.IDLE_TIMEOUT:  # it closes a WebSocket and is no answer
        assert verdict(STATUS.get(code, 422), code.value) is wanted


def test_the_table_names_codes_that_exist() -> None:
    assert set(retries.CODES) <= {code.value for code in ErrorCode}


@pytest.mark.parametrize(("status", "wanted"), [(401, "final"), (403, "final"), (404, "final"), (409, "later")])
def test_an_answer_without_a_code_goes_by_its_status(status: int, wanted: str) -> None:
    assert verdict(status) == verdict(status, "http_409") == wanted


def test_no_answer_may_have_been_carried_out() -> None:
    assert verdict(retries.NO_ANSWER) is verdict(502) is RetryVerdict.UNKNOWN


@pytest.mark.parametrize(
    ("close", "code", "wanted"),
    [
        (None, "", "later"),
        (1006, "", "later"),
        (1012, "", "later"),
        (1011, "internal_error", "later"),
        (1001, "", "final"),
        (1008, "replaced", "final"),
        (1008, "idle_timeout", "later"),
        (1006, "session_ended", "final"),
    ],
)
def test_closes_of_a_websocket(close: int | None, code: str, wanted: str) -> None:
    assert close_verdict(close, code) == wanted


def test_waits_grow_to_their_longest_and_end_with_the_time() -> None:
    now = 100.0
    tries = Tries(Schedule(0.5, 2.0, 3.0, 20.0), clock=lambda: now, spread=lambda: 0.0)
    waits = []
    while (wait_s := tries.next_wait_s()) is not None:
        waits.append(wait_s)
        now += wait_s
    assert waits[:5] == [0.5, 1.0, 2.0, 3.0, 3.0] and sum(waits) == 20.0
    tries.succeeded()
    assert tries.next_wait_s() == 0.5


def test_what_the_answer_asks_for_is_waited_and_no_longer_than_the_schedule() -> None:
    now = 0.0
    tries = Tries(Schedule(0.5, 2.0, 3.0, 20.0), clock=lambda: now, spread=lambda: 0.5)
    assert tries.next_wait_s(7) == pytest.approx(7.7)
    now = 15.0
    assert tries.next_wait_s(4.9) == 5.0
    assert tries.next_wait_s(5) is None
    assert tries.next_wait_s(3600) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("2", 2.0),
        (" 120 ", 120.0),
        ("-1", None),
        ("1e9", None),
        ("9" * 5000, None),
        ("²", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Thu, 99 Jan 1970 00:00:10 GMT", None),
    ],
)
def test_the_header_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, now=lambda: 60.0) == seconds


def test_it_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; old = set(sys.modules); import musetalk_agent.protocol.retries; "
        "names = {name.partition('.')[0] for name in set(sys.modules) - old}; "
        "print(sorted(names - set(sys.stdlib_module_names) - {'musetalk_agent'}))"
    )
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S, check=True
    ).stdout
    assert reported.strip() == "[]"
