"""From five numbers to a mouth: what each number does, in which direction, and that no value breaks the shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.engines.warp.articulation import (
    LINE,
    OPENING,
    TUCK_GAP,
    Articulation,
    bump,
    closed,
    driven,
    opened,
)
from musetalk_agent.engines.warp.field import Lattice
from musetalk_agent.engines.warp.mouth_space import CHIN, IL, IU, OL, OU, SAMPLES, MouthShape, S
from musetalk_agent.media_types import Box
from tests.musetalk_agent.engines.warp.test_fields import ACTS, FRAME, REST

SHARES = st.floats(0, 1)
MIDDLE = SAMPLES // 2


def act(jaw: float = 0, width: float = 0, rounding: float = 0, closure: float = 0, tuck: float = 0) -> Articulation:
    return Articulation(jaw, width, rounding, closure, tuck)


def gap(shape: MouthShape) -> float:
    return float((shape.curves[IL] - shape.curves[IU])[MIDDLE])


@given(st.lists(st.floats(-3, 3, width=32) | st.just(float("nan")), min_size=5, max_size=5))
def test_a_vector_is_clipped_to_its_ranges_and_what_is_no_number_is_rest(values: list[float]) -> None:
    made = Articulation.of(np.array(values, np.float32))
    for name, value in zip(("jaw", "width", "rounding", "closure", "tuck"), values, strict=True):
        least = -1.0 if name == "width" else 0.0
        wanted = 0.0 if value != value else min(max(value, least), 1.0)
        assert getattr(made, name) == pytest.approx(wanted)


@given(SHARES, SHARES)
def test_lips_part_more_the_lower_the_jaw_and_soonest_at_its_first_steps(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert act(0).parted == 0 and act(1).parted == pytest.approx(OPENING)
    assert act(low).parted <= act(high).parted
    middle = act((low + high) / 2).parted
    assert middle >= (act(low).parted + act(high).parted) / 2 - 1e-12, "never slower first and faster later"


@given(SHARES, SHARES, SHARES)
def test_pressed_lips_have_no_opening_and_a_tuck_always_shows_teeth(jaw: float, closure: float, tuck: float) -> None:
    assert act(jaw, closure=1, tuck=tuck).aperture == 0
    assert act(jaw, tuck=tuck).aperture == pytest.approx(max(act(jaw).parted, TUCK_GAP * tuck))
    assert act(jaw, closure=closure).aperture <= act(jaw).aperture


@given(SHARES, SHARES)
def test_the_chin_drops_less_than_the_lips_part_and_less_still_when_they_are_pressed(
    jaw: float, closure: float
) -> None:
    loose, pressed = act(jaw), act(jaw, closure=closure)
    assert 0 <= pressed.drop <= loose.drop <= loose.parted
    assert pressed.drop >= 0.29 * loose.drop, "a jaw that is open behind closed lips is seen"


@given(st.floats(0.3, 3), st.floats(0.2, 2))
def test_a_bump_is_even_and_falls_from_one_to_nothing(reach: float, power: float) -> None:
    made = bump(reach, power)
    assert made[MIDDLE] == 1 and not made[np.abs(S) >= reach].any()
    assert np.allclose(made, made[::-1], atol=1e-6)
    assert (np.diff(made[MIDDLE:]) <= 0).all()


@given(ACTS)
def test_closing_any_mouth_makes_its_lips_meet_and_raises_its_chin(made: Articulation) -> None:
    mouth = driven(REST, made)
    shut = closed(mouth)
    assert np.array_equal(shut.curves[IU], shut.curves[IL])
    assert (shut.curves[CHIN] <= mouth.curves[CHIN] + 1e-6).all()
    assert (np.diff(shut.curves, axis=0) >= -1e-6).all(), "upper lip, line, lower lip, chin: in this order"


@given(ACTS)
def test_no_vector_turns_a_mouth_inside_out(made: Articulation) -> None:
    mouth = driven(REST, made)
    assert np.isfinite(mouth.curves).all() and mouth.half > 0.5 * REST.half
    assert (np.diff(mouth.curves, axis=0) >= -1e-6).all()
    assert mouth.centre == REST.centre


def test_rest_is_rest() -> None:
    mouth = driven(REST, act())
    assert mouth.half == REST.half and np.allclose(mouth.curves, REST.curves, atol=1e-6)


@given(SHARES, SHARES)
def test_an_open_mouth_is_as_wide_open_as_was_asked(jaw: float, closure: float) -> None:
    made = act(jaw, closure=closure)
    assert gap(driven(REST, made)) == pytest.approx(made.aperture, abs=0.002)


@given(SHARES, SHARES)
def test_each_number_moves_its_own_part(jaw: float, amount: float) -> None:
    plain = driven(REST, act(jaw))
    assert driven(REST, act(jaw, width=amount)).half >= plain.half >= driven(REST, act(jaw, width=-amount)).half
    assert driven(REST, act(jaw, rounding=amount)).half <= plain.half, "a pucker is narrower"
    thick, thin = driven(REST, act(rounding=amount)), driven(REST, act(closure=amount))
    for outer, inner in ((OU, IU), (IL, OL)):
        full, rest, pressed = (float((m.curves[inner] - m.curves[outer])[MIDDLE]) for m in (thick, REST, thin))
        assert full >= rest - 1e-6 >= pressed - 2e-6, "puckered lips are fuller, pressed ones thinner"


@given(ACTS, st.floats(0, 0.2))
def test_a_reference_is_cut_along_its_line_and_only_where_its_lips_meet(made: Articulation, wanted: float) -> None:
    mouth = closed(driven(REST, made))
    cut = opened(mouth, wanted)
    between = cut.curves[IL] - cut.curves[IU]
    assert between.max() <= LINE + 1e-6 and (between >= -1e-6).all()
    assert gap(cut) == pytest.approx(LINE * min(wanted / 0.03, 1), abs=1e-6)
    apart = driven(REST, act(jaw=1))
    assert np.array_equal(opened(apart, wanted).curves[:, MIDDLE], apart.curves[:, MIDDLE])


@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 9), st.data())
def test_the_block_that_moves_holds_every_node_that_moves(
    width: int, height: int, cell: int, data: st.DataObject
) -> None:
    box = Box(20, 60, 20 + 2 * width, 60 + 2 * height)
    lattice = Lattice.over(box, FRAME, cell)
    shift = np.zeros((2, lattice.rows, lattice.cols), np.float32)
    assert lattice.moved(shift) is None
    row, col = data.draw(st.integers(1, lattice.rows - 2)), data.draw(st.integers(1, lattice.cols - 2))
    shift[data.draw(st.integers(0, 1)), row, col] = data.draw(st.sampled_from([-3.0, 0.5]))
    part = lattice.moved(shift)
    assert part is not None
    assert box.x0 <= part.x0 < part.x1 <= box.x1 and box.y0 <= part.y0 < part.y1 <= box.y1
    for plane in shift:
        moves = lattice.enlarge([plane], box)[0] != 0
        moves[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0] = False
        assert not moves.any()
        assert lattice.enlarge([plane], part)[0].shape == (part.height, part.width)
    assert lattice.moved(np.ones_like(shift)) == box


@given(ACTS)
def test_an_even_mouth_stays_even(made: Articulation) -> None:
    for mouth in (driven(REST, made), closed(driven(REST, made)), opened(driven(REST, made), 0.1)):
        assert np.allclose(mouth.curves, mouth.curves[:, ::-1], atol=2e-5)


@pytest.mark.parametrize("jaw", [0.2, 0.5, 0.8])
def test_cheeks_and_corners_follow_the_chin_and_the_outline_does_not(jaw: float) -> None:
    moved = driven(REST, act(jaw)).curves[:4] - REST.curves[:4]
    corner, outline = int(np.argmin(np.abs(S - 1))), int(np.argmax(S))
    assert (moved[:, corner] > 0).all() and np.allclose(moved[:, outline], 0, atol=1e-6)
