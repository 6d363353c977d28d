"""The words of one segment of speech, and how many of them were heard."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass(eq=False)
class SpokenWords:
    """The words of one segment: `texts` put together are what is said, `starts_s` are seconds from its first sample."""

    texts: list[str] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    shown: int = 0
    actions: list[tuple[float, str]] = field(default_factory=list)
    """Clips that are not yet played, with the seconds from the first sample at which they are due."""

    def add(self, text: str, start_s: float) -> None:
        """Words come in the order in which they are heard."""
        self.texts.append(text)
        self.starts_s.append(max(start_s, self.starts_s[-1] if self.starts_s else 0.0))

    def begun(self, position_s: float) -> int:
        """How many words have begun before this position. A word that was cut in its middle has begun, so it was heard."""
        return bisect_left(self.starts_s, position_s)

    def heard(self, position_s: float) -> str:
        """What was said up to this position."""
        return "".join(self.texts[: self.begun(position_s)]).strip()

    def due(self, position_s: float) -> list[str]:
        """Takes the clips that are due by this position."""
        names = [name for at_s, name in self.actions if at_s <= position_s]
        self.actions = [(at_s, name) for at_s, name in self.actions if at_s > position_s]
        return names
