"""How far a mesh is trusted: made tracks whose faults are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.face_track import FaceTrack
from musetalk_agent.avatars.quality_report import make_report
from musetalk_agent.avatars.trust import APART, BELIEF, JAW, LEAST, TREMBLE, UNSURE, trust_of
from musetalk_agent.engines.interface import PatchRequest
from tests.musetalk_agent.engines.warp import faces

FRAMES, AT = 60, 30
WIDTH = 200.0


def mesh(frames: int = FRAMES) -> np.ndarray:
    points = faces.demo_points()
    return np.repeat((points * WIDTH / float(np.ptp(points[:, 0])))[None], frames, 0).astype(np.float32)


def trust(
    scores: dict[int, float] | None = None,
    turns: dict[int, float] | None = None,
    apart: dict[int, float] | None = None,
    raw: np.ndarray | None = None,
) -> np.ndarray:
    belief, angles = np.full(FRAMES, 45, np.float32), np.zeros(FRAMES, np.float32)
    for values, given_ones in ((belief, scores), (angles, turns)):
        for frame, value in (given_ones or {}).items():
            values[frame] = value
    return trust_of(belief, mesh() if raw is None else raw, angles, apart or {})


def trembling(by: float) -> np.ndarray:
    """A mesh whose jaw is `by` widths of the face off in one frame."""
    raw = mesh()
    raw[AT, list(JAW), 0] += by * WIDTH
    return raw


def test_a_face_that_is_seen_well_moves_all_of_its_way() -> None:
    assert np.array_equal(trust(), np.ones(FRAMES))
    unseen = dict.fromkeys(range(10, 20), float("nan"))
    assert np.array_equal(trust(unseen), np.ones(FRAMES)), "where no face is seen no mouth is drawn"
    glides = mesh() + (np.arange(FRAMES) * 5).astype(np.float32)[:, None, None]
    assert np.array_equal(trust(raw=glides), np.ones(FRAMES)), "a head that glides does not tremble"


@pytest.mark.parametrize(
    "made",
    [
        lambda: trust(dict.fromkeys(range(AT - 3, AT + 4), BELIEF[0])),
        lambda: trust(turns=dict.fromkeys(range(AT - 3, AT + 4), -1.2)),
        lambda: trust(apart={AT: APART[1]}),
        lambda: trust(raw=trembling(2 * TREMBLE[1])),
    ],
    ids=["belief", "turn", "detector", "tremble"],
)
def test_an_unsure_mesh_moves_its_mouth_less_and_no_frame_jumps(made) -> None:
    found = made()
    assert found[AT] == found.min() < UNSURE and found.min() >= LEAST
    assert found[0] == found[-1] == 1
    assert np.abs(np.diff(found)).max() < 0.08, "a mouth must not pump"


@given(st.lists(st.floats(0, 60), min_size=1, max_size=40), st.floats(-1.5, 1.5))
def test_trust_is_a_share_whatever_is_seen(scores: list[float], turn: float) -> None:
    count = len(scores)
    found = trust_of(np.array(scores, np.float32), mesh(count), np.full(count, turn, np.float32), {0: 0.5})
    assert found.shape == (count,) and found.dtype == np.float32
    assert (found >= LEAST).all() and (found <= 1).all()


def test_an_unsure_clip_is_reported() -> None:
    track = FaceTrack(mesh(), [], 0.0, trust=trust(dict.fromkeys(range(20, 30), 5.0)))
    found = {w.code: w.message for w in make_report("a", track, (640, 640), (640, 640), 25, False).warnings}
    assert "of 60 frames" in found["face_unsure"]
    for fine in (replace(track, trust=None), replace(track, trust=trust()), replace(track, covered=list(range(60)))):
        codes = [w.code for w in make_report("a", fine, (640, 640), (640, 640), 25, False).warnings]
        assert "face_unsure" not in codes


def test_warp_moves_jaw_width_and_rounding_by_the_trust_and_closes_as_ever(tmp_path: Path) -> None:
    points = faces.placed(faces.demo_points(), (160, 190), 90)
    picture = faces.drawn(points, (320, 320))
    engine, session = faces.opened_with(tmp_path, [picture] * 2, [points] * 2)
    session.bundle = replace(session.bundle, trust=np.array([1, 0.5], np.float32))

    def patch(idle_index: int, *feature: float) -> np.ndarray:
        made = engine.infer([PatchRequest(session, idle_index, np.array(feature, np.float32))])[0]
        assert made is not None
        return made.pixels

    assert np.array_equal(patch(1, 0.8, 0.4, 0.2, 0.3, 0.6), patch(0, 0.4, 0.2, 0.1, 0.3, 0.6))
