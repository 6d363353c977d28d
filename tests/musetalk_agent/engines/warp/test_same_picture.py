"""A cheaper patch is the same picture: against the engine of the commit before it was made cheaper, where the repository has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

import musetalk_agent.engines.warp.engine as today
from tests.bench.patch_cost import BASELINE, EXTREMES, ROOT, Side, differences, older
from tests.musetalk_agent.engines.warp import faces

WITHIN = 1
"""Levels of 255 at the 99th percentile."""


def has_baseline() -> bool:
    known = subprocess.run(["git", "cat-file", "-e", f"{BASELINE}^{{commit}}"], cwd=ROOT, capture_output=True)
    return known.returncode == 0


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.1])
def test_patches_are_those_of_the_baseline_within_a_level(tmp_path: Path, scale: float) -> None:
    if not has_baseline():
        pytest.skip(f"a shallow clone lacks commit {BASELINE}")
    picture = np.asarray(
        cv2.resize(faces.demo_picture(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
    )
    points = [faces.demo_points() * np.float32(scale) + np.float32(k) for k in range(3)]
    pictures = [
        np.roll(picture, (k, k), (0, 1)) for k in range(3)
    ]  # in one light: how that is followed has changed since
    bundle = faces.bundle_of(tmp_path, pictures, points)
    made = [np.array(one, np.float32) for one in EXTREMES]
    between = [0.3 * one + 0.1 for one in made]
    with older(BASELINE) as then:
        old, new = Side(then, faces.NoFeatures(), bundle), Side(today, faces.NoFeatures(), bundle)
        levels, elsewhere = differences(old, new, [(one, weight) for one in (*made, *between) for weight in (1.0, 0.4)])
    assert elsewhere == 0
    assert levels[: WITHIN + 1].sum() >= 0.99 * levels.sum() > 0
