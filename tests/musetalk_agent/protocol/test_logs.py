from __future__ import annotations

import json
import logging

import pytest

from musetalk_agent.protocol.logs import JsonFormatter, RedactingFilter, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ2aWV3ZXIifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (
            '"WebSocket /audio?session_id=s&token=1.abc-_" [accepted]',
            '"WebSocket /audio?session_id=s&token=***" [accepted]',
        ),
        ("GET /audio?token=1.abc&session_id=s", "GET /audio?token=***&session_id=s"),
        ("Authorization: Bearer key_abc", "Authorization: Bearer ***"),
        (f"joined with {JWT}!", "joined with ***!"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_are_blotted_out(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_a_line_is_json_with_its_extras_and_no_secret() -> None:
    record = logging.getLogger("orchestrator.x").makeRecord(
        "orchestrator.x", logging.INFO, "f", 1, "static message", (), None, extra={"session_id": "s", "token": JWT}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["session_id"], line["token"]) == ("static message", "s", "***")
    assert line["level"] == "info" and line["at"].endswith("+00:00")


def test_the_filter_redacts_arguments_too() -> None:
    record = logging.makeLogRecord({"msg": "%s %s", "args": ("/audio?token=abc", JWT)})
    assert RedactingFilter().filter(record)
    assert record.getMessage() == "/audio?token=*** ***"
