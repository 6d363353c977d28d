"""Which frames lend their lips: one for each way the head is turned, so that lips are never bent far.

Lips seen from the front do not fit a face seen from the side: the far half is narrower, and behind it comes what lies behind the
face. A clip of a still head has one reference; one whose head turns and nods has more, each with the most closed mouth of the
frames around it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.geometry import EYES, Floats

Ints = NDArray[np.int64]

APART = np.radians(10.0)
"""Poses further than this from every reference get one of their own (radians)."""
BENT = np.radians(14.0)
"""So far lips may be bent before open ones from a nearer pose are better (radians)."""
SHUT = 0.03
"""Lips that the mesh sees closer together than this are closed (eye distances)."""
SMILE = 1.4
"""Where lips are always apart, those up to this multiple of the least opening count as closed: the mesh reads smiles unevenly."""
MOST = 12
"""References of a clip at most: each costs 50 ms of preparation."""
NEAR = 0.5
"""A reference is sought within this share of `APART` around the pose that lacks one."""
CLEAR = 0.04
"""How far a chin must be from the picture's edge, in eye distances, in a frame that lends its lips."""


def apertures(landmarks: Floats) -> Floats:
    """How open the mesh sees the lips of each pose, in eye distances."""
    eyes = np.linalg.norm(landmarks[:, EYES[0]] - landmarks[:, EYES[1]], axis=1)
    return np.asarray(np.linalg.norm(landmarks[:, 13] - landmarks[:, 14], axis=1) / np.maximum(eyes, 1), np.float32)


def whole_chins(landmarks: Floats, width: int, height: int) -> NDArray[np.bool_]:
    """Which poses show the whole chin, bool `[n]`."""
    room = CLEAR * np.linalg.norm(landmarks[:, EYES[0]] - landmarks[:, EYES[1]], axis=1)[:, None]
    chin = landmarks[:, 152]
    inside: NDArray[np.bool_] = ((chin > room) & (chin < np.array([width, height]) - 1 - room)).all(1)
    return inside


def chosen(angles: Floats, openness: Floats, usable: Ints, first: int) -> Ints:
    """Indices of the references, `first` before all others.

    Each pose of `usable` with closed lips is within `APART` of one, as far as `MOST` reaches. Open lips are taken only where no
    others are within `BENT`.
    """
    found = [first]
    shut = usable[openness[usable] <= max(SHUT, SMILE * float(openness[first]))]
    for poses, apart in ((shut, APART), (usable, BENT)):
        away = np.linalg.norm(angles[poses, None] - angles[found][None], axis=2).min(1)
        while len(found) < MOST and float(away.max(initial=0.0)) > apart:
            far = angles[poses[int(np.argmax(away))]]
            # not near one that is there already: of several open frames the same one would be chosen again
            near = poses[(np.linalg.norm(angles[poses] - far, axis=1) <= NEAR * APART) & (away > NEAR * APART)]
            best = int(near[int(np.argmin(openness[near]))])
            found.append(best)
            away = np.minimum(away, np.linalg.norm(angles[poses] - angles[best], axis=1))
    return np.array(found, np.int64)


def nearest(angles: Floats, references: Ints) -> Ints:
    """For each pose the reference that it shows, an index into `references`."""
    away = np.linalg.norm(angles[:, None] - angles[references][None], axis=2)
    return np.asarray(away.argmin(1), np.int64)
