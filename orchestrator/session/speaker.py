"""Who turns a session's items into sound: an agent's link, or the orchestrator's own voice."""

from __future__ import annotations

from typing import Protocol


class Speaker(Protocol):
    """Pulls items with `LiveSession.next_item` and tells what was heard."""

    def wake(self) -> None:
        """There may be an item."""
        ...

    def outstanding_s(self, now: float) -> float:
        """Seconds of speech pulled and not yet heard."""
        ...
