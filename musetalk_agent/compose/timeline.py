"""Which face is shown at which position of the loop: avatars that follow each other, and clips that one glides into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.idle import PingPongLoop


@dataclass(frozen=True, eq=False)
class Face:
    """An avatar's clip that can be shown: `frames` of them, and what composes them. Two faces are never equal."""

    compositor: Compositor
    frames: int


F = TypeVar("F", bound=Face)


@dataclass(frozen=True)
class Look(Generic[F]):
    """What is shown at a position: a frame of a face."""

    face: F
    idle_index: int


@dataclass(frozen=True)
class _Span(Generic[F]):
    """From `begin` on `face` is shown, beginning at `phase` of its loop."""

    begin: int
    face: F
    loop: PingPongLoop
    phase: int = 0

    def look(self, position: int) -> Look[F]:
        return Look(self.face, self.loop.idle_index(position - self.begin + self.phase))


class Timeline(Generic[F]):
    """Maps positions, which only grow, to looks. A face that takes over begins with its first frame.

    Every position is decided once its frame is being made: `show` only changes later ones.
    """

    def __init__(self, face: F) -> None:
        self._spans = [_Span(0, face, PingPongLoop(face.frames))]

    @property
    def newest(self) -> F:
        """The face that is shown in the end."""
        return self._spans[-1].face

    def at(self, position: int) -> Look[F]:
        """What is shown at `position` (≥ 0)."""
        for span in reversed(self._spans):
            if span.begin <= position:
                return span.look(position)
        return self._spans[0].look(max(position, self._spans[0].begin))

    def show(self, face: F, begin: int) -> None:
        """Shows `face` from `begin` on, in place of everything that was to follow."""
        kept = [span for span in self._spans if span.begin < begin]
        self._spans = [*kept, _Span(begin, face, PingPongLoop(face.frames))]

    def forget(self, position: int) -> None:
        """Positions before this one are not asked for again."""
        while len(self._spans) > 1 and self._spans[1].begin <= position:
            del self._spans[0]
