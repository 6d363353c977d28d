"""The clips that a film plays at marks of its text (`[wave]`): as in a session, but with all their times known beforehand.

The passages are decided once, when the render is prepared, and are part of its plan: parts that different workers make join.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from musetalk_agent.compose.head_motion import HeadMotion, seed_of
from musetalk_agent.compose.idle import PingPongLoop
from musetalk_agent.compose.passages import enter, leave, sketch
from musetalk_agent.compose.timeline import Passage, Timeline
from musetalk_agent.factory import Factory, OpenedAvatar
from musetalk_agent.media.pipeline import open_face
from musetalk_agent.media.renderer import OpenFace
from musetalk_agent.protocol.action_marks import IDLE, LEAD_S, ActionMark, ActionMarks, MarkTimes, letters
from musetalk_agent.protocol.http import AgentAvatarRequest, AvatarSource
from musetalk_agent.protocol.renders import RenderAction, RenderMark, RenderOrder
from musetalk_agent.renders.known_speech import FilmWord


@dataclass(frozen=True)
class FilmAction:
    """A clip in a film: the frames at which it is entered and left. `face` is None for the avatar's own clip."""

    face: OpenFace | None
    enter: Passage
    leave: Passage | None


def film_timeline(face: OpenFace, motion: HeadMotion, actions: Iterable[FilmAction] = ()) -> Timeline[OpenFace]:
    """What a film shows at each of its frames."""
    made = Timeline(face, motion, loop=PingPongLoop, pose=motion.pose)
    for action in actions:
        made.act(action.face or face, action.enter, action.leave)
    return made


def mark_times(
    marks: Sequence[RenderMark], text: str, words: Sequence[FilmWord], sound_s: float
) -> list[tuple[str, float]]:
    """The clips of these marks, and when their words are heard, in seconds of the film.

    Where no words are known, a mark stands at its share of the text's letters.
    """
    if not words:
        whole = max(1, letters(text))
        return [(mark.name, sound_s * mark.letters / whole) for mark in marks]
    found = ActionMarks(())
    found.found.extend(ActionMark(mark.name, mark.letters) for mark in marks)
    times, placed = MarkTimes(found), []
    for word in words:
        placed += [(name, word.begin) for name in times.reached(word.text)]
    return placed + [(name, words[-1].end) for name in times.rest()]


@asynccontextmanager
async def open_clips(
    factory: Factory, avatar: OpenedAvatar, order: RenderOrder, names: Iterable[str]
) -> AsyncIterator[dict[str, OpenedAvatar]]:
    """Clips of the avatar by name, at its size and rate, open until the end of the block. Raises AvatarErrors and engine errors."""
    clips: dict[str, OpenedAvatar] = {}
    try:
        for name in set(names) - {IDLE}:
            source = AvatarSource(avatar_id=order.clips[name])
            wanted = AgentAvatarRequest(avatar=source, avatar_settings=order.request.avatar_settings)
            clips[name] = await factory.other_avatar(avatar.bundle, avatar.engine, wanted)
        yield clips
    finally:
        for clip in clips.values():
            clip.engine_session.close()


async def plan_actions(
    factory: Factory, avatar: OpenedAvatar, order: RenderOrder, times: Sequence[tuple[str, float]]
) -> tuple[list[RenderAction], int]:
    """How a film goes over into its clips and back, and the frame at which the last of them has gone.

    Raises AvatarErrors and engine errors.
    """
    async with open_clips(factory, avatar, order, [name for name, _ in times]) as clips:
        home = open_face(avatar.bundle, avatar.engine_session)
        faces = {name: open_face(clip.bundle, clip.engine_session) for name, clip in clips.items()}
        sketches = {home: await asyncio.to_thread(sketch, avatar.bundle)}
        for name, clip in clips.items():
            sketches[faces[name]] = await asyncio.to_thread(sketch, clip.bundle)
        fps = avatar.bundle.fps
        timeline = film_timeline(home, HeadMotion(seed_of(order.render_id), fps))
        actions: list[RenderAction] = []
        for name, at_s in times:
            face = faces.get(name, home)
            entered = enter(timeline, max(0, round((at_s - LEAD_S) * fps)), sketches, face)
            left = None if face is home else leave(timeline, entered, sketches, face)
            timeline.act(face, entered, left)
            actions.append(RenderAction(name=name, enter=_row(entered), leave=_row(left) if left else None))
        return actions, timeline.end


def film_actions(planned: Iterable[RenderAction], clips: dict[str, OpenedAvatar]) -> tuple[FilmAction, ...]:
    """What was planned, with the clips as they are open here."""
    faces = {name: open_face(clip.bundle, clip.engine_session) for name, clip in clips.items()}
    return tuple(
        FilmAction(faces.get(each.name), Passage(*each.enter), Passage(*each.leave) if each.leave else None)
        for each in planned
    )


def _row(passage: Passage) -> tuple[int, int, int]:
    return passage.begin, passage.frame, passage.fade
