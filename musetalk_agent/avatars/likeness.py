"""Whether a clip shows the same person at the same framing as another, so that one can be shown after the other."""

from __future__ import annotations

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.avatars.face_picture import cut_face
from musetalk_agent.avatars.identity import Descriptor, FaceDescriber, cosine, mean_descriptor
from musetalk_agent.avatars.quality_report import face_px
from musetalk_agent.errors import ClipMismatch

SIZE_MOST = 1.3
"""How much larger one face may be than the other."""
PLACE_MOST = 0.6
"""How far the faces' middles may be apart, in widths of the face: so far a head moves by itself."""
_LOOKED_AT = 8
_PAIRS = ((LEFT_EYE, RIGHT_EYE), (133, 362))
"""Outer and inner corners of the eyes."""


def check_clip(avatar: Bundle, clip: Bundle, describer: FaceDescriber) -> None:
    """Raises ClipMismatch where `clip` shows another person than `avatar`, or the face at another size or place.

    A mirrored clip is of the same person. Call it in a thread.
    """
    width, other = face_px(_seen(avatar)), face_px(_seen(clip))
    if max(width, other) > SIZE_MOST * max(1, min(width, other)):
        raise ClipMismatch(
            f"The face is {other} px wide in this clip and {width} px in the avatar: film both at one distance.",
            limit=SIZE_MOST,
            value=other,
        )
    apart = float(np.linalg.norm(_seen(avatar).mean((0, 1)) - _seen(clip).mean((0, 1)))) / max(1, width)
    if apart > PLACE_MOST:
        raise ClipMismatch(
            f"The face is {apart:.1f} of its widths away from where the avatar has it: frame both alike.",
            limit=PLACE_MOST,
            value=round(apart, 2),
        )
    known = _described(avatar, describer)
    alike = max(cosine(known, _described(clip, describer, mirrored)) for mirrored in (False, True))
    if alike < describer.same:
        raise ClipMismatch(
            f"This clip shows another person than the avatar, or one that looks quite different (likeness {alike:.2f}, "
            f"{describer.same:g} is needed).",
            limit=describer.same,
            value=round(alike, 3),
        )


def _seen(bundle: Bundle) -> Points:
    return np.asarray(bundle.landmarks[bundle.with_mouth()])


def _described(bundle: Bundle, describer: FaceDescriber, mirrored: bool = False) -> Descriptor:
    frames = bundle.with_mouth()
    found = []
    for frame in frames[np.linspace(0, len(frames) - 1, min(_LOOKED_AT, len(frames))).astype(int)]:
        picture = np.ascontiguousarray(bundle.faces[frame])
        points = bundle.landmarks[frame] - bundle.boxes[frame, :2].astype(np.float32)
        if mirrored:
            picture, points = np.ascontiguousarray(picture[:, ::-1]), _turned(points, picture.shape[1])
        found.append(describer.describe(picture, points, cut_face(picture, points)))
    return mean_descriptor(found)


def _turned(points: Points, width: int) -> Points:
    """The mesh of the mirrored picture, right at the eyes' corners, which are what descriptors go by."""
    turned = points.copy()
    turned[:, 0] = width - 1 - points[:, 0]
    for one, other in _PAIRS:
        turned[[one, other]] = turned[[other, one]]
    return turned
