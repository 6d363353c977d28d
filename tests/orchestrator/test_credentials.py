from __future__ import annotations

import time

import pytest

from orchestrator.credentials import Credentials, bearer


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_the_bearer_value_of_a_header(header: str | None, value: str | None) -> None:
    assert bearer(header) == value


def test_every_key_counts_and_nothing_else() -> None:
    credentials = Credentials(["one", "zwei-ä"])
    assert credentials.is_api_key("one") and credentials.is_api_key("zwei-ä")
    for wrong in ("", "o", "one ", "onee", "One", "zwei-a"):
        assert not credentials.is_api_key(wrong)
    assert not Credentials([]).is_api_key("")


def test_an_audio_token_is_for_one_session_and_for_a_time() -> None:
    credentials = Credentials(["key"])
    token = credentials.audio_token("ses_a", time.time() + 60)
    assert credentials.opens_audio("ses_a", token)
    assert not credentials.opens_audio("ses_b", token)
    assert not credentials.opens_audio("ses_a", credentials.audio_token("ses_a", time.time() - 1))
    assert not Credentials(["key"]).opens_audio("ses_a", token)
    assert not credentials.authorises(token)


def test_a_page_token_is_no_audio_token_and_ends() -> None:
    credentials = Credentials(["key"])
    token = credentials.page_token(60)
    assert credentials.authorises(token) and credentials.authorises("key")
    assert not credentials.opens_audio("", token)
    assert not credentials.authorises(credentials.page_token(-1))


@pytest.mark.parametrize(
    "mangle", [lambda t: t + "A", lambda t: "1" + t, lambda t: t.replace(".", ""), lambda t: "ä" + t]
)
def test_a_mangled_token_opens_nothing(mangle: object) -> None:
    credentials = Credentials(["key"])
    assert not credentials.authorises(mangle(credentials.page_token(60)))  # type: ignore[operator]


def test_expiry_cannot_be_moved() -> None:
    credentials = Credentials(["key"])
    expiry, _, signature = credentials.page_token(60).partition(".")
    assert not credentials.authorises(f"{int(expiry) + 1000}.{signature}")
