"""The public authorities, read once a run: a client of httpx that is given none reads them anew, for 20 to 40 CPU milliseconds."""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import Any

import httpx
from httpx._transports import default

_FROM_ELSEWHERE = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def remember() -> None:
    """From now on the clients that trust the public authorities share a context, which nothing changes."""
    made = httpx.create_ssl_context

    @cache
    def public() -> ssl.SSLContext:
        return made(trust_env=False)

    def create(verify: ssl.SSLContext | str | bool = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        if verify is not True or cert or (trust_env and any(name in os.environ for name in _FROM_ELSEWHERE)):
            return made(verify, cert, trust_env)
        return public()

    default.create_ssl_context = create  # type: ignore[attr-defined]  # what the transports call
