"""What the engine derives from a bundle once: the reference frame, the poses' frames and shapes, the light's differences."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.articulation import closed
from musetalk_agent.engines.warp.geometry import (
    CHIN,
    EYES,
    IL,
    IU,
    LEVELS,
    SAMPLES,
    SUBNASALE,
    Floats,
    Shape,
    eye_frame,
    mesh_shape,
    ordered,
    pose_frames,
    to_mouth,
)
from musetalk_agent.engines.warp.interior import Palette, teeth_seen
from musetalk_agent.engines.warp.lips import refine, sample

FILE = "warp.npz"
CANDIDATES = 6
"""How many of the frames that the mesh calls most closed are looked at closely."""
ALIKE = 0.003
"""Mouths whose openings the mesh reads within this (eye distances) are one mouth, as in a still: the pixels' reading in the middle
of theirs is taken, for the least one is the likeliest to have missed teeth."""
SETTLE = 1.5
"""Standard deviation, in frames, of the smoothing of the poses' own shapes over time: the mesh's noise is shorter than speech."""
LIGHT_ROWS, LIGHT_COLS = 12, 16
LIGHT_AREA = (-0.6, 0.6, 0.3, 1.25)
"""Where light is compared between poses: u from, to; v from, to."""


@dataclass(frozen=True)
class Artefacts:
    """Everything `render` needs beside the bundle's pixels.

    Args:
        reference: index of the frame whose lips are shown while speaking: the one with the most closed mouth.
        frames: float32 `[n, 2, 3]`, mouth space to pixels of the picture, per pose.
        poses: the idle frames' own mouths.
        shape: the reference's mouth, its inner edges exact.
        rest: the same with the lips together.
        top: `v` of the base of the nose, where the deformation begins.
        palette: colours of the inside.
        light: float32 `[n, LIGHT_ROWS, LIGHT_COLS, 3]`, how much brighter each pose is than the reference (BGR).
    """

    reference: int
    frames: Floats
    poses: tuple[Shape, ...]
    shape: Shape
    rest: Shape
    top: float
    palette: Palette
    light: Floats

    @classmethod
    def of(cls, bundle: Bundle) -> Artefacts:
        """Derives them; about 2 ms per frame and 0.3 s for the reference."""
        landmarks = np.asarray(bundle.landmarks, np.float32)
        reference, shape = _reference(bundle, landmarks)
        frames = pose_frames(landmarks, reference)
        meshes = [mesh_shape(to_mouth(frame, points)) for frame, points in zip(frames, landmarks, strict=True)]
        poses = _settled(meshes, shape, reference)
        picture, frame = np.asarray(bundle.faces[reference]), _in_window(bundle, frames, reference)
        top = float(to_mouth(frames[reference], landmarks[reference, SUBNASALE])[1])
        palette = Palette.of(picture, frame, shape, _teeth(bundle, landmarks))
        return cls(reference, frames, poses, shape, closed(shape), top, palette, _light(bundle, frames, reference))

    def save(self, folder: Path) -> None:
        """Writes them into `folder`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        teeth, colours = self.palette.stored()
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    reference=self.reference,
                    frames=self.frames,
                    sizes=np.array([(p.centre, p.half) for p in (*self.poses, self.shape)], np.float32),
                    curves=np.stack([p.curves for p in (*self.poses, self.shape)]),
                    top=self.top,
                    teeth=teeth,
                    palette=colours,
                    light=self.light,
                )
            Path(name).replace(folder / FILE)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, folder: Path) -> Artefacts:
        """Reads what `save` wrote.

        Raises OSError where there is nothing, and BadZipFile, EOFError, ValueError or KeyError where it is not whole.
        """
        with (folder / FILE).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            sizes, curves = stored["sizes"], stored["curves"]
            if curves.shape[1:] != (LEVELS, SAMPLES):
                raise ValueError(f"curves have the shape {curves.shape}")
            shapes = [Shape(float(c), float(h), k) for (c, h), k in zip(sizes, curves, strict=True)]
            return cls(
                int(stored["reference"]),
                stored["frames"],
                tuple(shapes[:-1]),
                shapes[-1],
                closed(shapes[-1]),
                float(stored["top"]),
                Palette.loaded(stored["teeth"], stored["palette"]),
                stored["light"],
            )


def _in_window(bundle: Bundle, frames: Floats, pose: int) -> Floats:
    """Mouth space to pixels of the face window of `pose`."""
    frame = frames[pose].astype(np.float32, copy=True)
    frame[:, 2] -= bundle.boxes[pose, :2]
    return np.asarray(frame, np.float32)


def _apertures(landmarks: Floats) -> Floats:
    """How open the mesh sees the lips of each pose, in eye distances."""
    eyes = np.linalg.norm(landmarks[:, EYES[0]] - landmarks[:, EYES[1]], axis=1)
    return np.asarray(np.linalg.norm(landmarks[:, 13] - landmarks[:, 14], axis=1) / np.maximum(eyes, 1), np.float32)


def _exact(bundle: Bundle, landmarks: Floats, pose: int) -> tuple[Shape, Floats]:
    """The shape of one pose, its inner edges from the pixels, and the map from its own mouth space to its face window."""
    frame = eye_frame(landmarks[pose])
    mesh = mesh_shape(to_mouth(frame, landmarks[pose]))
    frame[:, 2] -= bundle.boxes[pose, :2]
    return refine(mesh, frame, np.asarray(bundle.faces[pose])), frame


def _teeth(bundle: Bundle, landmarks: Floats) -> Floats | None:
    """The colour of the avatar's teeth, from the frame with the widest open mouth."""
    usable = bundle.with_mouth()
    pose = int(usable[np.argmax(_apertures(landmarks[usable]))])
    shape, frame = _exact(bundle, landmarks, pose)
    return teeth_seen(np.asarray(bundle.faces[pose]), frame, shape)


def _reference(bundle: Bundle, landmarks: Floats) -> tuple[int, Shape]:
    """The frame with the most closed lips, by the mesh first and then by its pixels, and its exact shape."""
    usable = bundle.with_mouth()
    aperture = _apertures(landmarks)
    seen: list[tuple[float, int, Shape]] = []
    for pose in usable[np.argsort(aperture[usable], kind="stable")[:CANDIDATES]]:
        shape = _exact(bundle, landmarks, int(pose))[0]
        area = float((shape.curves[IL] - shape.curves[IU]).mean())
        if area == 0:
            return int(pose), shape
        seen.append((area, int(pose), shape))
    least = min(seen, key=lambda one: one[0])
    alike = [one for one in seen if abs(float(aperture[one[1]] - aperture[least[1]])) < ALIKE]
    _, pose, shape = sorted(alike, key=lambda one: one[0])[len(alike) // 2]
    return pose, shape


def _settled(meshes: list[Shape], shape: Shape, reference: int) -> tuple[Shape, ...]:
    """The poses' shapes, smoothed over time, with the mesh's error at the reference taken off all of them."""
    rows = np.array([np.concatenate([[m.centre, m.half], m.curves.ravel()]) for m in meshes], np.float32)
    if len(rows) > 2:
        rows = np.asarray(
            cv2.GaussianBlur(rows, (1, 0), sigmaX=1e-3, sigmaY=SETTLE, borderType=cv2.BORDER_REFLECT_101), np.float32
        )
    error = shape.curves - meshes[reference].curves
    error[CHIN] = 0
    return tuple(Shape(float(row[0]), float(row[1]), ordered(row[2:].reshape(LEVELS, SAMPLES) + error)) for row in rows)


def _light(bundle: Bundle, frames: Floats, reference: int) -> Floats:
    """Low-frequency differences of colour between each pose and the reference, the lips left out and filled from around."""
    u0, u1, v0, v1 = LIGHT_AREA
    fine = 4
    u, v = np.meshgrid(
        np.linspace(u0, u1, LIGHT_COLS * fine, dtype=np.float32),
        np.linspace(v0, v1, LIGHT_ROWS * fine, dtype=np.float32),
    )
    middle = float(to_mouth(frames[reference], bundle.landmarks[reference, 0])[1]) + 0.06
    outside = np.clip(np.hypot((u) / 0.4, (v - middle) / 0.24) * 4 - 4, 0.002, 1).astype(np.float32)[..., None]

    def low(pose: int) -> Floats:
        window = np.asarray(bundle.faces[pose])
        return sample(window, _in_window(bundle, frames, pose), u, v).astype(np.float32)

    base = low(reference)
    weight = cv2.GaussianBlur(outside, (0, 0), 2.0 * fine)[..., None]
    out = np.zeros((len(bundle), LIGHT_ROWS, LIGHT_COLS, 3), np.float32)
    for pose in range(len(bundle)):
        if pose != reference:
            blurred = cv2.GaussianBlur((low(pose) - base) * outside, (0, 0), 2.0 * fine) / weight
            out[pose] = cv2.resize(blurred, (LIGHT_COLS, LIGHT_ROWS), interpolation=cv2.INTER_AREA)
    return out
