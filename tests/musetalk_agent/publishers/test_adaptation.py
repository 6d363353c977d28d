"""Quality goes down in steps while it is bad and comes back while it is good, and does not swing."""

from __future__ import annotations

import itertools

import pytest

from musetalk_agent.publishers.failover.quality import STEPS, Adaptation, Health, judge_room, judge_stream
from musetalk_agent.publishers.livekit.stats import TransportStats

WANTED, FPS = 1_500_000, 25


def steps(healths: list[tuple[float, Health]], every_s: float = 0.5) -> list[tuple[float, int]]:
    """When the step became what, under healths that last so many seconds each."""
    made, now, found = Adaptation(0.0), 0.0, []
    for seconds, health in healths:
        for _ in range(round(seconds / every_s)):
            now += every_s
            if made.note(health, now):
                found.append((now, made.step))
    return found


def test_bitrate_first_then_size_then_pictures_and_back() -> None:
    assert [(q.bitrate, q.scale, q.fps_divisor) for q in STEPS] == [
        (1.0, 1.0, 1), (0.6, 1.0, 1), (0.35, 1.0, 1), (0.35, 0.75, 1), (0.35, 0.5, 1), (0.35, 0.5, 2),
    ]  # fmt: skip
    assert [one.share > other.share for one, other in itertools.pairwise(STEPS)] == [True] * 5
    found = steps([(15, Health.BAD), (60, Health.GOOD)])
    downs, ups = found[:5], found[5:]
    assert [step for _, step in downs] == [1, 2, 3, 4, 5]
    assert [other - one for (one, _), (other, _) in itertools.pairwise(downs)] == [2.0] * 4
    assert [step for _, step in ups] == [4, 3, 2, 1, 0]
    assert [other - one for (one, _), (other, _) in itertools.pairwise(ups)] == [8.0] * 4


def test_a_moment_of_either_changes_nothing() -> None:
    assert steps([(1, Health.BAD), (1, Health.GOOD)] * 10) == []
    assert steps([(60, Health.FAIR)]) == []
    found = steps([(2.5, Health.BAD), *[(6, Health.GOOD), (0.5, Health.FAIR)] * 5])
    assert [step for _, step in found] == [1]


def test_a_step_up_that_was_too_much_is_tried_again_half_as_often() -> None:
    made, now, ups = Adaptation(0.0), 0.0, []
    for _ in range(1_200):  # ten minutes in which step 1 fits and step 0 does not
        now += 0.5
        if made.note(Health.GOOD if made.step else Health.BAD, now) and made.step == 0:
            ups.append(now)
    gaps = [round(other - one) for one, other in itertools.pairwise(ups)]
    assert len(ups) < 40 and gaps == sorted(gaps)


@pytest.mark.parametrize(
    ("available", "limited", "lost", "encode_ms", "step", "health"),
    [
        (2e6, False, 0.0, 5, 0, Health.GOOD),
        (0.6e6, True, 0.0, 5, 0, Health.BAD),
        (0.6e6, False, 0.0, 5, 0, Health.FAIR),  # little is known to fit, and little is wanted: an idle picture
        (1.0e6, True, 0.05, 5, 0, Health.FAIR),
        (2e6, False, 0.05, 5, 0, Health.GOOD),  # five of a hundred packets are repaired by retransmission
        (2e6, False, 0.2, 5, 0, Health.BAD),
        (2e6, False, 0.0, 36, 0, Health.BAD),
        (2e6, False, 0.0, 36, 5, Health.GOOD),  # of half as many pictures each may take twice as long
        (0.3e6, True, 0.0, 5, 1, Health.BAD),
        (0.7e6, True, 0.0, 5, 2, Health.FAIR),
        (0.8e6, True, 0.0, 5, 2, Health.GOOD),  # step 1 would fit
    ],
)
def test_the_room_is_judged_by_what_fits_what_is_lost_and_what_encoding_takes(
    available: float, limited: bool, lost: float, encode_ms: float, step: int, health: Health
) -> None:
    before = TransportStats(frames_encoded=100, encode_s=1.0)
    after = TransportStats(
        frames_encoded=125,
        encode_s=1.0 + 25 * encode_ms / 1000,
        available_bitrate=available,
        limited=limited,
        fraction_lost=lost,
    )
    assert judge_room(before, after, WANTED, FPS, step) is health


def test_a_stream_is_judged_by_what_waits() -> None:
    assert judge_stream(0.05, 0) is Health.GOOD
    assert judge_stream(0.3, 0) is Health.FAIR
    assert judge_stream(0.45, 0) is judge_stream(0.0, 1) is Health.BAD
