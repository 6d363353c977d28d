"""Mattes of a person whose matte is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import matting

from . import people

SIDE = 256


def coarse(share: np.ndarray, aside: int = 0) -> np.ndarray:
    """What a network would say: in small, blurred, and some pixels off."""
    blurred = cv2.GaussianBlur(np.roll(share, aside, 1).astype(np.float32), (0, 0), 4.0)
    return np.asarray(cv2.resize(blurred, (80, 80), interpolation=cv2.INTER_AREA), np.float32)


@pytest.mark.parametrize(("aside", "left"), [(0, 0.4), (3, 0.75), (-3, 0.75)])
def test_the_edge_is_the_pictures_and_not_the_networks(aside: int, left: float) -> None:
    share = people.matte(SIDE)
    picture = people.mixed(people.person(SIDE), people.wall(SIDE), share)
    rough = coarse(share, aside)
    made = matting.refined(rough, picture) / 255
    given = cv2.resize(rough, (SIDE, SIDE))
    edge = (share > 0.02) & (share < 0.98) | (np.abs(given - share) > 0.1)
    assert np.abs(made - share)[edge].mean() < left * np.abs(given - share)[edge].mean()
    assert np.abs(made - share).mean() < 0.02
    assert (made[share == 0] == 0).mean() > 0.94 and (made[share == 1] == 1).mean() > 0.91


def test_the_colours_at_the_edge_are_the_persons_own() -> None:
    share, front = people.matte(SIDE), people.person(SIDE)
    picture = people.mixed(front, people.wall(SIDE), share)
    made = matting.person_colours(picture, np.rint(share * 255).astype(np.uint8))
    edge = (share > 0.1) & (share < 0.9)
    assert np.abs(picture[edge] - front[edge]).mean() > 40, "the wall shines through"
    assert np.abs(made[edge] - front[edge]).mean() < 9
    assert np.array_equal(made[share == 1], picture[share == 1])
    whole = np.full((SIDE, SIDE), 255, np.uint8)
    assert np.array_equal(matting.person_colours(picture, whole), picture)


def test_others_in_the_picture_are_background() -> None:
    seen = np.zeros((100, 160), np.float32)
    seen[20:90, 20:70] = 1
    seen[30:90, 100:150] = 0.9
    own = matting.own_share(seen, (45, 50))
    assert own[50, 45] == 1 and own[60, 120] == 0
    assert matting.own_share(seen, (120, 60))[50, 45] == 0
    assert np.array_equal(matting.own_share(seen, (85, 5)) > 0, seen > 0), "a face that it does not see leaves all"
    assert matting.own_share(seen * np.float32(0.15), (45, 50)).max() == 0, "doubt is no person"


def test_the_blurred_background_has_nothing_of_the_person_in_it() -> None:
    share = people.matte(SIDE)
    front, back = np.full((SIDE, SIDE, 3), (0.0, 0.0, 255.0)), np.full((SIDE, SIDE, 3), (200.0, 120.0, 20.0))
    picture = people.mixed(front, back, share)
    made = matting.blurred(picture, np.rint(share * 255).astype(np.uint8), (32, 32), 1.0)
    small = cv2.resize(share, (32, 32), interpolation=cv2.INTER_AREA)
    near = (small < 0.6) & (cv2.dilate(small, np.ones((3, 3))) > 0.5)
    assert near.sum() > 20 and np.abs(made[near].astype(int) - (200, 120, 20)).max() <= 6
