"""Secrets that have to be written down: encrypted for those who know the deployment's LiveKit secret."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode

from cryptography.fernet import Fernet, InvalidToken


def derive(secret: str, purpose: str, deployment_id: str) -> bytes:
    """A key of 32 bytes for one purpose, the same in every process of the deployment."""
    return hmac.new(secret.encode(), f"{purpose}\0{deployment_id}".encode(), hashlib.sha256).digest()


class SealBroken(Exception):
    """The text was sealed under another secret, or changed."""


class Seal:
    """Encrypts and authenticates short texts (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(urlsafe_b64encode(key))

    def encrypt(self, text: str) -> str:
        """The text, encrypted."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, sealed: str) -> str:
        """The text again. Raises SealBroken."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except (
            InvalidToken,
            ValueError,
        ) as error:  # Fernet raises ValueError for what is not even ASCII, or not UTF-8 within
            raise SealBroken("sealed under another LIVEKIT_API_SECRET, or damaged") from error
