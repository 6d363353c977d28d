"""Who may call: API keys, and the signed tokens the orchestrator gives out itself."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from base64 import urlsafe_b64encode

from orchestrator.keys import Caller, KeyRing, Scope

_AUDIO = "audio"
_PAGE = "page"
PAGE = Caller(_PAGE, Scope.OPERATOR)
"""Who holds a page token."""


MAX_TOKEN_S = 24 * 3600 + 60
"""No token of ours lasts longer than a day; one that claims to is none of ours. The minute is for clocks that differ."""


class Credentials:
    """Knows callers by their keys, and makes tokens of the form `EXPIRY.SIGNATURE`, good for one purpose and one subject.

    Audio tokens are signed with a key derived from `secret`, so that they hold over a restart, and at every orchestrator that has
    the same secret. Page tokens make an operator, so their key is random and this process's own: no other secret makes one.
    Comparisons take the same time whatever is wrong.

    Args:
        secret: signs the tokens of `/audio`.
        page_tokens: whether page tokens are handed out; where they are not, none is accepted.
    """

    def __init__(self, keys: KeyRing, secret: str, *, page_tokens: bool = False) -> None:
        self.keys = keys
        audio = hmac.new(secret.encode(), b"tokens of the orchestrator", hashlib.sha256).digest()
        self._signing_keys = {_AUDIO: audio, _PAGE: secrets.token_bytes(32)}
        self._page_tokens = page_tokens

    def caller(self, bearer: str, address: str = "") -> Caller | None:
        """Whose Bearer value this is: a key's, or a page token's that has not expired and comes from this machine (`address`)."""
        return self.keys.find(bearer, time.time()) or (PAGE if self._opens_page(bearer, address) else None)

    def page_token(self, ttl_s: float) -> str:
        """A token that opens the API from this machine for `ttl_s` seconds, until the process ends."""
        return self._token(_PAGE, "", time.time() + ttl_s)

    def audio_token(self, session_id: str, expires_at: float) -> str:
        """A token that opens this session's `/audio` until `expires_at` (Unix time)."""
        return self._token(_AUDIO, session_id, expires_at)

    def opens_audio(self, session_id: str, token: str) -> bool:
        """Whether the token opens this session's `/audio` now."""
        return self._valid(_AUDIO, session_id, token)

    def _opens_page(self, token: str, address: str) -> bool:
        return self._page_tokens and is_loopback(address) and self._valid(_PAGE, "", token)

    def _token(self, purpose: str, subject: str, expires_at: float) -> str:
        expiry = str(int(expires_at))
        return f"{expiry}.{self._signature(purpose, subject, expiry)}"

    def _valid(self, purpose: str, subject: str, token: str) -> bool:
        expiry, _, signature = token.partition(".")
        genuine = hmac.compare_digest(
            self._signature(purpose, subject, expiry).encode(), signature.encode(errors="replace")
        )
        return genuine and 0 < int(expiry) - time.time() < MAX_TOKEN_S

    def _signature(self, purpose: str, subject: str, expiry: str) -> str:
        message = "\0".join((purpose, subject, expiry)).encode(errors="replace")
        return (
            urlsafe_b64encode(hmac.new(self._signing_keys[purpose], message, hashlib.sha256).digest())
            .decode()
            .rstrip("=")
        )


def bearer(header: str | None) -> str | None:
    """The value of `Authorization: Bearer VALUE`, None when the header is not of this form."""
    scheme, _, value = (header or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value.strip() else None


def is_loopback(address: str) -> bool:
    """Whether a client's address, or a host, is this machine's loopback; False for a name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
