"""Public tokens: short-lived tokens for web pages. Each allows only the sessions that its maker has fixed, with limits on minutes,
sessions and request rate.

A token is `mtp_`, its id and a signature, so that a forged one is refused before the store is asked. What it allows and what it has
used is one document of the store, shared by all orchestrators and changed by compare-and-swap.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import limited
from orchestrator.store.session_store import MAX_RECORD, SessionStore, StoreError

PREFIX = "mtp_"
"""First letters of every public token, so that scanners for leaked secrets find them."""
_TOKEN = re.compile(PREFIX + r"([0-9a-f]{32})([A-Za-z0-9_-]{43})")
TOKEN_ID = re.compile(r"[0-9a-f]{32}")
SLICE_S = 20.0
"""Seconds that a session pays for at once: what a process that is killed may have paid too much, and the longest time until a
session notices that its token was revoked elsewhere."""
HOLD_S = 60.0
"""How long the place of a session whose orchestrator is gone stays taken after what it has paid for."""
RETAIN_S = 25 * 3600.0
"""A token is kept for this long after it has expired: for the sessions that it started, and to say that it has."""
GRANT_BYTES = MAX_RECORD // 2
"""Of a token when it is made: the other half is for what is counted."""
LOOKUPS_MAX = 64
"""Tokens and origins that are looked up at once."""
_TRIES = 40
_PAUSE_S = 0.01


class TokenSession(BaseModel):
    """One session of a token: until when it counts, and until when it has paid (Unix time); None: it is still starting."""

    until: float
    paid_until: float | None = None


class Usage(BaseModel):
    """What a token has used.

    Attributes:
        seconds: of sessions, paid in advance.
        starts: so far.
        allowance: starts that may still be made at once, as of `refilled_at` (Unix time).
        places: sessions that run or start, by their room.
    """

    seconds: float = 0.0
    starts: int = 0
    allowance: float = 0.0
    refilled_at: float = 0.0
    places: dict[str, TokenSession] = {}

    def running(self, now: float) -> int:
        """Sessions that have not ended."""
        return sum(place.until > now for place in self.places.values())


class PublicGrant(BaseModel):
    """What a token allows, and what of it is used.

    Attributes:
        key: name of the caller that made it.
        origins: whose pages may use it, as browsers send them.
        expires_at: Unix time after which it starts no session.
        minutes: of sessions, in all.
        session_minutes: of one session at most; None: as long as the token's minutes last.
        sessions: at a time.
        sealed: the sessions that it may start, encrypted: instructions and addresses are its maker's.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: int = 1
    token_id: str
    key: str
    origins: tuple[str, ...]
    created_at: float
    expires_at: float
    minutes: float
    session_minutes: float | None = None
    sessions: int
    starts_per_minute: float
    sealed: str = Field(repr=False)
    revoked_at: float | None = None
    used: Usage = Usage()

    @property
    def seconds_left(self) -> float:
        """Of its minutes."""
        return max(0.0, 60 * self.minutes - self.used.seconds)

    def reserve(self, place: str, now: float, hold_s: float) -> None:
        """One more session begins. Raises ProblemError `minutes_exhausted`, `quota_exceeded`, `rate_limited`, and takes nothing."""
        used = self.used
        used.places = {name: kept for name, kept in used.places.items() if kept.until > now}
        if self.seconds_left < 1:
            raise exhausted(self.minutes)
        if len(used.places) >= self.sessions:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"This token has {len(used.places)} sessions of {self.sessions}: end one, or try again later.",
                limit=self.sessions,
                value=len(used.places),
                retry_after_s=5,
            )
        burst = max(1.0, self.starts_per_minute)
        filled = used.allowance + max(0.0, now - used.refilled_at) * self.starts_per_minute / 60
        level = burst if used.starts == 0 else min(burst, filled)
        if level < 1 - 1e-9:
            why = f"This token may start {self.starts_per_minute:g} sessions a minute."
            raise limited(why, self.starts_per_minute, 60 * (1 - level) / self.starts_per_minute)
        used.starts += 1
        used.allowance, used.refilled_at = max(0.0, level - 1), now
        used.places[place] = TokenSession(until=now + hold_s)

    def pay(self, place: str, ahead_s: float, now: float, ran_s: float = 0.0) -> float:
        """Pays for a session, from where it has paid to until `ahead_s` from now, or as far as the minutes reach.

        One that has not paid yet pays for the last `ran_s` too.
        Returns how far that is from now; less than `ahead_s`: they are used up.
        """
        known = self.used.places.get(place)
        begins = now - ran_s if known is None or known.paid_until is None else known.paid_until
        paid = min(max(0.0, now + ahead_s - begins), self.seconds_left)
        self.used.seconds += paid
        self.used.places[place] = TokenSession(until=now + ahead_s + HOLD_S, paid_until=begins + paid)
        return begins + paid - now

    def release(self, place: str, now: float) -> None:
        """The session is over: what it paid and did not use is given back. Without effect when it is not there."""
        gone = self.used.places.pop(place, None)
        if gone is not None and gone.paid_until is not None:
            self.used.seconds = max(0.0, self.used.seconds - max(0.0, gone.paid_until - now))


def exhausted(minutes: float) -> ProblemError:
    """The token has no time left."""
    return ProblemError(
        ErrorCode.MINUTES_EXHAUSTED,
        f"The {minutes:g} minutes of this token are used up: get another one.",
        limit=minutes,
    )


def refused(why: str) -> ProblemError:
    """A token that does not count."""
    return ProblemError(ErrorCode.UNAUTHORIZED, f"This public token {why}: get another one from the page's server.")


class PublicTokens:
    """Makes public tokens, looks them up and counts. All on one event loop.

    Args:
        store: opened by its owner.
        secret: signs the tokens; the same at every orchestrator.
        clock: Unix time in seconds.
    """

    def __init__(self, store: SessionStore, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._signing_key = hmac.new(secret.encode(), b"public tokens of the orchestrator", hashlib.sha256).digest()
        self._clock = clock
        self._lookups = asyncio.Semaphore(LOOKUPS_MAX)
        self._changing: dict[str, asyncio.Lock] = {}
        self._paying: dict[str, set[str]] = {}
        self._last: dict[str, PublicGrant] = {}
        """Of tokens with sessions that pay here: a store that came back empty gets them again."""

    async def mint(self, grant: PublicGrant) -> str:
        """Stores the grant and returns its token. Raises ProblemError `invalid_request` for one too large, `store_unavailable`."""
        body = grant.model_dump_json().encode()
        if len(body) > GRANT_BYTES:
            detail = (
                f"What this token allows takes {len(body)} bytes, of {GRANT_BYTES} at most: give shorter instructions."
            )
            raise ProblemError(ErrorCode.INVALID_REQUEST, detail, limit=GRANT_BYTES, value=len(body))
        await self._note_origins(grant)
        if not await self._swap(_name(grant.token_id), None, body, self._keep_s(grant)):
            raise unavailable()  # 128 random bits are in use: the store does not say the truth
        return self._token(grant.token_id)

    def token_id(self, token: str) -> str | None:
        """The id in a token of ours; None for any other text. Takes the same time whatever is wrong with the signature."""
        parts = _TOKEN.fullmatch(token)
        if parts is None or not hmac.compare_digest(self._token(parts[1]).encode(), token.encode()):
            return None
        return parts[1]

    async def find(self, token_id: str) -> PublicGrant:
        """The grant. Raises ProblemError `unauthorized` when it is revoked or not there any more, `store_unavailable`."""
        grant = await self.look_up(token_id)
        if grant is None:
            raise refused("is not known any more")
        if grant.revoked_at is not None:
            raise refused("was revoked")
        return grant

    async def look_up(self, token_id: str) -> PublicGrant | None:
        """The grant as it is now, revoked or not. Raises ProblemError `store_unavailable`."""
        raw = await self._read(_name(token_id))
        return None if raw is None else _parse(raw)

    async def knows_origin(self, origin: str) -> bool:
        """Whether a token names this origin, expired less than a day ago at most. Raises ProblemError `store_unavailable`."""
        return await self._read(_origin_name(origin)) is not None

    def check_fresh(self, grant: PublicGrant) -> None:
        """Raises ProblemError `unauthorized` when the token has expired: then it starts nothing."""
        if self._clock() >= grant.expires_at:
            raise refused("has expired")

    async def revoke(self, token_id: str) -> PublicGrant | None:
        """From now on it is refused everywhere. None when there is no such token. Raises ProblemError `store_unavailable`."""

        def revoked(grant: PublicGrant) -> None:
            grant.revoked_at = grant.revoked_at or self._clock()

        return await self._change(token_id, revoked)

    async def reserve(self, token_id: str, place: str, hold_s: float) -> PublicGrant:
        """A session begins: it has a place for `hold_s` before it pays. Raises ProblemError as `find` and `PublicGrant.reserve`."""

        def reserved(grant: PublicGrant) -> None:
            if grant.revoked_at is not None:
                raise refused("was revoked")
            grant.reserve(place, self._clock(), hold_s)

        grant = await self._change(token_id, reserved)
        if grant is None:
            raise refused("is not known any more")
        return grant

    async def pay(self, token_id: str, place: str, ahead_s: float, ran_s: float = 0.0) -> float | None:
        """Pays for a session, see `PublicGrant.pay`. None: the token was revoked or is gone. Raises `store_unavailable`."""
        reaches: float | None = None

        def paid(grant: PublicGrant) -> None:
            nonlocal reaches
            reaches = None if grant.revoked_at is not None else grant.pay(place, ahead_s, self._clock(), ran_s)

        self._paying.setdefault(token_id, set()).add(place)
        grant = await self._change(token_id, paid)
        if grant is None and (last := self._last.get(token_id)) is not None:
            await self._note_origins(last)
            await self._swap(_name(token_id), None, last.model_dump_json().encode(), self._keep_s(last))
            grant = await self._change(token_id, paid)
        if grant is None:
            return None
        self._last[token_id] = grant
        return reaches

    async def release(self, token_id: str, place: str) -> None:
        """A session is over. Idempotent. Raises ProblemError `store_unavailable`."""
        await self._change(token_id, lambda grant: grant.release(place, self._clock()))

    def leave(self, token_id: str, place: str) -> None:
        """The session pays here no more, since it is over or another process has it. Idempotent."""
        places = self._paying.get(token_id, set())
        places.discard(place)
        if not places:
            self._paying.pop(token_id, None)
            self._last.pop(token_id, None)

    # --- the store

    async def _change(self, token_id: str, change: Callable[[PublicGrant], None]) -> PublicGrant | None:
        """Changes the grant as it is now, however many do at the same time. What `change` raises leaves it as it is."""
        lock = self._changing.setdefault(token_id, asyncio.Lock())
        try:
            async with lock:  # of this process only one at a time, so that few have to try again
                for attempt in range(_TRIES):
                    raw = await self._read(_name(token_id))
                    if raw is None:
                        return None
                    grant = _parse(raw)
                    change(grant)
                    new = grant.model_dump_json().encode()
                    if new == raw or await self._swap(_name(token_id), raw, new, self._keep_s(grant)):
                        return grant
                    await asyncio.sleep(_PAUSE_S * attempt * secrets.randbelow(100) / 100)
                raise unavailable()
        finally:
            if not lock.locked() and self._changing.get(token_id) is lock:
                del self._changing[token_id]

    async def _note_origins(self, grant: PublicGrant) -> None:
        for origin in grant.origins:
            await self._note_origin(origin, grant.expires_at)

    async def _note_origin(self, origin: str, expires_at: float) -> None:
        name, until = _origin_name(origin), b"%d" % math.ceil(expires_at)
        for _ in range(_TRIES):
            known = await self._read(name)
            if known is not None and known.isdigit() and int(known) >= int(until):
                return
            if await self._swap(name, known, until, expires_at + RETAIN_S - self._clock()):
                return
        raise unavailable()

    async def _read(self, name: str) -> bytes | None:
        try:
            async with self._lookups:
                return await self._store.document(name)
        except StoreError as error:
            raise unavailable() from error

    async def _swap(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        try:
            return await self._store.swap_document(name, old, new, keep_s)
        except StoreError as error:
            raise unavailable() from error

    def _keep_s(self, grant: PublicGrant) -> float:
        return max(1.0, grant.expires_at + RETAIN_S - self._clock())

    def _token(self, token_id: str) -> str:
        signature = hmac.new(self._signing_key, token_id.encode(), hashlib.sha256).digest()
        return PREFIX + token_id + urlsafe_b64encode(signature).decode().rstrip("=")


def new_id() -> str:
    """Of a new token: 128 random bits."""
    return secrets.token_hex(16)


def unavailable() -> ProblemError:
    """The store fails."""
    text = "The store of the public tokens does not answer: try again."
    return ProblemError(ErrorCode.STORE_UNAVAILABLE, text, retry_after_s=2)


def _parse(raw: bytes) -> PublicGrant:
    try:
        if len(raw) > MAX_RECORD:
            raise ValueError("too long")
        return PublicGrant.model_validate_json(raw)
    except (ValidationError, ValueError) as error:
        raise refused("cannot be read by this orchestrator") from error


def _name(token_id: str) -> str:
    return f"public-token:{token_id}"


def _origin_name(origin: str) -> str:
    """Its hash: an origin that a stranger sends is a text of any kind and length."""
    return "public-origin:" + hashlib.sha256(origin.encode(errors="surrogateescape")).hexdigest()
