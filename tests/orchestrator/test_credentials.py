from __future__ import annotations

import time

import pytest

from orchestrator.credentials import Credentials, bearer
from orchestrator.keys import KeyRing, Scope, operators


def made(*keys: str, secret: str = "of this deployment") -> Credentials:
    return Credentials(KeyRing(operators(keys)), secret)


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
    credentials = made("one", "zwei-ä")
    for key in ("one", "zwei-ä"):
        caller = credentials.caller(key)
        assert caller is not None and caller.scope is Scope.OPERATOR
    for wrong in ("", "o", "one ", "onee", "One", "zwei-a", "\udc80"):
        assert credentials.caller(wrong) is None
    assert made().caller("") is None


def test_an_audio_token_is_for_one_session_and_for_a_time() -> None:
    credentials = made("key")
    token = credentials.audio_token("ses_a", time.time() + 60)
    assert credentials.opens_audio("ses_a", token)
    assert not credentials.opens_audio("ses_b", token)
    assert not credentials.opens_audio("ses_a", credentials.audio_token("ses_a", time.time() - 1))
    assert credentials.caller(token) is None


def test_tokens_hold_where_the_deployments_secret_is_the_same() -> None:
    token = made("key").audio_token("ses_a", time.time() + 60)
    assert made("another key").opens_audio("ses_a", token)  # after a restart, or at another orchestrator
    assert not made("key", secret="of another deployment").opens_audio("ses_a", token)


def test_a_page_token_is_no_audio_token_and_ends() -> None:
    credentials = made("key")
    token = credentials.page_token(60)
    caller = credentials.caller(token)
    assert caller is not None and caller.name == "page"
    assert not credentials.opens_audio("", token)
    assert credentials.caller(credentials.page_token(-1)) is None


@pytest.mark.parametrize(
    "mangle",
    [lambda t: t + "A", lambda t: "1" + t, lambda t: t.replace(".", ""), lambda t: "ä" + t, lambda t: "\udc80" + t],
)
def test_a_mangled_token_opens_nothing(mangle: object) -> None:
    credentials = made("key")
    assert credentials.caller(mangle(credentials.page_token(60))) is None  # type: ignore[operator]


def test_expiry_cannot_be_moved() -> None:
    credentials = made("key")
    expiry, _, signature = credentials.page_token(60).partition(".")
    assert credentials.caller(f"{int(expiry) + 1000}.{signature}") is None
