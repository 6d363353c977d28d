"""What the engine derives from a bundle once: reference frames, the idle frames' maps, enlarged lower faces, mouth shapes and
differences of light."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musetalk_agent.arrays import open_arrays, save_arrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face_track import head_angles
from musetalk_agent.engines.warp import enlarged
from musetalk_agent.engines.warp.articulation import CUT_FROM, Movements, opened
from musetalk_agent.engines.warp.enlarged import EnlargedMouth
from musetalk_agent.engines.warp.idle_shapes import (
    Ints,
    apertures,
    chosen,
    fallen,
    kept_beside,
    nearest,
    outlines,
    rest_shapes,
    settled,
    smile_of,
    steadied,
    whole_chins,
)
from musetalk_agent.engines.warp.inside_pose import InsidePose, poses_of
from musetalk_agent.engines.warp.interior import Palette, teeth_seen
from musetalk_agent.engines.warp.light import LIGHT_SEEN, light_of
from musetalk_agent.engines.warp.lips import refine
from musetalk_agent.engines.warp.mouth_space import (
    IL,
    IU,
    LEVELS,
    SAMPLES,
    SUBNASALE,
    Floats,
    MouthShape,
    eye_frame,
    in_window,
    mesh_shape,
    pose_frames,
    to_mouth,
)
from musetalk_agent.media_types import Box, Pixels

FILE = "warp.npz"
CANDIDATES = 6
"""How many of the frames that the mesh calls most closed are looked at closely."""
ALIKE = 0.003
"""Mouths whose openings the mesh reads within this (eye distances) are one mouth, as in a still: the pixels' reading in the middle
of theirs is taken, for the least one is the likeliest to have missed teeth."""

MISREAD = 0.05, 2.5
"""A reference other than the first is dropped where the pixels say an opening of more than this (eye distances) and this multiple
of what the mesh reads: a beard or a shadow was taken for the inside."""


@dataclass(frozen=True)
class WarpArtefacts:
    """Everything `render` needs beside the bundle's pixels.

    Args:
        frames: float32 `[n, 2, 3]`, mouth space to pixels of the image, per idle frame.
        idle_shapes: the idle frames' own mouths.
        references: frames whose lips are shown while speaking, int `[k]`. The first one has the most closed mouth of all, and its
            eyes are the unit of mouth space; each of the others has that of the frames in which the head is turned as it is there.
        shapes: the references' mouths, their inner edges exact.
        shown: which of the references each idle frame shows, int `[n]`.
        rests: each idle frame's mouth with the lips together.
        sides: float32 `[n, 2]`, how far the face's outline is to the left and right of each idle frame's mouth.
        top: `v` of the base of the nose, where the deformation begins.
        palette: colours of the inside.
        light: float32 `[n, LIGHT_ROWS, LIGHT_COLS, 3]`, how many times as bright as its reference each idle frame is (BGR).
        inside: float32 `[n, 7]`, how the inside of the mouth is turned and lit in each idle frame (see `InsidePose`).
        parts: int32 `[n, 4]`, where the lower faces that are enlarged lie (see `enlarged.places`).
        mouths: uint8 `[n, h, w, 4]`, these, memory-mapped; None while they are not stored.
    """

    frames: Floats
    idle_shapes: tuple[MouthShape, ...]
    references: Ints
    shapes: tuple[MouthShape, ...]
    shown: Ints
    rests: tuple[MouthShape, ...]
    sides: Floats
    top: float
    palette: Palette
    light: Floats
    inside: Floats
    parts: NDArray[np.int32]
    mouths: Pixels | None = None

    @property
    def reference(self) -> int:
        """The frame with the most closed mouth."""
        return int(self.references[0])

    @cached_property
    def movements(self) -> tuple[Movements, ...]:
        """How each idle frame's mouth moves."""
        return tuple(Movements.of(rest, sides) for rest, sides in zip(self.rests, self.sides, strict=True))

    @cached_property
    def _cut(self) -> tuple[tuple[MouthShape, MouthShape], ...]:
        """The references' mouths as their lips are cut out for closed lips, and for lips that are apart."""
        return tuple((opened(shape, 0.0), opened(shape, CUT_FROM)) for shape in self.shapes)

    def cut(self, reference: int, gap: float) -> MouthShape:
        """The mouth of one of the `references` as its lips are cut out to be `gap` (eye distances) apart."""
        if 0 < gap < CUT_FROM:
            return opened(self.shapes[reference], gap)
        return self._cut[reference][gap > 0]

    @cached_property
    def lit_otherwise(self) -> tuple[bool, ...]:
        """Whether each idle frame's light differs visibly from its reference's."""
        return tuple((np.abs(self.light - 1).max((1, 2, 3)) >= LIGHT_SEEN).tolist())

    @cached_property
    def poses(self) -> tuple[InsidePose, ...]:
        """How the inside of the mouth is turned and lit in each idle frame."""
        return tuple(InsidePose(*row) for row in self.inside.tolist())

    def part(self, idle_index: int) -> Box:
        """Where the enlarged lower face of an idle frame lies in the image."""
        return Box(*self.parts[idle_index].tolist())

    def mouth(self, bundle: Bundle, idle_index: int) -> EnlargedMouth:
        """The lower face of an idle frame, enlarged: what is stored, or made now."""
        if self.mouths is None:
            return EnlargedMouth.of(np.asarray(bundle.faces[idle_index]), bundle.box(idle_index), self.part(idle_index))
        return self._stored[idle_index]

    @cached_property
    def _stored(self) -> tuple[EnlargedMouth, ...]:
        assert self.mouths is not None
        return tuple(EnlargedMouth.at(pixels, self.part(k)) for k, pixels in enumerate(self.mouths))

    @classmethod
    def of(cls, bundle: Bundle) -> WarpArtefacts:
        """Derives them; about 2 ms per frame, 0.3 s for the first reference and 0.05 s for each other one."""
        landmarks = np.asarray(bundle.landmarks, np.float32)
        first, shape = _reference(bundle, landmarks)
        frames = pose_frames(landmarks, first)
        meshes = [mesh_shape(to_mouth(frame, points)) for frame, points in zip(frames, landmarks, strict=True)]
        angles = steadied(head_angles(landmarks))
        references = chosen(angles, apertures(landmarks), _usable(bundle, landmarks), first)
        others = {int(k): _refined(bundle, frames, meshes[k], int(k)) for k in references[1:]}
        others = {
            k: other for k, other in others.items() if other.opening <= MISREAD[0] + MISREAD[1] * meshes[k].opening
        }
        references, shapes = np.array([first, *others], np.int64), (shape, *others.values())
        shown = nearest(angles, references, apertures(landmarks))
        idle_shapes = settled(meshes, angles, shapes, references, shown)
        image, frame = np.asarray(bundle.faces[first]), in_window(frames[first], bundle.boxes[first, :2])
        top = float(to_mouth(frames[first], landmarks[first, SUBNASALE])[1])
        palette = Palette.of(image, frame, shape, _teeth(bundle, landmarks))
        rests = rest_shapes(idle_shapes, shapes, references, shown, fallen(meshes, angles), smile_of(meshes, angles))
        sides = outlines(frames, landmarks, rests)
        rests = kept_beside(rests, idle_shapes, sides)
        light = light_of(bundle, frames, idle_shapes, shapes, references, shown)
        inside = np.hstack([poses_of(frames, landmarks, idle_shapes, angles), light.inside])
        parts = enlarged.places(bundle, frames, rests, idle_shapes, top)
        return cls(
            frames, idle_shapes, references, shapes, shown, rests, sides, top, palette, light.gains, inside, parts
        )

    def save(self, bundle: Bundle, folder: Path) -> WarpArtefacts:
        """Writes them into `folder`, each file whole or not at all, and gives back what `load` would. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        enlarged.save((self.mouth(bundle, k).pixels for k in range(len(bundle))), folder)
        teeth, colours = self.palette.stored()
        shapes = (*self.idle_shapes, *self.rests, *self.shapes)
        arrays: dict[str, ArrayLike] = {
            "frames": self.frames,
            "references": self.references,
            "shown": self.shown,
            "sizes": np.array([(shape.centre, shape.half) for shape in shapes], np.float32),
            "curves": np.stack([shape.curves for shape in shapes]),
            "sides": self.sides,
            "top": self.top,
            "teeth": teeth,
            "palette": colours,
            "light": self.light,
            "inside": self.inside,
            "parts": self.parts,
        }
        save_arrays(folder / FILE, arrays)
        return replace(self, mouths=enlarged.load(self.parts, folder))

    @classmethod
    def load(cls, folder: Path) -> WarpArtefacts:
        """Reads what `save` wrote.

        Raises FileNotFoundError where there is nothing, and DamagedArrays where it is not whole.
        """
        with open_arrays(folder / FILE) as stored:
            sizes, curves = stored["sizes"], stored["curves"]
            if curves.shape[1:] != (LEVELS, SAMPLES):
                raise ValueError(f"curves have the shape {curves.shape}")
            shapes = tuple(MouthShape(float(c), float(h), k) for (c, h), k in zip(sizes, curves, strict=True))
            count = len(stored["frames"])
            if (
                len(shapes) != 2 * count + len(stored["references"])
                or len(stored["shown"]) != count
                or stored["inside"].shape != (count, 7)
            ):
                raise ValueError(f"{len(shapes)} shapes for {count} idle frames")
            return cls(
                stored["frames"],
                shapes[:count],
                stored["references"],
                shapes[2 * count :],
                stored["shown"],
                shapes[count : 2 * count],
                stored["sides"],
                float(stored["top"]),
                Palette.loaded(stored["teeth"], stored["palette"]),
                stored["light"],
                stored["inside"],
                stored["parts"],
                enlarged.load(stored["parts"], folder),
            )


def _exact(bundle: Bundle, landmarks: Floats, idle_index: int, lent: bool = True) -> tuple[MouthShape, Floats]:
    """The shape of one idle frame, its inner edges from the pixels, and the map from its own mouth space to its face window."""
    frame = eye_frame(landmarks[idle_index])
    mesh = mesh_shape(to_mouth(frame, landmarks[idle_index]))
    frame[:, 2] -= bundle.boxes[idle_index, :2]
    return refine(mesh, frame, np.asarray(bundle.faces[idle_index]), lent), frame


def _refined(bundle: Bundle, frames: Floats, mesh: MouthShape, idle_index: int) -> MouthShape:
    """The shape of one idle frame in the clip's common mouth space, its inner edges from the pixels."""
    return refine(
        mesh, in_window(frames[idle_index], bundle.boxes[idle_index, :2]), np.asarray(bundle.faces[idle_index])
    )


def _usable(bundle: Bundle, landmarks: Floats) -> Ints:
    """The idle frames that may lend their lips: those that show mouth and chin, or the mouth alone where no frame shows both."""
    shown = bundle.with_mouth()
    whole = shown[whole_chins(landmarks[shown], bundle.width, bundle.height)]
    return whole if len(whole) else shown


def _teeth(bundle: Bundle, landmarks: Floats) -> Floats | None:
    """The colour of the avatar's teeth, from the frame with the widest open mouth."""
    usable = _usable(bundle, landmarks)
    idle_index = int(usable[np.argmax(apertures(landmarks[usable]))])
    shape, frame = _exact(bundle, landmarks, idle_index, lent=False)
    return teeth_seen(np.asarray(bundle.faces[idle_index]), frame, shape)


def _reference(bundle: Bundle, landmarks: Floats) -> tuple[int, MouthShape]:
    """The frame with the most closed lips, by the mesh first and then by its pixels, and its exact shape."""
    usable = _usable(bundle, landmarks)
    aperture = apertures(landmarks)
    seen: list[tuple[float, int, MouthShape]] = []
    for idle_index in usable[np.argsort(aperture[usable], kind="stable")[:CANDIDATES]]:
        shape = _exact(bundle, landmarks, int(idle_index))[0]
        area = float((shape.curves[IL] - shape.curves[IU]).mean())
        if area == 0:
            return int(idle_index), shape
        seen.append((area, int(idle_index), shape))
    least = min(seen, key=lambda one: one[0])
    alike = [one for one in seen if abs(float(aperture[one[1]] - aperture[least[1]])) < ALIKE]
    _, idle_index, shape = sorted(alike, key=lambda one: one[0])[len(alike) // 2]
    return idle_index, shape
