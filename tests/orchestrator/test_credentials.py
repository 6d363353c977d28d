from __future__ import annotations

import base64
import hmac
import time

import pytest

from orchestrator.keys import Credentials, KeyRing, Scope, bearer, operators

HERE = "127.0.0.1"


def made(*keys: str, secret: str = "of this deployment", page_tokens: bool = True) -> Credentials:
    return Credentials(KeyRing(operators(keys)), secret, page_tokens=page_tokens)


def forged(secret: str, purpose: str, subject: str, expires_at: float) -> str:
    """A token that is signed with a deployment's secret, as who knows LIVEKIT_API_SECRET can make it offline."""
    expiry = str(int(expires_at))
    key = hmac.digest(secret.encode(), b"tokens of the orchestrator", "sha256")
    made = hmac.digest(key, "\0".join((purpose, subject, expiry)).encode(), "sha256")
    return f"{expiry}.{base64.urlsafe_b64encode(made).decode().rstrip('=')}"


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
    for address in (HERE, "::1"):
        caller = credentials.caller(token, address)
        assert caller is not None and caller.name == "page"
    assert not credentials.opens_audio("", token)
    assert credentials.caller(credentials.page_token(-1), HERE) is None


def test_a_page_token_counts_only_where_it_is_handed_out() -> None:
    credentials = made("key")
    token = credentials.page_token(60)
    for elsewhere in ("", "192.0.2.7", "2001:db8::1", "localhost", "testclient"):
        assert credentials.caller(token, elsewhere) is None
    assert made("key").caller(token, HERE) is None  # another process
    off = made("key", page_tokens=False)
    assert off.caller(off.page_token(60), HERE) is None


def test_the_deployments_secret_makes_no_page_token() -> None:
    secret = "of this deployment"
    token = forged(secret, "page", "", time.time() + 60)
    assert made("key", secret=secret).caller(token, HERE) is None


def test_no_token_lasts_for_ever() -> None:
    """An audio token is as long as a session at most, whatever signs it."""
    secret = "of this deployment"
    credentials = made("key", secret=secret)
    assert credentials.opens_audio("ses_a", forged(secret, "audio", "ses_a", time.time() + 24 * 3600))
    assert not credentials.opens_audio("ses_a", forged(secret, "audio", "ses_a", time.time() + 25 * 3600))
    assert credentials.caller(credentials.page_token(25 * 3600), HERE) is None


@pytest.mark.parametrize(
    "mangle",
    [lambda t: t + "A", lambda t: "1" + t, lambda t: t.replace(".", ""), lambda t: "ä" + t, lambda t: "\udc80" + t],
)
def test_a_mangled_token_opens_nothing(mangle: object) -> None:
    credentials = made("key")
    assert credentials.caller(mangle(credentials.page_token(60)), HERE) is None  # type: ignore[operator]


def test_expiry_cannot_be_moved() -> None:
    credentials = made("key")
    expiry, _, signature = credentials.page_token(60).partition(".")
    assert credentials.caller(f"{expiry}.{signature}", HERE) is not None
    assert credentials.caller(f"{int(expiry) + 1000}.{signature}", HERE) is None
