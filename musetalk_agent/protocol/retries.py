"""Retry rules of all our clients: which calls are repeated, how often and when; and loops that are restarted. Standard library
only."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum


class RetryVerdict(StrEnum):
    """What a refusal means for the same call made again.

    `later`: it was not carried out and may succeed later. `unknown`: it may have been carried out, so only a call that is safe to
    repeat is repeated. `final`: it will be refused again.
    """

    LATER = "later"
    UNKNOWN = "unknown"
    FINAL = "final"


NO_ANSWER = 0
"""Status of a call that was not answered: refused, reset, timed out."""
STATUSES: dict[int, RetryVerdict] = {
    NO_ANSWER: RetryVerdict.UNKNOWN,
    408: RetryVerdict.LATER,
    409: RetryVerdict.LATER,
    421: RetryVerdict.LATER,
    425: RetryVerdict.LATER,
    429: RetryVerdict.LATER,
    500: RetryVerdict.UNKNOWN,
    502: RetryVerdict.UNKNOWN,
    503: RetryVerdict.LATER,
    504: RetryVerdict.UNKNOWN,
}
"""By HTTP status; what is not listed (401, 403, 404, 422 …) is final."""
CODES: dict[str, RetryVerdict] = {
    "session_ended": RetryVerdict.FINAL,
    "idempotency_conflict": RetryVerdict.FINAL,
    "speech_elsewhere": RetryVerdict.FINAL,
    "publisher_unavailable": RetryVerdict.FINAL,
    "engine_unavailable": RetryVerdict.FINAL,
    "voice_unavailable": RetryVerdict.FINAL,
    "conversation_unavailable": RetryVerdict.FINAL,
    "renders_unavailable": RetryVerdict.FINAL,
    "avatar_in_use": RetryVerdict.FINAL,
    "idle_timeout": RetryVerdict.LATER,
}
"""By the problem's own code, where its status says something else. `idle_timeout` closes a WebSocket and has no status."""
CLOSES: dict[int, RetryVerdict] = dict.fromkeys((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010), RetryVerdict.FINAL)
"""By the code a WebSocket was closed with; what is not listed (1006, 1011, 1012 …) is tried again."""


def verdict(status: int, code: str = "") -> RetryVerdict:
    """Of an HTTP answer (or `NO_ANSWER`) and the problem's code in it, if it has one."""
    return CODES.get(code) or STATUSES.get(status, RetryVerdict.FINAL)


def close_verdict(close: int | None, code: str = "") -> RetryVerdict:
    """Of a WebSocket's close code (None: it broke), and the code of the `error` message before it."""
    return CODES.get(code) or CLOSES.get(close or 0, RetryVerdict.LATER)


@dataclass(frozen=True)
class Schedule:
    """Waits between tries, in seconds: `first_s`, then `factor` times as long each time, at most `longest_s`, until `total_s` after
    the first failure.
    """

    first_s: float
    factor: float
    longest_s: float
    total_s: float


LINK = Schedule(first_s=0.1, factor=2.0, longest_s=5.0, total_s=120.0)
"""A session's `/audio`: outlives a restart of the orchestrator, and an adoption by another one (some 15 s)."""
CALL = Schedule(first_s=0.25, factor=2.0, longest_s=5.0, total_s=30.0)
"""An HTTP call to the orchestrator."""
VOICE = Schedule(first_s=0.05, factor=4.0, longest_s=4.0, total_s=10.0)
"""A provider of voices: a listener waits for the sentence."""
SILENCE_S = 10.0
"""A connection whose greeting, or whose `pong`, does not come for so long is dead, whatever TCP says."""
SPREAD = 0.2
"""Waits are longer by up to this share, at random, so that the clients of one orchestrator do not come back in one moment."""


class Tries:
    """How long to wait before the next try of one call; times are seconds."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._schedule = schedule
        self._clock = clock
        self._spread = spread
        self._wait_s = schedule.first_s
        self._until: float | None = None

    def succeeded(self) -> None:
        """Starts the schedule over."""
        self._wait_s = self._schedule.first_s
        self._until = None

    def next_wait_s(self, retry_after_s: float | None = None) -> float | None:
        """The wait before the next try, at least what the answer's `Retry-After` asks for.

        None: the schedule's time is over, or would be before that.
        """
        now = self._clock()
        if self._until is None:
            self._until = now + self._schedule.total_s
        wait_s = max(self._wait_s, retry_after_s or 0.0) * (1 + SPREAD * self._spread())
        if now + max(retry_after_s or 0.0, 0.0) >= self._until:
            return None
        self._wait_s = min(self._schedule.longest_s, self._wait_s * self._schedule.factor)
        return min(wait_s, self._until - now)


def retry_after_s(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds of a `Retry-After` header (RFC 9110: a number, or a date). None when it is missing or is neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) <= 9 else None
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.fromtimestamp(now(), UTC)).total_seconds())


log = logging.getLogger(__name__)


async def run_restarted(
    name: str,
    loop: Callable[[], Awaitable[None]],
    count: Callable[[], object],
    *,
    first_s: float,
    last_s: float,
    settled_s: float,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Runs `loop`. When it raises, that is logged and counted, and it starts again after a back-off that doubles.

    Returns when the loop returns. Cancelling ends the loop. A CancelledError that the loop raises although this task was not
    cancelled (the SDK's futures may be cancelled by themselves) counts as a failure.

    Args:
        name: names the loop in the log.
        loop: called for every run.
        count: called for every failure.
        first_s, last_s: the first back-off and the longest, in seconds.
        settled_s: a loop that ran this long before it failed is restarted after the first back-off again.
        sleep: waits out the back-off, in seconds.
    """
    clock, delay, task = asyncio.get_running_loop().time, first_s, asyncio.current_task()
    while True:
        begun = clock()
        try:
            await loop()
            return
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            failure: BaseException = error
        except Exception as error:  # noqa: BLE001 - task boundary: the loop is restarted whatever broke it
            failure = error
        if clock() - begun > settled_s:
            delay = first_s
        count()
        extra = {"loop": name, "restart_in_s": delay}
        log.error("a background loop failed: it is restarted", exc_info=failure, extra=extra)
        await sleep(delay)
        delay = min(last_s, 2 * delay)
