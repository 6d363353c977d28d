"""Who may call: API keys, and the signed tokens the orchestrator gives out itself."""

from __future__ import annotations

import hashlib
import hmac
import time
from base64 import urlsafe_b64encode

from orchestrator.keys import Caller, KeyRing, Scope

_AUDIO = "audio"
_PAGE = "page"
PAGE = Caller(_PAGE, Scope.OPERATOR)
"""Who holds a page token."""


class Credentials:
    """Knows callers by their keys, and makes tokens of the form `EXPIRY.SIGNATURE`, good for one purpose and one subject.

    The tokens' signing key is derived from `secret`, so that they hold over a restart, and at every orchestrator that has the
    same secret. Comparisons take the same time whatever is wrong.
    """

    def __init__(self, keys: KeyRing, secret: str) -> None:
        self.keys = keys
        self._signing_key = hmac.new(secret.encode(), b"tokens of the orchestrator", hashlib.sha256).digest()

    def caller(self, bearer: str) -> Caller | None:
        """Whose Bearer value this is: a key's, or a page token's that has not expired."""
        return self.keys.find(bearer, time.time()) or (PAGE if self._valid(_PAGE, "", bearer) else None)

    def page_token(self, ttl_s: float) -> str:
        """A token that opens the API for `ttl_s` seconds."""
        return self._token(_PAGE, "", time.time() + ttl_s)

    def audio_token(self, session_id: str, expires_at: float) -> str:
        """A token that opens this session's `/audio` until `expires_at` (Unix time)."""
        return self._token(_AUDIO, session_id, expires_at)

    def opens_audio(self, session_id: str, token: str) -> bool:
        """Whether the token opens this session's `/audio` now."""
        return self._valid(_AUDIO, session_id, token)

    def _token(self, purpose: str, subject: str, expires_at: float) -> str:
        expiry = str(int(expires_at))
        return f"{expiry}.{self._signature(purpose, subject, expiry)}"

    def _valid(self, purpose: str, subject: str, token: str) -> bool:
        expiry, _, signature = token.partition(".")
        genuine = hmac.compare_digest(
            self._signature(purpose, subject, expiry).encode(), signature.encode(errors="replace")
        )
        return genuine and time.time() < int(expiry)

    def _signature(self, purpose: str, subject: str, expiry: str) -> str:
        message = "\0".join((purpose, subject, expiry)).encode(errors="replace")
        return urlsafe_b64encode(hmac.new(self._signing_key, message, hashlib.sha256).digest()).decode().rstrip("=")


def bearer(header: str | None) -> str | None:
    """The value of `Authorization: Bearer VALUE`, None when the header is not of this form."""
    scheme, _, value = (header or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value.strip() else None
