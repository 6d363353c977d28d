"""The quality report: what a viewer would notice about a clip, in numbers and sentences."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE
from musetalk_agent.avatars.face_track import FaceTrack, head_reach
from musetalk_agent.avatars.trust import UNSURE
from musetalk_agent.protocol.http import AvatarReport, AvatarWarning

FACE_PX_SMALL = 96
FACE_PX_TINY = 64
_UPPER_LIP, _LOWER_LIP = 13, 14  # inner lips, middle
_NOSE_BRIDGE, _NOSE_TIP, _LEFT_SIDE, _RIGHT_SIDE = 6, 1, 234, 454
_CLOSED = 0.03
"""Lips count as closed below this opening, in units of the distance between the outer corners of the eyes."""
_PROFILE = 0.27
"""Where the nose tip lies between the sides of the face (0 … 1) in a face that is turned too far: about 45°."""
_EDGE = 0.02
_SEVERAL = 0.3
_SHORT_S = 1.0
_LYING = math.radians(50)
"""How far the eye line may be from level before a face counts as lying: people tilt their heads by up to 40°."""
_TURNS, _NODS = 45.0, 35.0
"""Degrees up to which lips were seen to be drawn well on heads that move, with room for the error of the angles."""
_LISTED = 5
_OPEN_STILL = "The lips are apart in the picture; one with closed lips looks better, above all at rest."
_OPEN_CLIP = "No frame shows closed lips; a clip of a person who listens looks better than one of talking."


def face_px(points: NDArray[np.float32]) -> int:
    """Median width of the mesh in pixels along its eye line, of points `[n, 468, 2]`."""
    along = points[:, RIGHT_EYE] - points[:, LEFT_EYE]
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    across = (points * along[:, None]).sum(2)
    return round(float(np.median(across.max(1) - across.min(1))))


def closed_mouth(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames show closed lips, bool `[n]`."""
    opening = np.linalg.norm(points[:, _LOWER_LIP] - points[:, _UPPER_LIP], axis=1)
    eyes = np.linalg.norm(points[:, RIGHT_EYE] - points[:, LEFT_EYE], axis=1)
    closed: NDArray[np.bool_] = opening < _CLOSED * eyes
    return closed


def make_report(
    avatar_id: str, track: FaceTrack, clip: tuple[int, int], shown: tuple[int, int], fps: int, still: bool
) -> AvatarReport:
    """The report of a clip of `clip` (width, height) pixels that is published at `shown`."""
    points = track.points
    steps = np.linalg.norm(np.diff(points[:, _NOSE_BRIDGE], axis=0), axis=1)
    warnings = _face_warnings(track, clip) + _frame_warnings(track, fps, still)
    return AvatarReport(
        avatar_id=avatar_id,
        frames=len(points),
        width=shown[0],
        height=shown[1],
        fps=fps,
        face_px=face_px(points),
        motion_px=round(float(np.median(steps)), 2) if len(steps) else 0.0,
        closed_mouth_frames=int(closed_mouth(_with_mouth(track)).sum()),
        frames_without_face=track.missing,
        frames_mouth_hidden=track.covered,
        still=still,
        warnings=[AvatarWarning(code=code, message=message) for code, message in warnings],
    )


def _face_warnings(track: FaceTrack, clip: tuple[int, int]) -> list[tuple[str, str]]:
    """Warnings about the face: its size, its turn, other faces beside it, its place in the frame."""
    points, found = track.points, []
    width = face_px(points)
    if width < FACE_PX_TINY:
        text = f"The face is only {width} px wide: its mouth will hardly be seen to move; use 96 px or more."
        found.append(("face_small", text))
    elif width < FACE_PX_SMALL:
        text = f"The face is {width} px wide; with 96 px or more the mouth is sharper (200 px is good)."
        found.append(("face_small", text))
    if _lying(points) > 0.5:
        text = "The face lies on its side or is upside down; turn the picture so that it stands upright."
        found.append(("face_lying", text))
    if track.several >= _SEVERAL:
        found.append(("several_faces", "Several faces are seen; the largest one speaks. Crop the clip to one face."))
    turned = _turned(points)
    if turned > 0.5:
        text = f"The face is turned aside in {turned:.0%} of the frames; use one that looks at the camera."
        found.append(("face_in_profile", text))
    if _at_edge(points, clip):
        found.append(("face_at_edge", "The face touches the edge of the picture; leave room around it."))
    return found


def _frame_warnings(track: FaceTrack, fps: int, still: bool) -> list[tuple[str, str]]:
    """Warnings about single frames, and about the clip as a whole."""
    frames, missing, covered, found = len(track.points), len(track.missing), len(track.covered), []
    if track.cuts:
        text = (
            f"The clip changes to another shot or face at frame {_numbers(track.cuts)}; only frames {track.start} to "
            f"{track.end - 1} are used. Send a clip of one shot."
        )
        found.append(("scene_cut", text))
    if missing:
        text = (
            f"{missing} of {frames} frames show no face: they are shown as they are, and no mouth moves on "
            "them. Cut them out of the clip."
        )
        found.append(("frames_without_face", text))
    if covered:
        effect = "it will not be seen to speak" if covered + missing == frames else "it rests there"
        text = (
            f"The mouth is covered in {covered} of {frames} frames (by a mask, a hand, a caption): no mouth is "
            f"drawn on them, {effect}. Use pictures in which it can be seen."
        )
        found.append(("mouth_hidden", text))
    if unsure := _unsure(track):
        text = (
            f"The face is hard to follow in {len(unsure)} of {frames} frames (the first is {unsure[0]}): the mouth moves less. "
            "Use a clip whose face is evenly lit, with nothing before it."
        )
        found.append(("face_unsure", text))
    mouths = _with_mouth(track)
    if not still and len(mouths) and (moved := _head_warning(mouths)):
        found.append(moved)
    if not still and frames < _SHORT_S * fps:
        text = f"The clip has {frames} frames ({frames / fps:.1f} s); 3 s or more idle naturally."
        found.append(("clip_short", text))
    if len(mouths) and not closed_mouth(mouths).any():
        found.append(("mouth_open", _OPEN_STILL if still else _OPEN_CLIP))
    return found


def _unsure(track: FaceTrack) -> list[int]:
    """The frames that show a mouth and whose mesh is trusted little."""
    if track.trust is None:
        return []
    hidden = {*track.missing, *track.covered}
    return [int(k) for k in np.flatnonzero(track.trust < UNSURE) if k not in hidden]


def _with_mouth(track: FaceTrack) -> NDArray[np.float32]:
    """The points of the frames that show a mouth."""
    return np.delete(track.points, [*track.missing, *track.covered], axis=0)


def _head_warning(points: NDArray[np.float32]) -> tuple[str, str] | None:
    turn, nod = (math.degrees(angle) for angle in head_reach(points))
    if turn <= _TURNS and nod <= _NODS:
        return None
    return (
        "head_turns_far",
        f"The head turns by up to {turn:.0f}° from the camera and nods by up to {nod:.0f}° from its middle; lips look right up to "
        "about 40° and 30°. Use a clip of a person who looks at the camera.",
    )


def _lying(points: NDArray[np.float32]) -> float:
    """Share of frames in which the eye line is more than `_LYING` from level."""
    across = points[:, RIGHT_EYE] - points[:, LEFT_EYE]
    return float((np.abs(np.arctan2(across[:, 1], across[:, 0])) > _LYING).mean())


def _numbers(frames: tuple[int, ...]) -> str:
    """`12, 40 and 77`; of more than five the first five and how many there are."""
    if len(frames) > _LISTED:
        return ", ".join(str(frame) for frame in frames[:_LISTED]) + f" … ({len(frames)} changes)"
    return " and ".join(part for part in (", ".join(str(frame) for frame in frames[:-1]), str(frames[-1])) if part)


def _turned(points: NDArray[np.float32]) -> float:
    """Share of frames in which the nose tip lies far to one side of the face."""
    across = points[:, _RIGHT_SIDE] - points[:, _LEFT_SIDE]
    along = ((points[:, _NOSE_TIP] - points[:, _LEFT_SIDE]) * across).sum(1) / np.maximum((across**2).sum(1), 1e-6)
    return float(((along < _PROFILE) | (along > 1 - _PROFILE)).mean())


def _at_edge(points: NDArray[np.float32], clip: tuple[int, int]) -> bool:
    margin = _EDGE * face_px(points)
    low, high = np.median(points.min(1), axis=0), np.median(points.max(1), axis=0)
    return bool((low < margin).any() or (high > np.array(clip) - 1 - margin).any())
