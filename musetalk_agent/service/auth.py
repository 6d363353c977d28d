"""The agent's key."""

from __future__ import annotations

import hmac

from pydantic import SecretStr


def authorised(header: str | None, key: SecretStr) -> bool:
    """Whether an `Authorization` header carries `key` as a bearer token; compared in constant time."""
    scheme, _, given = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), key.get_secret_value().encode())
