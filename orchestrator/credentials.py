"""Who may call: API keys, and the signed tokens the orchestrator gives out itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable

_AUDIO = "audio"
_PAGE = "page"


class Credentials:
    """Checks keys and makes tokens of the form `EXPIRY.SIGNATURE`, good for one purpose and one subject.

    The signing key lives as long as the process, as the sessions do. Comparisons take the same time whatever is wrong.
    """

    def __init__(self, api_keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in api_keys]
        self._secret = secrets.token_bytes(32)

    def is_api_key(self, candidate: str) -> bool:
        """Whether this is one of the configured keys."""
        given = candidate.encode()
        found = False
        for key in self._keys:  # every key is compared, so that the time does not tell which came close
            found |= hmac.compare_digest(key, given)
        return found

    def authorises(self, bearer: str) -> bool:
        """Whether a Bearer value opens the API: an API key, or a page token that has not expired."""
        return self.is_api_key(bearer) or self._valid(_PAGE, "", bearer)

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
        genuine = hmac.compare_digest(self._signature(purpose, subject, expiry).encode(), signature.encode())
        return genuine and time.time() < int(expiry)

    def _signature(self, purpose: str, subject: str, expiry: str) -> str:
        message = "\0".join((purpose, subject, expiry)).encode()
        return urlsafe_b64encode(hmac.new(self._secret, message, hashlib.sha256).digest()).decode().rstrip("=")


def bearer(header: str | None) -> str | None:
    """The value of `Authorization: Bearer VALUE`, None when the header is not of this form."""
    scheme, _, value = (header or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value.strip() else None
