"""Which face is shown at which position of the loop: avatars that follow each other, and clips that one glides into and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.crossfade import Crossfade
from musetalk_agent.compose.head_motion import AS_IT_IS, HeadMotion, Pose
from musetalk_agent.compose.idle import PingPongLoop, VariedLoop, idle_loop
from musetalk_agent.media_types import VideoFrame

_STILL_S = 3.5


@dataclass(frozen=True, eq=False)
class ShownFace:
    """A clip that can be shown: `frames` of them, and what composes them. Two faces are never equal."""

    compositor: Compositor
    frames: int

    @property
    def length(self) -> int:
        """Positions that it takes to be played once: those of its frames; of a still picture 3.5 s."""
        return round(_STILL_S * self.compositor.fps) if self.compositor.lives else self.frames

    def closed(self, closure: float) -> int:
        """The frame of a still picture whose eyes are closed by `closure`, 0 … 1."""
        return round(closure * (self.frames - 1))


F = TypeVar("F", bound=ShownFace)


@dataclass(frozen=True)
class ShownFrame(Generic[F]):
    """What is shown at a position: a frame of a face, its head in a pose, and while one glides into it what goes away."""

    face: F
    idle_index: int
    leaving: Leaving[F] | None = None
    pose: Pose = AS_IT_IS


@dataclass(frozen=True)
class Leaving(Generic[F]):
    """A frame of the clip that goes away. `share` is how far the new one has come, 0 … 1; `fade` mixes the two."""

    face: F
    idle_index: int
    share: float
    fade: Crossfade
    pose: Pose = AS_IT_IS

    def mixed(self, before: VideoFrame, after: VideoFrame, look: ShownFrame[F]) -> VideoFrame:
        """The picture between this frame and that of `look`, both composed. Call it in a thread."""
        old, new = (each.face.compositor.face(each.idle_index, each.pose) for each in (self, look))
        return self.fade.between(before, after, self.share, old, new)


Loop = Callable[[int], PingPongLoop | VariedLoop]
"""The loop of a clip of so many frames."""


@dataclass(frozen=True)
class _Span(Generic[F]):
    """From `begin` on `face` is shown, from its frame `phase` on: to and fro, or `once` and then its last frame.

    Over `fade` positions the span before goes away.
    """

    begin: int
    face: F
    phase: int = 0
    fade: int = 0
    once: bool = False
    loop: Loop = idle_loop
    crossfade: Crossfade = field(default_factory=Crossfade, compare=False)

    def index(self, position: int) -> int:
        step = position - self.begin + self.phase
        return min(step, self.face.frames - 1) if self.once else self.loop(self.face.frames).idle_index(step)

    @property
    def settled(self) -> int:
        """The first position at which nothing of the span before is seen."""
        return self.begin + self.fade


@dataclass(frozen=True)
class Passage:
    """How one clip goes over into another: at `begin`, to the frame `frame`, over `fade` positions."""

    begin: int
    frame: int
    fade: int


class Timeline(Generic[F]):
    """Maps positions, which only grow, to looks. An avatar that takes over begins with its first frame.

    Every position is decided once its frame is being made: changes are of later ones only.

    Args:
        face: the first avatar.
        motion: how the heads of still pictures move.
        loop, pose: how a clip goes on, and the pose of a still picture's head at a position; a session's own by default.
    """

    def __init__(
        self, face: F, motion: HeadMotion, *, loop: Loop = idle_loop, pose: Callable[[int], Pose] | None = None
    ) -> None:
        self._motion, self._loop, self._pose = motion, loop, pose or motion.live_pose
        self._spans = [_Span(0, face, loop=loop)]
        self.home = face
        """The avatar itself, to which actions come back."""

    @property
    def newest(self) -> F:
        """The face that is shown in the end."""
        return self._spans[-1].face

    @property
    def faces(self) -> set[F]:
        """Every face that may still be shown."""
        return {span.face for span in self._spans} | {self.home}

    def at(self, position: int) -> ShownFrame[F]:
        """What is shown at `position` (≥ 0)."""
        at = max((k for k, span in enumerate(self._spans) if span.begin <= position), default=0)
        span = self._spans[at]
        index, pose = self._frame(span, max(position, span.begin))
        if at == 0 or position >= span.settled:
            return ShownFrame(span.face, index, pose=pose)
        before = self._spans[at - 1]
        share = (position - span.begin + 1) / (span.fade + 1)
        old, old_pose = self._frame(before, position)
        return ShownFrame(span.face, index, Leaving(before.face, old, share, span.crossfade, old_pose), pose)

    def _frame(self, span: _Span[F], position: int) -> tuple[int, Pose]:
        if not span.face.compositor.lives:
            return span.index(position), AS_IT_IS
        return span.face.closed(self._motion.closure(position)), self._pose(position)

    def settled(self, position: int) -> int:
        """The first position from this one on at which no passage that has begun by then is under way."""
        return max([position, *(span.settled for span in self._spans if span.begin < position)])

    @property
    def end(self) -> int:
        """The first position from which on the last face is shown alone."""
        return self._spans[-1].settled

    def show(self, face: F, begin: int) -> None:
        """Shows an avatar from `begin` on, in place of everything that was to follow."""
        self._follow(_Span(begin, face, loop=self._loop))
        self.home = face

    def act(self, face: F, enter: Passage, leave: Passage | None) -> None:
        """Plays a clip in place of what was to follow: to and fro, or with `leave` once and then home to that frame of it.

        `enter.begin` must be settled.
        """
        self._follow(_Span(enter.begin, face, enter.frame, enter.fade, leave is not None, self._loop))
        if leave is not None:
            self._spans.append(_Span(leave.begin, self.home, leave.frame, leave.fade, loop=self._loop))

    def forget(self, position: int) -> None:
        """Positions before this one are not asked for again."""
        self._motion.forget(position)
        while len(self._spans) > 1 and self._spans[1].settled <= position:
            del self._spans[0]

    def _follow(self, span: _Span[F]) -> None:
        self._spans = [*(each for each in self._spans if each.begin < span.begin), span]
