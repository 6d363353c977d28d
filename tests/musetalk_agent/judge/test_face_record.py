"""What is kept of a face: rows in order of time, means of what was summed, and one record a person."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.identity import Descriptor, PlainDescriber, cosine
from musetalk_agent.judge.face_record import TIME, FaceRecord, joined
from musetalk_agent.judge.film_scan import is_black

SAME = 0.8
ANNA, BERTA = np.array([1.0, 0.0, 0.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)


def record(shot: int, person: Descriptor, frames: int = 24, begin_s: float = 0.0) -> FaceRecord:
    """A closed record of a person that was seen for some frames, described twice a second."""
    made = FaceRecord(shot)
    for k in range(frames):
        made._rows.append((begin_s + k * 0.04, *[float(k)] * 12))
        made.gradients += 1.0
        made.mouth += (80.0, 100.0)
        if k % 12 == 0:
            made.descriptors.append(person)
    made.close()
    return made


def alike(likeness: float) -> Descriptor:
    """Someone who is so much like Anna."""
    return np.array([likeness, 0.0, np.sqrt(1 - likeness**2)], np.float32)


def test_sums_become_means_and_nothing_is_divided_by_no_frame() -> None:
    made = record(0, ANNA)
    assert made.frames == 24 and np.allclose(made.mean_gradients, 1) and made.mean_mouth.tolist() == [80, 100]
    empty = FaceRecord(0)
    assert empty.rows.shape == (0, 13) and not empty.mean_gradients.any() and empty.mean_mouth.tolist() == [0, 0]


def test_a_record_is_closed_once_and_takes_no_more() -> None:
    made = record(0, ANNA)
    before = made.gradients.copy()
    made.close()
    assert np.array_equal(made.gradients, before)
    with pytest.raises(AssertionError):
        made.push(np.zeros((8, 8, 3), np.uint8), np.zeros((468, 2), np.float32), 24, 1.0, PlainDescriber())


def test_a_person_of_several_shots_is_one_record_in_order_of_time() -> None:
    shots = [record(0, ANNA, begin_s=0), record(1, BERTA, begin_s=1), record(2, ANNA, begin_s=2)]
    anna, berta = joined(shots, SAME)
    assert (anna.shot, anna.frames, berta.shot, berta.frames) == (0, 48, 1, 24)
    assert len(anna.descriptors) == 4 and anna.mean_mouth.tolist() == [80, 100] and np.allclose(anna.mean_gradients, 1)
    assert np.array_equal(anna.rows[:, TIME], np.sort(anna.rows[:, TIME])) and anna.rows[-1, TIME] > 2


def test_rows_are_in_order_of_time_whatever_was_joined_first() -> None:
    late, early = record(1, ANNA, begin_s=10), record(0, ANNA, begin_s=0)
    late.join(early)
    assert late.rows[0, TIME] == 0 and late.rows[-1, TIME] == pytest.approx(10.92)


def test_two_faces_of_one_shot_are_two_persons_however_alike() -> None:
    assert len(joined([record(0, ANNA), record(0, ANNA)], SAME)) == 2
    twins = joined([record(0, ANNA), record(0, ANNA), record(1, ANNA), record(1, ANNA)], SAME)
    assert [one.frames for one in twins] == [48, 48], "each of the second shot joins another one of the first"


@pytest.mark.parametrize(("likeness", "persons"), [(0.79, 2), (0.81, 1)])
def test_persons_are_joined_from_a_likeness_on(likeness: float, persons: int) -> None:
    assert len(joined([record(0, ANNA), record(1, alike(likeness))], SAME)) == persons


def test_the_most_alike_is_joined() -> None:
    first, second = joined([record(0, alike(0.9)), record(0, ANNA), record(1, ANNA)], SAME)
    assert (first.frames, second.frames) == (24, 48)
    assert joined([], SAME) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2])), max_size=8))
def test_no_frame_is_lost_and_no_shot_is_twice_in_a_person(seen: list[tuple[int, int]]) -> None:
    people = [ANNA, BERTA, alike(0.9)]
    records = [record(shot, people[who], frames=13, begin_s=k) for k, (shot, who) in enumerate(sorted(seen))]
    persons = joined(records, SAME)
    assert sum(person.frames for person in persons) == 13 * len(seen)
    for person in persons:
        shots = [sorted(seen)[int(second)][0] for second in {int(row[TIME]) for row in person.rows}]
        assert len(shots) == len(set(shots))


@given(st.integers(1, 60))
def test_groups_are_stretches_of_time_in_order_of_which_each_has_two_descriptors_where_it_can(count: int) -> None:
    """Descriptors turn from Anna's to Berta's: the means do so too, and so differ the more the further apart they are."""
    made = FaceRecord(0)
    angles = np.linspace(0, np.pi / 2, count)
    made.descriptors = [np.array([np.cos(a), np.sin(a), 0], np.float32) for a in angles]
    groups = made.groups()
    assert len(groups) == min(8, max(1, count // 2))
    likeness = [cosine(groups[0], group) for group in groups]
    assert likeness == sorted(likeness, reverse=True)


@pytest.mark.parametrize(("level", "black"), [(0, True), (19, True), (21, False), (200, False)])
@pytest.mark.parametrize("size", [(64, 64), (720, 1280)])
def test_a_dark_frame_is_black_and_a_light_spot_makes_it_none(size: tuple[int, int], level: int, black: bool) -> None:
    frame = np.full((*size, 3), level, np.uint8)
    assert is_black(frame) == black
    frame[: size[0] // 5] = 235
    assert not is_black(frame)
    speck = np.zeros((*size, 3), np.uint8)
    speck[:2, :2] = 255
    assert is_black(speck), "a few bright pixels are noise"
