"""What voices elsewhere have in common: how their refusals are told, and how long they are waited for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import Verdict, verdict

ANSWER_S = 15.0
"""A provider that has text to speak and gives no sound for this long is given up."""
CONNECT_S = 5.0
TOTAL_ANSWERS = 4
"""All the waiting for one sentence or connection is at most so many times the longest silence …"""
SLOWEST = 4.0
"""… and so many seconds for each second of sound that came: a voice that is slower than that never plays smoothly."""
_WORD_CHARACTERS = 100

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
class ProviderError:
    """What a provider said: its own word for it, or the HTTP status where it has none."""

    provider: str
    voice: str
    word: str = ""
    status: int = 0
    retry_after_s: float | None = None

    @property
    def passing(self) -> bool:
        """Whether it may be gone the next time."""
        if self.word in _BUSY or self.word == NO_SOUND:
            return True
        known = self.word in _UNAUTHORIZED | _QUOTA | _NO_VOICE
        return not known and self.status != 0 and verdict(self.status) is not Verdict.FINAL

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
        return ProblemError(
            ErrorCode.TTS_FAILED,
            f"{self.provider} could not speak this text ({said}): try again.",
            retry_after_s=None if self.retry_after_s is None else min(_RETRY_AFTER_S, math.ceil(self.retry_after_s)),
        )


_PAYMENT_REQUIRED = 402
_REFUSED = frozenset({401, 403})
_RETRY_AFTER_S = 24 * 3600
NO_SOUND = "no_sound"
"""Our word for an answer that is complete and empty."""


class Patience:
    """How long to wait for a provider that owes sound: `answer_s` for the first sound and between two pieces, and a total that
    grows with the sound, so that a trickle ends too. Only time that is spent waiting counts. Seconds, without a clock.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._silent_s = 0.0
        self._left_s = TOTAL_ANSWERS * answer_s

    @property
    def left_s(self) -> float:
        """The longest wait now; 0 when it is over."""
        return max(0.0, min(self._answer_s - self._silent_s, self._left_s))

    def waited(self, seconds: float) -> None:
        """So long was waited, and no sound has come yet."""
        self._silent_s += seconds
        self._left_s -= seconds

    def heard(self, seconds: float) -> None:
        """So much sound came."""
        if seconds > 0:
            self._silent_s = 0.0
            self._left_s += SLOWEST * seconds


def word_of(body: bytes | bytearray) -> str:
    """The provider's word in an error's body; empty when there is none."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "detail"):
        inner = value.get(name) if isinstance(value, dict) else None
        if isinstance(inner, str):
            return inner[:_WORD_CHARACTERS]
        if isinstance(inner, dict):
            found = inner.get("code") or inner.get("status") or inner.get("type")
            return found[:_WORD_CHARACTERS] if isinstance(found, str) else ""
    return ""


def silent(provider: str, answer_s: float = ANSWER_S) -> ProblemError:
    """For one that has text to speak and gives no sound."""
    return ProblemError(
        ErrorCode.VOICE_TIMEOUT, f"{provider} gave no sound for {answer_s:g} s: try again.", limit=answer_s
    )


def unreachable(provider: str) -> ProblemError:
    """For one that does not answer, or breaks off again and again."""
    return ProblemError(ErrorCode.TTS_FAILED, f"The connection to {provider} fails: try again.")
