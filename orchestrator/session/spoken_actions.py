"""Actions planned at positions in the speech; each begins when its position is heard. On one event loop; nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from musetalk_agent.protocol.action_marks import LEAD_S, ActionMarks

PLANNED_MOST = 256
"""Of a session. A text of 5,000 characters has no more that a viewer would see."""


@dataclass(frozen=True)
class TextActions:
    """The marks of a text, and what plays a clip by its name."""

    marks: ActionMarks
    play: Callable[[str], None]


@dataclass(frozen=True)
class _Planned:
    segment: int
    at_s: float
    run: Callable[[], None]


class SpokenActions:
    """The actions of one session's speech, each carried out once."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []

    def plan(self, segment: int, at_s: float, run: Callable[[], None]) -> bool:
        """`run` is called when so many seconds of a segment are heard. False: too many are planned, and this one is not."""
        if len(self._planned) >= PLANNED_MOST:
            return False
        self._planned.append(_Planned(segment, at_s, run))
        return True

    def heard(self, segment: int, heard_s: float) -> None:
        """So much of a segment was heard, and those before it whole."""
        place = (segment, heard_s + LEAD_S)
        self._run([each for each in self._planned if (each.segment, each.at_s) <= place])

    def finished(self, segment: int, *, interrupted: bool) -> None:
        """Nothing more of a segment is heard. What an interruption cut off is not carried out."""
        ended = [each for each in self._planned if each.segment == segment]
        if interrupted:
            self._planned = [each for each in self._planned if each not in ended]
        else:
            self._run(ended)

    def clear(self) -> None:
        """Barge-in: nothing of what is planned is heard."""
        self._planned.clear()

    def _run(self, due: list[_Planned]) -> None:
        self._planned = [each for each in self._planned if each not in due]
        for each in due:
            each.run()
