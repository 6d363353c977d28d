"""A painted person whose matte is known: a head and shoulders with soft edges and a texture, on a background of another texture."""

from __future__ import annotations

import cv2
import numpy as np


def matte(side: int, aside: float = 0.0) -> np.ndarray:
    """The person's share, float64 `[side, side]`, its edges two pixels wide."""
    fine = np.zeros((4 * side, 4 * side), np.uint8)
    at = round((side / 2 + aside) * 4)
    cv2.ellipse(fine, (at, round(1.7 * side)), (round(0.8 * side), round(1.05 * side)), 0, 0, 360, 255, -1)
    cv2.ellipse(fine, (at, 4 * side), (round(1.6 * side), round(1.5 * side)), 0, 0, 360, 255, -1)
    soft = cv2.GaussianBlur(fine, (0, 0), 4.0)
    return np.asarray(cv2.resize(soft, (side, side), interpolation=cv2.INTER_AREA), np.float64) / 255


def texture(side: int, seed: int, colour: tuple[int, int, int], amount: float = 12.0) -> np.ndarray:
    """Slow noise around a colour (BGR), float64 `[side, side, 3]`."""
    noise = np.random.default_rng(seed).normal(0, 1, (side // 8, side // 8, 3))
    return np.asarray(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)) * amount + np.array(colour)


def person(side: int) -> np.ndarray:
    """The person's colours, float64 BGR."""
    return texture(side, 1, (70, 90, 180))


def wall(side: int) -> np.ndarray:
    """What is behind, float64 BGR."""
    return texture(side, 2, (190, 160, 60))


def mixed(front: np.ndarray, back: np.ndarray | tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    """The picture, uint8 BGR."""
    whole = front * share[..., None] + np.asarray(back, np.float64) * (1 - share[..., None])
    return np.asarray(np.clip(np.rint(whole), 0, 255), np.uint8)
