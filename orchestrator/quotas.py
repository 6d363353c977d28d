"""How much a caller may do, and how often an address may be wrong about its key. Pure: time is passed in."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.limits import TokenBucket
from orchestrator.keys import Caller

REQUEST_BURST_S = 2.0
"""Seconds' worth of `requests_per_second` that may come at once."""
STARTS_PERIOD_S = 60.0
CONNECTIONS_PER_CALLER = 512
"""Open `/audio` connections and streams of events of one caller."""
CONNECTS_PER_S = 2.0
CONNECTS_BURST = 30
"""A session's `/audio` may be opened this often at once: a bad network, not a loop."""
FAILURES_PER_S = 0.5
FAILURES_BURST = 30
"""Wrong keys that an address may send."""
REMEMBERED = 4096
"""Callers, sessions and addresses whose buckets are kept; the one that was quiet for longest goes first."""
_IPV6_NETWORK = 64
_Value = TypeVar("_Value")


class _Recent(Generic[_Value]):
    """Values by name, the lately used ones only."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, _Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, make: Callable[[], _Value]) -> _Value:
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = make()
            if len(self._values) > REMEMBERED:
                self._values.popitem(last=False)
        self._values.move_to_end(name)
        return value

    def find(self, name: str) -> _Value | None:
        return self._values.get(name)

    def put(self, name: str, value: _Value) -> _Value:
        self._values[name] = value
        return value


@dataclass(frozen=True)
class _Rates:
    """The buckets of one caller, and the limits they were made for."""

    caller: Caller
    requests: TokenBucket | None
    starts: TokenBucket | None


class Quotas:
    """Holds callers to their limits. Every method raises ProblemError and takes nothing when a limit is passed."""

    def __init__(self) -> None:
        self._rates: _Recent[_Rates] = _Recent()
        self._connects: _Recent[TokenBucket] = _Recent()
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


class Failures:
    """Slows down who tries keys: past a number of wrong ones, an address is refused whatever it sends.

    A caller that was let in from there before still is: neighbours behind one address do not lock each other out.
    """

    def __init__(self) -> None:
        self._wrong: _Recent[TokenBucket] = _Recent()
        self._known: _Recent[bool] = _Recent()

    def admit(self, address: str, caller: Caller | None, now: float) -> None:
        """A key came from this address, `caller` tells whose; None: nobody's. Raises `rate_limited`."""
        place = network(address)
        known = f"{place} {caller.name}" if caller else ""
        bucket = self._wrong.get(place, lambda: TokenBucket(FAILURES_PER_S, FAILURES_BURST, now))
        bucket.take(0, now)
        if bucket.wait_s(1) > 0 and self._known.find(known) is None:
            raise limited("Too many wrong keys came from your address.", FAILURES_PER_S, bucket.wait_s(1))
        if caller is None:
            bucket.take(1, now)
        else:
            self._known.get(known, lambda: True)


def network(address: str) -> str:
    """Whom an address belongs to: itself, or its /64 for IPv6, where one customer has them all."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, _IPV6_NETWORK), strict=False))
    return address


def limited(why: str, limit: float | None, wait_s: float) -> ProblemError:
    """`rate_limited`, with the time after which the same call may succeed."""
    retry_after_s = max(1, math.ceil(wait_s))
    return ProblemError(
        ErrorCode.RATE_LIMITED,
        f"{why} Try again in {retry_after_s} s.",
        limit=limit,
        retry_after_s=retry_after_s,
    )


def _rates(caller: Caller, now: float) -> _Rates:
    per_s, per_minute = caller.limits.requests_per_second, caller.limits.starts_per_minute
    return _Rates(
        caller,
        None if per_s is None else TokenBucket(per_s, max(1.0, per_s * REQUEST_BURST_S), now),
        None if per_minute is None else TokenBucket(per_minute / STARTS_PERIOD_S, max(1.0, per_minute), now),
    )
