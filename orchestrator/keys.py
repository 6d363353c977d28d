"""Who may call: API keys, and the signed tokens that the orchestrator makes itself."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from musetalk_agent.protocol.http import Strict
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise

MAX_KEYS = 1024
"""Each request is compared with every key."""
PREFIX = "mtk_"
"""First letters of every key, so that scanners for leaked secrets find them."""
NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Scope(StrEnum):
    """What a key is for. Each one may do all that those before it may; `public`, of public tokens only, is beside them."""

    PUBLIC = "public"
    VIEWER = "viewer"
    STARTER = "starter"
    OPERATOR = "operator"

    def covers(self, needed: Scope) -> bool:
        """Whether a key of this scope may do what `needed` is needed for."""
        if Scope.PUBLIC in (self, needed):
            return self is needed
        ranks = list(Scope)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True)
class KeyLimits:
    """Quotas of one caller; None: no limit. `max_sessions` and `max_renders` count those that have not ended."""

    max_sessions: int | None = None
    starts_per_minute: float | None = None
    requests_per_second: float | None = None
    max_renders: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who calls. Several keys of one name are one caller: so a key is changed without losing its sessions.

    `token_id` is that of the public token it holds; empty for the holder of a key.
    """

    name: str
    scope: Scope
    limits: KeyLimits = KeyLimits()
    token_id: str = ""


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
    max_renders: int | None = Field(default=None, ge=0)
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> KeyEntry:
        if (self.sha256 is None) == (self.key is None):
            raise ValueError("give either sha256 or key")
        if self.scope is Scope.PUBLIC:
            raise ValueError("scope public is not for keys: POST /public-tokens makes public tokens")
        return self

    def made(self) -> Key:
        """The key."""
        given = self.key.get_secret_value() if self.key else ""
        return Key(
            caller=Caller(
                self.name,
                self.scope,
                KeyLimits(self.max_sessions, self.starts_per_minute, self.requests_per_second, self.max_renders),
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

    def named(self, name: str, now: float) -> Caller | None:
        """The caller of this name; None when no key of it counts at `now` (Unix time)."""
        valid = (key for key in self._keys if key.expires_at is None or now < key.expires_at)
        return next((key.caller for key in valid if key.caller.name == name), None)

    def find(self, given: str, now: float) -> Caller | None:
        """The key's caller; None for an unknown key, or one that has expired at `now` (Unix time)."""
        wanted = digest(given)
        found: Key | None = None
        for key in self._keys:  # every key is compared, so that the time does not show which came close
            if hmac.compare_digest(key.digest, wanted):
                found = key
        if found is None or (found.expires_at is not None and now >= found.expires_at):
            return None
        return found.caller


POLL_S = 1.0
MAX_BYTES = 1 << 20
_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


class KeysFile:
    """Keeps a key ring at what the file says. A file that is broken or gone changes nothing and is logged."""

    def __init__(self, path: Path, ring: KeyRing, metrics: Metrics, poll_s: float = POLL_S) -> None:
        self._path = path
        self._ring = ring
        self._metrics = metrics
        self._poll_s = poll_s
        self._stamp: _Stamp | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Reads the file and watches it from now on. Raises KeysError when it cannot be used."""
        try:
            self._stamp = await asyncio.to_thread(_stamp, self._path)
            self._ring.replace(await asyncio.to_thread(read, self._path))
        except OSError as error:
            raise KeysError(f"ORCHESTRATOR_KEYS_FILE {self._path}: {error.strerror}") from error
        except KeysError as error:
            raise KeysError(f"ORCHESTRATOR_KEYS_FILE {self._path}: {error}") from error
        self._metrics.keys.set(len(self._ring))
        self._watching = asyncio.create_task(supervise("keys-file", self._watch, self._metrics), name="keys-file")

    async def aclose(self) -> None:
        """Stops watching. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._look()

    async def _look(self) -> None:
        try:
            stamp = await asyncio.to_thread(_stamp, self._path)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._ring.replace(await asyncio.to_thread(read, self._path))
        except (OSError, KeysError) as error:
            self._metrics.keys_file_errors.inc()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            _log.error("the keys file is broken; the keys of before still count", extra={"reason": reason})
            return
        self._metrics.keys.set(len(self._ring))
        _log.info("keys read", extra={"keys": len(self._ring)})


def _stamp(path: Path) -> _Stamp:
    """What changes when the file does."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def read(path: Path) -> tuple[Key, ...]:
    """The file's keys. Blocks. Raises OSError, KeysError."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise KeysError(f"it passes {MAX_BYTES} bytes")
    return parse(data)


def new(name: str, scope: Scope) -> tuple[str, KeyEntry]:
    """A new key, and the entry that makes it count: the entry holds only the key's hash. Raises KeysError."""
    if not re.fullmatch(NAME, name):
        raise KeysError(f"the name {name[:64]!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
    key = generate()
    return key, KeyEntry(name=name, scope=scope, sha256=digest(key).hex())


def add(path: Path, entry: KeyEntry) -> None:
    """Adds an entry to the file, which is made when it is missing, readable by its owner only. Blocks.

    It gets the limits of the other keys of its name. The file is replaced whole, so that no reader sees half of it. Raises
    OSError, and KeysError when the file is broken already.
    """
    old = path.read_bytes() if path.exists() else b"[]"
    same = [key.caller for key in parse(old) if key.caller.name == entry.name]
    limits = asdict(same[0].limits) if same else {}
    added = entry.model_copy(update=limits).model_dump(mode="json", exclude_none=True)
    text = json.dumps([*json.loads(old), added], indent=2) + "\n"
    KeyRing(()).replace(parse(text))
    handle, partial = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _resemble(partial, path.stat())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            os.unlink(partial)


def _resemble(path: str, like: os.stat_result) -> None:
    """The same owner, so that the service can still read what root has written, and the same mode."""
    with suppress(PermissionError):
        os.chown(path, like.st_uid, like.st_gid)
    os.chmod(path, like.st_mode & 0o777)


_AUDIO = "audio"
_PAGE = "page"
_SPEECH = "speech"
PAGE = Caller(_PAGE, Scope.OPERATOR)
"""Who holds a page token."""
CONVERSATION = Caller("conversation", Scope.STARTER)
"""The conversation worker, a child of this process."""


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
        self._signing_keys = {_AUDIO: audio, _PAGE: secrets.token_bytes(32), _SPEECH: secrets.token_bytes(32)}
        self._page_tokens = page_tokens

    def caller(self, bearer: str, address: str = "") -> Caller | None:
        """Whose Bearer value this is: a key's, or a page token's that has not expired and comes from this machine (`address`)."""
        found = self.keys.find(bearer, time.time()) or (PAGE if self._opens_page(bearer, address) else None)
        if found is None and is_loopback(address) and self._valid(_SPEECH, "", bearer):
            return CONVERSATION
        return found

    def named(self, name: str) -> Caller | None:
        """The caller of this name, None when no key of it counts any more."""
        return PAGE if self._page_tokens and name == _PAGE else self.keys.named(name, time.time())

    def page_token(self, ttl_s: float) -> str:
        """A token that opens the API from this machine for `ttl_s` seconds, until the process ends."""
        return self._token(_PAGE, "", time.time() + ttl_s)

    def speech_token(self) -> str:
        """A token for a child of this process, good on this machine for a day at most."""
        return self._token(_SPEECH, "", time.time() + MAX_TOKEN_S - 60)

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
