"""What travels to the agent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkItem:
    """One message to the agent: PCM as bytes or JSON as text. `seconds` is how long its audio lasts."""

    payload: bytes | str
    seconds: float = 0.0
