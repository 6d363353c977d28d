"""Rate limits: calls of a caller, and wrong keys from an address. Pure: time is passed in (seconds).

Standard library and `problems` only: both services use it.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

FAILURES_PER_S = 0.5
FAILURES_BURST = 30
"""Wrong keys that an address may send."""
REMEMBERED = 4096
"""Callers, sessions and addresses that are kept; the one that was quiet for longest goes first."""
LONGEST_WAIT_S = 24 * 3600
"""No `Retry-After` is longer: a key may have a rate of almost nothing."""
_IPV6_NETWORK = 64
_ROUNDING = 1e-9
"""Share of a bucket's burst that rounding of the clock and of its level may take away."""
_Value = TypeVar("_Value")


class TokenBucket:
    """What may still be taken; fills at `rate` per second up to `burst`."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Takes `amount` and returns True, or leaves the level as it is and returns False."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if amount - self._level > _ROUNDING * self._burst:
            return False
        self._level = max(0.0, self._level - amount)
        return True

    def wait_s(self, amount: float) -> float:
        """Seconds from the last `take` until `amount` is there."""
        missing = amount - self._level - _ROUNDING * self._burst
        if missing <= 0:
            return 0.0
        return missing / self._rate if self._rate > 0 else math.inf


class Recent(Generic[_Value]):
    """Values by name, the `REMEMBERED` lately used ones only."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, _Value] = OrderedDict()

    def __len__(self) -> int:
        """Values that are kept."""
        return len(self._values)

    def get(self, name: str, make: Callable[[], _Value]) -> _Value:
        """The value of this name, made when there is none."""
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = make()
            if len(self._values) > REMEMBERED:
                self._values.popitem(last=False)
        self._values.move_to_end(name)
        return value

    def find(self, name: str) -> _Value | None:
        """The value of this name, None when there is none."""
        return self._values.get(name)

    def put(self, name: str, value: _Value) -> _Value:
        """Replaces the value of a name that is kept."""
        self._values[name] = value
        return value


class Failures:
    """Slows down who tries keys: past a number of wrong ones, an address is refused whatever it sends.

    A caller that was let in from there before still is: neighbours behind one address do not lock each other out.
    """

    def __init__(self) -> None:
        self._wrong: Recent[TokenBucket] = Recent()
        self._known: Recent[bool] = Recent()

    def admit(self, address: str, caller: str | None, now: float) -> None:
        """A key came from this address; `caller` names its holder, None: it is no key of ours. Raises `rate_limited`."""
        place = network(address)
        known = f"{place} {caller}" if caller is not None else ""
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
    """`rate_limited`, with the time after which the same call may succeed, a day at most."""
    retry_after_s = max(1, math.ceil(min(wait_s, LONGEST_WAIT_S)))
    return ProblemError(
        ErrorCode.RATE_LIMITED,
        f"{why} Try again in {retry_after_s} s.",
        limit=limit,
        retry_after_s=retry_after_s,
    )
