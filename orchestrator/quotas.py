"""Quotas of callers: request rate, starts, running sessions, renders and connections. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Recent, TokenBucket, limited
from orchestrator.keys import Caller

REQUEST_BURST_S = 2.0
"""Seconds' worth of `requests_per_second` that may come at once."""
STARTS_PERIOD_S = 60.0
CONNECTIONS_PER_CALLER = 512
"""Open `/audio` connections and streams of events of one caller."""
CONNECTS_PER_S = 2.0
CONNECTS_BURST = 30
"""A session's `/audio` may be opened this often at once: a bad network, not a loop."""


@dataclass(frozen=True)
class _Rates:
    """The buckets of one caller, and the limits they were made for."""

    caller: Caller
    requests: TokenBucket | None
    starts: TokenBucket | None


class Quotas:
    """Holds callers to their limits. Every method raises ProblemError and takes nothing when a limit is passed."""

    def __init__(self) -> None:
        self._rates: Recent[_Rates] = Recent()
        self._connects: Recent[TokenBucket] = Recent()
        self._open: dict[str, int] = {}

    def request(self, caller: Caller, now: float) -> None:
        """One more request. Raises `rate_limited`."""
        rate = caller.limits.requests_per_second
        bucket = self._of(caller, now).requests
        if bucket is not None and not bucket.take(1, now):
            raise limited(f"The key {caller.name!r} may send {rate:g} requests a second.", rate, bucket.wait_s(1))

    def start(self, caller: Caller, running: int, now: float) -> None:
        """One more session; `running` ones are the caller's already. Raises `quota_exceeded`, `rate_limited`."""
        most, rate = caller.limits.max_sessions, caller.limits.starts_per_minute
        if most is not None and running >= most:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"The key {caller.name!r} has {running} sessions of {most}: stop one, or use another key.",
                limit=most,
                value=running,
                retry_after_s=5,
            )
        bucket = self._of(caller, now).starts
        if bucket is not None and not bucket.take(1, now):
            raise limited(f"The key {caller.name!r} may start {rate:g} sessions a minute.", rate, bucket.wait_s(1))

    def render(self, caller: Caller, unfinished: int) -> None:
        """One more render; `unfinished` ones are the caller's already. Raises `quota_exceeded`."""
        most = caller.limits.max_renders
        if most is not None and unfinished >= most:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"The key {caller.name!r} has {unfinished} renders of {most} that have not ended: wait, or cancel one.",
                limit=most,
                value=unfinished,
                retry_after_s=30,
            )

    def connect(self, session_id: str, now: float) -> None:
        """One more connection to the session's `/audio`. Raises `rate_limited`."""
        bucket = self._connects.get(session_id, lambda: TokenBucket(CONNECTS_PER_S, CONNECTS_BURST, now))
        if not bucket.take(1, now):
            raise limited(
                f"The session's /audio is opened too often: {CONNECTS_PER_S:g} times a second are allowed.",
                CONNECTS_PER_S,
                bucket.wait_s(1),
            )

    @contextmanager
    def connection(self, name: str) -> Iterator[None]:
        """Counts a connection of this caller for as long as it is open. Raises `quota_exceeded`."""
        if self._open.get(name, 0) >= CONNECTIONS_PER_CALLER:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"The key {name!r} has {CONNECTIONS_PER_CALLER} connections open: close one.",
                limit=CONNECTIONS_PER_CALLER,
                retry_after_s=5,
            )
        self._open[name] = self._open.get(name, 0) + 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    def _of(self, caller: Caller, now: float) -> _Rates:
        rates = self._rates.get(caller.name, lambda: _rates(caller, now))
        if rates.caller != caller:  # its limits were changed
            rates = self._rates.put(caller.name, _rates(caller, now))
        return rates


def _rates(caller: Caller, now: float) -> _Rates:
    per_s, per_minute = caller.limits.requests_per_second, caller.limits.starts_per_minute
    return _Rates(
        caller,
        None if per_s is None else TokenBucket(per_s, max(1.0, per_s * REQUEST_BURST_S), now),
        None if per_minute is None else TokenBucket(per_minute / STARTS_PERIOD_S, max(1.0, per_minute), now),
    )
