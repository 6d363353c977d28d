"""The inside of a mouth in a head that turns, nods or is lit from one side; and the light that lips are laid in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import NARROW, Movements, closed, jaw_share, on_cheeks
from musetalk_agent.engines.warp.inside_pose import ARCH, ARCH_NODS, BEHIND, FACING, InsidePose
from musetalk_agent.engines.warp.interior import SIDE
from musetalk_agent.engines.warp.mouth_space import CHIN, S, eye_frame, mesh_shape, to_mouth
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.warp import faces
from tests.musetalk_agent.engines.warp.test_engine import front
from tests.musetalk_agent.engines.warp.test_heads import EYES, POSES, SIZE, Clip

LEVEL = np.zeros((1, 1), np.float32)


def at(u: float) -> np.ndarray:
    return np.full((1, 1), u, np.float32)


@given(st.floats(-0.2, 0.2), st.floats(-1, 1), st.floats(-0.15, 0.15))
def test_teeth_are_where_an_arch_behind_the_lips_is_seen(tooth: float, turn: float, middle: float) -> None:
    """A tooth at `x` lies `BEHIND + ARCH x²` deeper than the lips, and is seen that much times the tangent to the side."""
    if 1 - 2 * ARCH * turn * tooth < 0.02:
        return  # it hides behind the tooth beside it
    pose = InsidePose(middle, turn, 0.0)
    seen = tooth - (BEHIND + ARCH * tooth**2) * turn + middle
    across, down = pose.on_teeth(at(seen), LEVEL)
    tiny = 0.02 if abs(turn) <= 0.02 else 2e-3
    assert float(across[0, 0]) == pytest.approx(tooth, abs=tiny) and down is LEVEL


@given(st.floats(0.3, 1.0), st.sampled_from([-1, 1]))
def test_behind_the_last_tooth_that_is_seen_there_are_none(turn: float, side: int) -> None:
    fold = 1 / (4 * ARCH * turn) - BEHIND * turn
    across, _ = InsidePose(0.0, side * turn, 0.0).on_teeth(at(side * (fold + 0.12)), LEVEL)
    assert abs(float(across[0, 0])) > SIDE


@given(st.floats(-0.2, 0.2), st.floats(0.05, 0.36))
def test_teeth_go_up_behind_the_lip_of_a_head_that_looks_down(tooth: float, nod: float) -> None:
    across, down = InsidePose(0.0, 0.0, nod).on_teeth(at(tooth), at(0.03))
    assert float(across[0, 0]) == np.float32(tooth)
    assert float(down[0, 0]) == pytest.approx(0.03 + (BEHIND + ARCH_NODS * tooth**2) * nod, abs=1e-5)


def test_a_face_from_the_front_is_drawn_as_ever() -> None:
    u, v = at(0.1), at(0.02)
    across, down = FACING.on_teeth(u, v)
    assert across is u and down is v and FACING.on_tongue(u) is u
    colours = np.full((3, 1, 1), 200, np.float32)
    assert np.array_equal(FACING.lit(colours.copy(), u), colours)


def test_light_falls_into_the_mouth_from_its_side() -> None:
    u = np.array([[-0.2, 0.0, 0.2]], np.float32)
    lit = InsidePose(0, 0, 0, 1.0, 0.8, 1.2, slope=-1.0).lit(np.full((3, 1, 3), 100, np.float32), u)
    assert np.allclose(lit[:, 0], [[120, 100, 80], [96, 80, 64], [144, 120, 96]])


def test_the_poses_of_a_clip_are_its_head_s(tmp_path: Path) -> None:
    """To the right the tangents are positive, and the lips' middle, which is nearer than the corners, lies right of theirs."""
    poses = Clip.of(tmp_path, "turns").session.artefacts.poses
    for idle_index in (6, 8, 10):
        pose, mirrored = poses[idle_index], poses[(idle_index + POSES // 2) % POSES]
        assert 0.4 < pose.turn < 1.0 and pose.middle > 0.01
        assert mirrored.turn == pytest.approx(-pose.turn, abs=0.05) and mirrored.middle < -0.01
    assert max(abs(one.nod) for one in poses) < 0.05
    assert poses[POSES // 2].turn == poses[POSES // 2].middle == 0


def test_poses_are_kept(tmp_path: Path) -> None:
    clip = Clip.of(tmp_path, "both")
    kept = WarpArtefacts.load(clip.session.bundle.engine_path(clip.engine.fingerprint))
    assert kept.poses == clip.session.artefacts.poses


def lit_from(picture: Pixels, points: faces.Points, slope: float) -> Pixels:
    """The picture with light that grows by `slope` to the right, per eye distance."""
    across = (np.arange(SIZE[0]) - float(points[[13, 14], 0].mean())) / EYES
    return np.asarray(np.clip(picture * np.exp(slope * across)[None, :, None], 0, 255), np.uint8)


@pytest.mark.parametrize("slope", [-0.9, 0.9])
def test_light_from_the_side_is_measured(tmp_path: Path, slope: float) -> None:
    points = front()
    dim = np.asarray(faces.drawn(points, SIZE) * 0.55, np.uint8)
    _, session = faces.opened_with(tmp_path, [lit_from(dim, points, slope)] * 3, [points] * 3)
    for pose in session.artefacts.poses:
        assert pose.slope == pytest.approx(slope, rel=0.25)
        assert (pose.blue, pose.green, pose.red) == pytest.approx((1, 1, 1), abs=0.02)


def test_a_head_in_less_light_has_a_darker_inside_and_lips(tmp_path: Path) -> None:
    points = front()
    picture = faces.drawn(points, SIZE)
    dim = np.asarray(picture * 0.75, np.uint8)
    _, session = faces.opened_with(tmp_path, [picture] * 2 + [dim] * 8, [points] * 10)
    art = session.artefacts
    other = 9 if art.reference < 2 else 0
    factor = 0.75 if other == 9 else 1 / 0.75
    assert art.poses[other].green == pytest.approx(factor, abs=0.04)
    assert np.abs(art.light[other] - factor).max() < 0.05


def test_the_hair_of_a_beard_is_no_light(tmp_path: Path) -> None:
    """Hair lies otherwise in every frame; lips that were lit by the difference would flicker."""
    points, pictures = front(), []
    for seed in range(4):
        picture = faces.drawn(points, SIZE)
        rows, cols = np.mgrid[: SIZE[1], : SIZE[0]]
        beard = (rows > points[2, 1] + 4) & (np.abs(cols - points[13, 0]) < 0.55 * EYES)
        lips = np.abs(rows - points[13, 1]) < 0.12 * EYES
        hair = np.random.default_rng(seed).random(beard.shape) < 0.5
        picture[beard & ~lips & hair] = (20, 25, 35)
        pictures.append(picture)
    _, session = faces.opened_with(tmp_path, pictures, [points] * 4)
    assert np.abs(session.artefacts.light - 1).max() < 0.08


def test_a_narrow_cheek_stays_at_the_outline_and_a_wide_one_moves_as_ever() -> None:
    points = front()
    rest = closed(mesh_shape(to_mouth(eye_frame(points), points)))
    wide, narrow = np.float32([NARROW, NARROW]), np.float32([0.36, 0.7])
    away = rest.places - rest.centre
    for share in (on_cheeks, jaw_share):
        assert np.array_equal(share(rest, wide), np.ones_like(S))
    assert not on_cheeks(rest, narrow)[away <= -0.36].any() and on_cheeks(rest, narrow)[away > 0].all()
    ever, held = Movements.of(rest), Movements.of(rest, narrow)
    cheeks = [moves.moves.reshape(5, 5, -1)[0, 0] for moves in (ever, held)]
    jaws = [moves.moves.reshape(5, 5, -1)[4, CHIN] for moves in (ever, held)]
    assert np.array_equal(cheeks[0][S > 0], cheeks[1][S > 0]) and np.array_equal(jaws[0][S > 0], jaws[1][S > 0])
    assert not cheeks[1][away <= -0.36].any() and cheeks[0][away <= -0.36].any()
    assert (jaws[1][S < -1.5] < 0.8 * jaws[0][S < -1.5] + 1e-6).all()
