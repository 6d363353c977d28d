"""What voices elsewhere have in common: how their refusals are told, and how often they are asked again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

ANSWER_S = 15.0
"""A provider that has text to speak and gives no sound for this long is given up."""
CONNECT_S = 5.0
BACKOFF_S = (0.0, 0.25, 1.0)
"""Waits before another try (s); one that brought sound begins them anew."""

_UNAUTHORIZED = frozenset(
    "invalid_api_key missing_api_key needs_authorization unauthorized authentication_error missing_permissions "
    "detected_unusual_activity invalid_authorization_header only_for_creator+ account_deactivated".split()
)
_QUOTA = frozenset("quota_exceeded insufficient_quota payment_required billing_hard_limit_reached".split())
_NO_VOICE = frozenset(
    "voice_not_found voice_does_not_exist invalid_voice voice_id_does_not_exist invalid_voice_id".split()
)
_BUSY = frozenset(
    "too_many_concurrent_requests system_busy rate_limit_exceeded rate_limited server_error internal_server_error".split()
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider said: its own word for it, or the HTTP status where it has none."""

    provider: str
    voice: str
    word: str = ""
    status: int = 0

    @property
    def passing(self) -> bool:
        """Whether it may be gone the next time."""
        return self.word in _BUSY or (self.word not in _UNAUTHORIZED | _QUOTA | _NO_VOICE and self.status in _TRY_AGAIN)

    def problem(self, variable: str) -> ProblemError:
        """The error to tell; `variable` holds the provider's key. Nothing of the provider's own sentence is repeated."""
        said = self.word[:60] or f"HTTP {self.status}"
        if self.word in _QUOTA or self.status == _PAYMENT_REQUIRED:
            return ProblemError(
                ErrorCode.VOICE_QUOTA_EXCEEDED,
                f"{self.provider} speaks no more for this account ({said}): raise its limit, or use another voice.",
            )
        if self.word in _UNAUTHORIZED or (self.word not in _NO_VOICE and self.status in _REFUSED):
            return ProblemError(
                ErrorCode.VOICE_UNAUTHORIZED, f"{self.provider} does not take our key ({said}): check {variable}."
            )
        if self.word in _NO_VOICE:
            return ProblemError(
                ErrorCode.VOICE_UNKNOWN,
                f"{self.provider} has no voice {self.voice[:80]!r}.",
                field="voice",
                value=self.voice[:80],
            )
        return ProblemError(ErrorCode.TTS_FAILED, f"{self.provider} could not speak this text ({said}): try again.")


_PAYMENT_REQUIRED = 402
_REFUSED = frozenset({401, 403})
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def word_of(body: bytes | bytearray) -> str:
    """The provider's word in an error's body; empty when there is none."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "detail"):
        inner = value.get(name) if isinstance(value, dict) else None
        if isinstance(inner, str):
            return inner
        if isinstance(inner, dict):
            found = inner.get("code") or inner.get("status") or inner.get("type")
            return found if isinstance(found, str) else ""
    return ""


def silent(provider: str, answer_s: float = ANSWER_S) -> ProblemError:
    """For one that has text to speak and gives no sound."""
    return ProblemError(
        ErrorCode.VOICE_TIMEOUT, f"{provider} gave no sound for {answer_s:g} s: try again.", limit=answer_s
    )


def unreachable(provider: str) -> ProblemError:
    """For one that does not answer, or breaks off again and again."""
    return ProblemError(ErrorCode.TTS_FAILED, f"The connection to {provider} fails: try again.")
