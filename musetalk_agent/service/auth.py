"""The agent's key."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from pydantic import SecretStr

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Failures

_HOLDER = "orchestrator"


class Door:
    """Compares keys in constant time, and slows down who tries wrong ones.

    Args:
        clock: seconds that rise.
    """

    def __init__(self, key: SecretStr, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = key.get_secret_value().encode()
        self._clock = clock
        self._failures = Failures()

    def admit(self, header: str | None, client: tuple[str, int] | None) -> None:
        """Lets a request in whose `Authorization` header carries the key. Raises ProblemError `unauthorized`, `rate_limited`."""
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise _unauthorized()
        right = hmac.compare_digest(given.encode(errors="replace"), self._key)
        self._failures.admit(client[0] if client else "", _HOLDER if right else None, self._clock())
        if not right:
            raise _unauthorized()


def _unauthorized() -> ProblemError:
    return ProblemError(ErrorCode.UNAUTHORIZED, "Send the agent's key: Authorization: Bearer AGENT_API_KEY.")
