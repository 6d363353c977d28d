"""One finding of a doctor command, readable by people and by programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "note", "todo"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name, which stays the same.
        found: what is the case, a clause.
        cure: what to do, a command where there is one; empty when all is well.
        needed: whether nothing works before the cure is done. Otherwise it would only make things better.
        figures: the same in numbers, JSON values.
    """

    what: str
    found: str
    cure: str = ""
    needed: bool = True
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """`todo` when something has to be done, `note` when something could be done."""
        return "ok" if not self.cure else "todo" if self.needed else "note"

    def line(self) -> str:
        """For people; two lines where there is something to do."""
        return f"{self.verdict:4}  {self.what}: {self.found}" + (f"\n      → {self.cure}" if self.cure else "")

    def values(self) -> dict[str, Any]:
        """For programs: JSON values."""
        values = {"what": self.what, "verdict": self.verdict, "found": self.found}
        return values | ({"cure": self.cure} if self.cure else {}) | self.figures


def next_command(checks: Sequence[Check]) -> str | None:
    """The cure to begin with: the first that is needed; None when none is."""
    return next((check.cure for check in checks if check.verdict == "todo"), None)


def exit_code(checks: Sequence[Check]) -> int:
    """1 when something has to be done, else 0."""
    return int(any(check.verdict == "todo" for check in checks))
