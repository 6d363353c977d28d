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
        ("wss://sfu.example/rtc?access_token=1.abc&auto=1", "wss://sfu.example/rtc?access_token=***&auto=1"),
        ("to rtmps://live.example:443/app/key?sig=1, failed", "to rtmps://live.example:443/***, failed"),
        ("redis://:the-password@redis:6379/0", "redis://***@redis:6379/0"),
        ("http://me:pw@example.com/a@b", "http://***@example.com/a@b"),
        ("signed with whsec_AAAA+/== and mtk_a-b_c.", "signed with whsec_*** and mtk_***."),
        (f"minted mtp_{'0a' * 16}{'-_Z' * 14}A for", "minted mtp_*** for"),
        ("at http://example.com/a and https://example.com", "at http://example.com/a and https://example.com"),
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
