"""Keys: who a caller is, and what it may do. Pure: files are `keyfile`'s business."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import AwareDatetime, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from musetalk_agent.protocol.http import Strict

MAX_KEYS = 1024
"""Each request is compared with every key."""
PREFIX = "mtk_"
"""Keys made here begin so, that scanners for leaked secrets find them."""
NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Scope(StrEnum):
    """What a key is for. Each one may do all that those before it may."""

    VIEWER = "viewer"
    STARTER = "starter"
    OPERATOR = "operator"

    def covers(self, needed: Scope) -> bool:
        """Whether a key of this scope may do what `needed` is needed for."""
        ranks = list(Scope)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True)
class KeyLimits:
    """Quotas of one caller; None: no limit. `max_sessions` counts those that have not ended."""

    max_sessions: int | None = None
    starts_per_minute: float | None = None
    requests_per_second: float | None = None


@dataclass(frozen=True)
class Caller:
    """Who calls. Several keys of one name are one caller: so a key is changed without losing its sessions."""

    name: str
    scope: Scope
    limits: KeyLimits = KeyLimits()


@dataclass(frozen=True)
class Key:
    """One key, of which only the hash is known. `expires_at` is Unix time."""

    caller: Caller
    digest: bytes = field(repr=False)
    expires_at: float | None = None


class KeysError(ValueError):
    """A list of keys is wrong; the message says where, without any secret."""


class KeyEntry(Strict):
    """One key as the keys file has it: its SHA-256 in hexadecimal, or the key itself."""

    name: str = Field(pattern=NAME)
    scope: Scope
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    key: SecretStr | None = Field(default=None, min_length=16, max_length=512)
    max_sessions: int | None = Field(default=None, ge=0)
    starts_per_minute: float | None = Field(default=None, gt=0)
    requests_per_second: float | None = Field(default=None, gt=0)
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> KeyEntry:
        if (self.sha256 is None) == (self.key is None):
            raise ValueError("give either sha256 or key")
        return self

    def made(self) -> Key:
        """The key."""
        given = self.key.get_secret_value() if self.key else ""
        return Key(
            caller=Caller(
                self.name,
                self.scope,
                KeyLimits(self.max_sessions, self.starts_per_minute, self.requests_per_second),
            ),
            digest=bytes.fromhex(self.sha256) if self.sha256 else digest(given),
            expires_at=None if self.expires_at is None else datetime.timestamp(self.expires_at),
        )


_entries: TypeAdapter[list[KeyEntry]] = TypeAdapter(list[KeyEntry])


def digest(key: str) -> bytes:
    """SHA-256: enough for keys that are random and long."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def generate() -> str:
    """A new key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def operators(keys: Iterable[str]) -> tuple[Key, ...]:
    """The keys of `ORCHESTRATOR_API_KEY`: all of one caller, `environment`, which may do everything."""
    return tuple(Key(Caller("environment", Scope.OPERATOR), digest(key)) for key in keys)


def parse(text: str | bytes) -> tuple[Key, ...]:
    """The keys of a keys file. Raises KeysError."""
    try:
        entries = _entries.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise KeysError(f"{where}: {first['msg']}") from None
    return tuple(entry.made() for entry in entries)


class KeyRing:
    """Every key that counts: the fixed ones, and those of the keys file, which may change at any time."""

    def __init__(self, fixed: Sequence[Key]) -> None:
        self._fixed = tuple(fixed)
        self._keys = self._fixed

    def __len__(self) -> int:
        """Keys that count."""
        return len(self._keys)

    def replace(self, keys: Sequence[Key]) -> None:
        """From now on these count beside the fixed ones. Raises KeysError, and keeps the old ones."""
        wanted = self._fixed + tuple(keys)
        if len(wanted) > MAX_KEYS:
            raise KeysError(f"{len(wanted)} keys; at most {MAX_KEYS} are allowed")
        callers: dict[str, Caller] = {}
        for key in wanted:
            if callers.setdefault(key.caller.name, key.caller) != key.caller:
                raise KeysError(f"{key.caller.name}: keys of one name must have the same scope and limits")
        if len({key.digest for key in wanted}) < len(wanted):
            raise KeysError("a key is listed twice")
        self._keys = wanted

    def find(self, given: str, now: float) -> Caller | None:
        """Whose key this is; None when it is nobody's, or has expired at `now` (Unix time)."""
        wanted = digest(given)
        found: Key | None = None
        for key in self._keys:  # every key is compared, so that the time does not tell which came close
            if hmac.compare_digest(key.digest, wanted):
                found = key
        if found is None or (found.expires_at is not None and now >= found.expires_at):
            return None
        return found.caller
