"""No secret survives in a log line, wherever it stands; a line is one line of JSON; foreign loggers are guarded once."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol import logs
from musetalk_agent.protocol.logs import JsonFormatter, RedactingFilter, configure, guard, redact

SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
SECRET = st.text(SAFE, min_size=12, max_size=40)
AROUND = st.text(" ,;\n\"'()[]äß☂.", max_size=6)
PLACES = [
    "{before}https://x.example/audio?token={secret}{after}",
    "{before}https://x.example/audio?a=1&access_token={secret}&b=2{after}",
    "{before}Authorization: Bearer {secret}{after}",
    "{before}bearer {secret}{after}",
    "{before} whsec_{secret}{after}",
    "{before} mtk_{secret}{after}",
    "{before} redis://:{secret}@redis:6379/0{after}",
    "{before} https://user:{secret}@example.com/a{after}",
    "{before} rtmp://live.example/app/{secret}{after}",
    "{before} RTMPS://live.example:443/{secret}/x{after}",
    "{before} eyJ{secret}.{secret}.{secret}{after}",
]


@given(st.sampled_from(PLACES), SECRET, AROUND, AROUND)
def test_a_secret_is_blotted_out_wherever_it_stands(place: str, secret: str, before: str, after: str) -> None:
    reported = redact(place.format(before=before, secret=secret, after=after))
    assert secret not in reported and "***" in reported
    assert redact(reported) == reported, "twice changes nothing"


@given(st.text(" abcxyz.,:;/?=@-0123456789", max_size=80))
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    if "://" not in text:
        assert redact(text) == text


def record(message: object = "said", *args: object, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("a.b").makeRecord("a.b", logging.WARNING, "f", 1, message, args, None, extra=extra)


@given(
    st.text(max_size=60), st.dictionaries(st.text("abcxyz", min_size=1, max_size=6), st.text(max_size=20), max_size=3)
)
def test_a_record_is_one_line_of_json_whatever_is_in_it(message: str, extra: dict[str, str]) -> None:
    written = JsonFormatter().format(record(message, **extra))
    assert "\n" not in written and "\r" not in written
    line = json.loads(written)
    assert (line["level"], line["logger"]) == ("warning", "a.b")
    assert set(line) == {"at", "level", "logger", "message", *extra}


def test_arguments_objects_and_errors_are_in_the_line() -> None:
    made = record("%s of %d", "one", 2, path=object, amount=0.5, nothing=None)
    try:
        raise OSError("no https://x/audio?token=abcdefgh here")
    except OSError:
        made.exc_info = sys.exc_info()
    line = json.loads(JsonFormatter().format(made))
    assert line["message"] == "one of 2" and line["amount"] == 0.5 and line["nothing"] is None
    assert line["path"] == "<class 'object'>"
    assert line["error"].startswith("Traceback") and line["error"].endswith(
        "OSError: no https://x/audio?token=*** here"
    )


def test_foreign_loggers_are_guarded_once_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FOREIGN", ("tests.foreign",))
    guard()
    guard()
    filters = logging.getLogger("tests.foreign").filters
    assert [type(one) for one in filters] == [RedactingFilter]


def test_what_uvicorn_says_of_every_refused_websocket_is_left_out_and_nothing_else() -> None:
    keeper = RedactingFilter()
    assert not keeper.filter(record("ASGI callable returned without completing handshake."))
    kept = record("%s said %s", "he", "Bearer abcdefgh")
    assert keeper.filter(kept) and kept.getMessage() == "he said Bearer ***"
    percent = record("100%% of %s", "it")
    assert keeper.filter(percent) and percent.getMessage() == "100% of it", "and a percent sign is not read again"


def test_a_program_s_logs_are_json_on_stderr_from_its_level_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, http = logging.getLogger(), logging.getLogger("httpx")
    before, level, http_level = list(root.handlers), root.level, http.level
    try:
        configure("warning")
        logging.getLogger("a.b").info("not this")
        logging.getLogger("a.b").warning("this", extra={"session_id": "ses_1"})
        http.info("nor each request")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["message"] == "this" and json.loads(line)["session_id"] == "ses_1"
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        http.setLevel(http_level)
