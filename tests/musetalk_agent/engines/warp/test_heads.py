"""Heads that turn to 40° and nod to 25°: drawn faces, whose outline, lips and colours are known in every idle frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.face_track import head_angles, head_reach
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.engine import WarpEngine, WarpSession
from musetalk_agent.engines.warp.frame_target import ROOM, FrameTarget
from musetalk_agent.engines.warp.idle_shapes import APART, apertures
from musetalk_agent.engines.warp.light import LIGHT_MOST
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.warp import faces
from tests.musetalk_agent.engines.warp.test_engine import REST, front, vector

SIZE = (480, 480)
EYES = 120
POSES = 32
CYCLE = np.linspace(0, 2 * np.pi, POSES, endpoint=False)
MOTIONS = {
    "turns": (40 * np.sin(CYCLE), 0 * CYCLE),
    "nods": (0 * CYCLE, 25 * np.sin(CYCLE)),
    "both": (30 * np.sin(CYCLE), 18 * np.sin(2 * CYCLE + 0.5)),
}


def wide(points: faces.Points, half: float) -> faces.Points:
    """The mesh with its mouth `half` eye distances wide to each side."""
    out = points.copy()
    lips = sorted({*faces.INNER_LOWER, *faces.INNER_UPPER, *faces.OUTER_LOWER, *faces.OUTER_UPPER})
    middle, now = out[[61, 291], 0].mean(), float(out[291, 0] - out[61, 0]) / 2 / EYES
    out[lips, 0] = middle + (out[lips, 0] - middle) * half / now
    return out


@dataclass(frozen=True)
class Clip:
    points: list[faces.Points]
    pictures: list[Pixels]
    engine: WarpEngine
    session: WarpSession

    @classmethod
    def of(
        cls,
        folder: Path,
        motion: str,
        gaps: dict[int, float] | None = None,
        behind: tuple[int, ...] | None = None,
        halves: Sequence[float] = (0.29,) * POSES,
    ) -> Clip:
        mouths = [wide(front(), half) for half in halves] if gaps else [front()] * POSES
        base = [faces.opened(m, gap) if (gap := (gaps or {}).get(k, 0.0)) else m for k, m in enumerate(mouths)]
        points = [faces.turned(p, turn, nod) for p, turn, nod in zip(base, *MOTIONS[motion], strict=True)]
        pictures = [faces.drawn(p, SIZE, teeth=True) for p in points]
        if behind:
            for picture in pictures:
                picture[(picture == faces.BEHIND).all(2)] = behind
        return cls(points, pictures, *faces.opened_with(folder, pictures, points))

    def made(self, idle_index: int, feature: np.ndarray) -> Pixels:
        patch = self.engine.infer([PatchRequest(self.session, idle_index, feature)])[0]
        assert patch is not None
        return faces.composed(self.pictures[idle_index], patch)

    def chin(self, picture: Pixels, idle_index: int) -> int:
        """The row where the face ends under the tip of the chin."""
        x, y = self.points[idle_index][152]
        column = picture[round(float(y)) - EYES // 3 :, round(float(x))].astype(int)
        return int(np.argmax(np.abs(column - faces.BEHIND).max(1) < 30)) + round(float(y)) - EYES // 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clip]:
    """The clip of a motion, silent before the wall, made once."""
    return functools.cache(lambda motion: Clip.of(tmp_path_factory.mktemp("clip"), motion))


def around_the_lips(points: faces.Points) -> np.ndarray:
    """The lips and what is near them, bool `[h, w]`."""
    mask = np.zeros(SIZE, np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points[[*faces.OUTER_UPPER, *faces.OUTER_LOWER]]).astype(np.int32), 1)
    return cv2.dilate(mask, np.ones((33, 33), np.uint8)).astype(bool)


@pytest.mark.parametrize("motion", MOTIONS)
def test_at_rest_a_silent_head_keeps_its_chin_and_its_skin(clips: Callable[[str], Clip], motion: str) -> None:
    clip = clips(motion)
    for idle_index in range(POSES):
        made, own = clip.made(idle_index, REST), clip.pictures[idle_index]
        assert abs(clip.chin(made, idle_index) - clip.chin(own, idle_index)) <= 0.05 * EYES
        changed = np.abs(made.astype(int) - own).max(2) > 12
        beyond = changed & ~around_the_lips(clip.points[idle_index])
        assert beyond.sum() < 0.02 * EYES**2, (
            f"{beyond.sum()} pixels of skin or background differ in idle frame {idle_index}"
        )


@pytest.mark.parametrize("motion", MOTIONS)
def test_no_background_comes_onto_the_face_while_it_speaks(clips: Callable[[str], Clip], motion: str) -> None:
    clip = clips(motion)
    for idle_index in range(0, POSES, 2):
        face = np.zeros(SIZE, np.uint8)
        cv2.fillConvexPoly(face, cv2.convexHull(clip.points[idle_index]).astype(np.int32), 1)
        well_inside = cv2.erode(face, np.ones((25, 25), np.uint8)).astype(bool) & ~around_the_lips(
            clip.points[idle_index]
        )
        for feature in (vector(0.8, 0.1), vector(0.25, -0.4, 1)):
            unlike = np.abs(clip.made(idle_index, feature).astype(int) - faces.SKIN).max(2) > 12
            below = np.arange(SIZE[1])[:, None] > clip.points[idle_index][14, 1]
            assert (unlike & well_inside & ~below).sum() < 0.002 * EYES**2
            assert (unlike & well_inside).sum() < 0.02 * EYES**2


def test_a_turned_head_speaks(clips: Callable[[str], Clip]) -> None:
    clip = clips("turns")
    for idle_index in (0, 4, 8, 24):
        points = clip.points[idle_index]
        assert faces.inside_pixels(clip.made(idle_index, REST), points) <= 2
        assert faces.inside_pixels(clip.made(idle_index, vector(0.8)), points) >= 10


def test_the_chin_of_an_open_mouth_comes_up_in_every_pose(clips: Callable[[str], Clip], tmp_path: Path) -> None:
    gaps = {k: 0.12 for k in range(POSES) if k % 16 >= 8}
    clip, silent = Clip.of(tmp_path / "talks", "both", gaps), clips("both")
    for idle_index in (k for k in gaps if 9 < k % 16 < 14):  # the edges of an opening are smoothed over time
        closed = silent.chin(silent.pictures[idle_index], idle_index)
        assert clip.chin(clip.pictures[idle_index], idle_index) - closed > 0.05 * EYES
        assert abs(clip.chin(clip.made(idle_index, REST), idle_index) - closed) <= 0.05 * EYES


def test_lips_come_from_a_closed_mouth_in_a_head_that_is_turned_alike(tmp_path: Path) -> None:
    gaps = {k: 0.12 for k in range(POSES) if k % 2}
    clip = Clip.of(tmp_path, "turns", gaps)
    art = clip.session.artefacts
    assert len(art.references) >= 4
    angles, openness = head_angles(np.stack(clip.points)), apertures(np.stack(clip.points))
    assert all(k not in gaps and openness[k] < 0.02 for k in art.references)
    closed = [k for k in range(POSES) if k not in gaps]
    away = np.linalg.norm(angles[closed] - angles[art.references[art.shown[closed]]], axis=1)
    assert away.max() < 1.3 * APART
    assert (
        WarpArtefacts.load(clip.session.bundle.engine_path(clip.engine.fingerprint)).shown.tolist()
        == art.shown.tolist()
    )


def test_a_still_head_has_one_reference(tmp_path: Path) -> None:
    points = [front()] * 4
    _, session = faces.opened_with(tmp_path, [faces.drawn(front(), SIZE)] * 4, points)
    assert session.artefacts.references.tolist() == [0]


def test_a_face_whose_chin_is_cut_lends_no_lips(tmp_path: Path) -> None:
    whole, cut = front(0.03), front() + np.array([0, SIZE[1] - 4 - float(front()[152, 1])], np.float32)
    points = [cut, whole, cut]
    _, session = faces.opened_with(tmp_path, [faces.drawn(p, SIZE) for p in points], points)
    assert session.artefacts.references.tolist() == [1]


def test_what_lies_behind_the_head_changes_no_light(tmp_path: Path) -> None:
    dark, bright = (
        Clip.of(tmp_path / str(level), "turns", behind=(level, level, level)).session.artefacts for level in (0, 255)
    )
    assert np.abs(dark.light - bright.light).max() < 0.02
    assert max(bright.light.max(), 1 / bright.light.min()) <= LIGHT_MOST + 1e-4


def test_a_narrow_cheek_is_stretched_little(clips: Callable[[str], Clip]) -> None:
    clip = clips("turns")
    changes = []
    for idle_index in (0, 8):
        target = FrameTarget.of(
            clip.session.bundle, clip.session.artefacts, idle_index, Articulation(0.25, -0.4, 1, 0, 0), 1.0
        )
        changes.append(target.rest.half - target.mouth.half)
        assert changes[-1] <= ROOM * max(0.0, min(target.sides) - target.rest.half) + 1e-4
    assert changes[0] > 0 and changes[1] < 0.8 * changes[0]


def test_the_angles_of_a_head() -> None:
    level = head_angles(np.stack([front(angle=a) for a in (0.0, 0.4)]))
    assert np.abs(level[1] - level[0]).max() < 0.02
    for axis, angles in enumerate((MOTIONS["turns"][0], MOTIONS["nods"][1])):
        points = [faces.turned(front(), *((a, 0) if axis == 0 else (0, a))) for a in angles]
        seen = head_angles(np.stack(points))
        slope = np.polyfit(np.radians(angles), seen[:, axis], 1)[0]
        assert 0.6 < slope < 1.4
        half = float(np.ptp(seen[:, axis])) / 2  # the far ends of a path do not count: its outermost 2 %
        assert head_reach(np.stack(points))[axis] == pytest.approx(half, rel=0.1)


def test_closing_a_smile_leaves_the_chin(tmp_path: Path) -> None:
    """A wide mouth whose teeth show has no open jaw; a narrow one that is as far open has."""
    moved = {}
    for half in (0.37, 0.26):
        points = faces.opened(wide(front(), half), 0.10)
        picture = faces.drawn(points, SIZE, teeth=True)
        engine, session = faces.opened_with(tmp_path / str(half), [picture] * 2, [points] * 2)
        clip = Clip([points], [picture], engine, session)
        moved[half] = clip.chin(picture, 0) - clip.chin(clip.made(0, REST), 0)
    assert moved[0.37] <= 1
    assert moved[0.26] >= 3


def test_a_mouth_that_is_open_in_every_frame_is_closed_by_its_lips_more_than_by_its_chin(tmp_path: Path) -> None:
    points = faces.opened(wide(front(), 0.26), 0.25)
    picture = faces.drawn(points, SIZE)
    engine, session = faces.opened_with(tmp_path, [picture] * 2, [points] * 2)
    clip = Clip([points], [picture], engine, session)
    rest = clip.made(0, REST)
    assert 0.02 * EYES <= clip.chin(picture, 0) - clip.chin(rest, 0) <= 0.035 * EYES
    assert faces.inside_pixels(rest, points) <= 2


def test_a_smile_that_turns_keeps_its_chin(tmp_path: Path) -> None:
    """The mesh sees a mouth that is turned narrower than it is, and it is the same smile."""
    turns = np.abs(MOTIONS["turns"][0])
    halves = np.interp(turns, (15, 35), (0.36, 0.29)).tolist()
    clip = Clip.of(tmp_path, "turns", dict.fromkeys(range(POSES), 0.16), halves=halves)
    moved = [clip.chin(clip.made(k, REST), k) - clip.chin(clip.pictures[k], k) for k in range(POSES)]
    assert turns.max() == 40 and max(map(abs, moved)) <= 0.05 * EYES
