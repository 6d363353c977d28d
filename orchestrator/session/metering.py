"""Charges a running session to its public token, and ends it when the token's minutes are used up or the token is revoked."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.public_tokens import SLICE_S, PublicTokens

EXHAUSTED, REVOKED = "minutes_exhausted", "token_revoked"
"""Reasons of a session's end."""
LEAD_S = 2.0
"""How long before the end of what is paid the next slice is paid."""
RETRY_S = 1.0
ROUNDING_S = 0.01
"""Unix times are sums of floats: what is less by so little is the whole slice."""
VIEWER_GRACE_S = 60.0
"""A public session whose visitor is gone costs minutes: it ends sooner than `VIEWER_GRACE_S` has it."""
_log = logging.getLogger(__name__)


class Meter:
    """One session's. A store that fails ends no session: what it owes is paid when the store works again.

    Args:
        tokens: counts.
        token_id: of the public token that the session was started with.
        place: the session's place at that token, its room.
    """

    def __init__(self, tokens: PublicTokens, token_id: str, place: str) -> None:
        self._tokens = tokens
        self._token_id = token_id
        self._place = place

    async def run(self) -> str:
        """Pays on and on; returns why the session ends, at the end of what is paid. Cancelling it leaves the rest to `settle`."""
        try:
            return await self._pay()
        finally:
            self._tokens.leave(self._token_id, self._place)

    async def _pay(self) -> str:
        begun, owes = time.monotonic(), False
        while True:
            try:
                ran_s = time.monotonic() - begun
                reaches = await self._tokens.pay(self._token_id, self._place, SLICE_S, ran_s)
            except ProblemError as error:
                if not owes:
                    _log.warning("a public session cannot pay", extra={"room": self._place, "code": error.code.value})
                owes = True
                await asyncio.sleep(RETRY_S)
                continue
            owes = False
            if reaches is None:
                return REVOKED
            paid_until = time.monotonic() + reaches
            if reaches < SLICE_S - ROUNDING_S:
                await asyncio.sleep(max(0.0, reaches))
                return EXHAUSTED
            await asyncio.sleep(paid_until - LEAD_S - time.monotonic())

    async def settle(self) -> None:
        """The session is over: its place is free, and what it paid too much is given back. Idempotent."""
        with suppress(ProblemError):  # the place is free a minute after what was paid, and at most one slice is lost
            await self._tokens.release(self._token_id, self._place)
