"""Profiles and buckets."""

from __future__ import annotations

import pytest

from musetalk_agent.engines.musetalk.profiles import (
    BUCKETS,
    LATENT_ROWS,
    PROFILES,
    SHOWN_FROM,
    bucket_of,
    profile_named,
)
from musetalk_agent.errors import EngineUnavailable


def test_every_profile_decodes_all_rows_that_are_shown() -> None:
    for profile in PROFILES.values():
        assert 8 * LATENT_ROWS - profile.rows <= SHOWN_FROM
        assert profile_named(profile.name) is profile


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(EngineUnavailable, match="quality, lower, fast"):
        profile_named("best")


def test_the_smallest_bucket_that_holds_a_batch() -> None:
    assert [bucket_of(n, (1, 2, 4)) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 4, 4]
    assert list(BUCKETS) == sorted(BUCKETS)
    waste = max((bucket_of(n, BUCKETS) - n) / n for n in range(1, BUCKETS[-1] + 1))
    assert waste <= 1 / 3
