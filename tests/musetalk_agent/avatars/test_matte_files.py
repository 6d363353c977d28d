"""A matte in files: made of a bundle frame by frame, steady along time, exact where the clip brought alpha."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import framing, matte_files
from musetalk_agent.avatars.bundle import ArrayWriter, DamagedBundle
from musetalk_agent.avatars.matte_files import alpha_planes, load_matte, make_matte
from musetalk_agent.weights import Manifest

from . import people

SIDE, COUNT = 128, 8


class Trembling:
    """A network that is right on the average: each frame's edge is off by another pixel or two."""

    def __init__(self, share: list[np.ndarray]) -> None:
        self._share, self._off, self.calls = share, np.random.default_rng(3).integers(-2, 3, (COUNT, 2)), 0

    def person(self, bgr: np.ndarray, face: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        moved = np.roll(self._share[self.calls], self._off[self.calls], (0, 1)).astype(np.float32)
        self.calls += 1
        return np.asarray(cv2.resize(cv2.GaussianBlur(moved, (0, 0), 2.0), size), np.float32)


@dataclass
class Clip:
    """What of a bundle a matte is checked against."""

    path: Path
    width: int
    height: int
    count: int

    def __len__(self) -> int:
        return self.count


def bundle_of(tmp_path: Path, pictures: list[np.ndarray], alpha: list[np.ndarray] | None = None) -> Any:
    folder = tmp_path / "bundle"
    folder.mkdir()
    with closing(ArrayWriter(folder / "frames.npy")) as writer:
        for picture in pictures:
            writer.append(framing.to_i420(picture))
    if alpha is not None:
        with closing(ArrayWriter(folder / "alpha.npy")) as writer:
            for one in alpha:
                writer.append(one)
    middle = np.full((len(pictures), 468, 2), SIDE / 2, np.float32)
    middle[..., 1] = 0.42 * SIDE
    np.save(folder / "landmarks.npy", middle)
    return Clip(folder, SIDE, SIDE, len(pictures))


def made(tmp_path: Path, bundle: Any, net: Any = None, progress: list[tuple[int, int]] | None = None) -> Any:
    target = tmp_path / "matte"
    target.mkdir()
    steps = progress if progress is not None else []
    make_matte(bundle.path, target, lambda: net, lambda *step: steps.append(step))
    return load_matte(target, bundle)


def test_what_stands_still_has_an_edge_that_stands_still(tmp_path: Path) -> None:
    share = people.matte(SIDE)
    picture = people.mixed(people.person(SIDE), people.wall(SIDE), share)
    net, progress = Trembling([share] * COUNT), list[tuple[int, int]]()
    matte = made(tmp_path, bundle_of(tmp_path, [picture] * COUNT), net, progress)
    trembles = np.abs(np.diff(matte.alpha.astype(int), axis=0))
    other = Trembling([share] * COUNT)
    raw = [matte_files.matting.refined(other.person(picture, picture, (SIDE, SIDE)), picture) for _ in range(COUNT)]
    untreated = np.abs(np.diff(np.stack(raw).astype(int), axis=0))
    assert trembles.mean() < 0.45 * untreated.mean() and trembles.max() <= 110
    assert np.abs(matte.alpha / 255 - share).mean() < 0.015
    assert progress == [(k, COUNT) for k in range(1, COUNT + 1)] * 2
    assert sorted(path.name for path in (tmp_path / "matte").iterdir()) == ["alpha.npy", "blurred.npy", "person.npy"]


def test_a_person_who_moves_is_followed_at_once(tmp_path: Path) -> None:
    shares = [people.matte(SIDE, 4.0 * k) for k in range(COUNT)]
    pictures = [people.mixed(people.person(SIDE), people.wall(SIDE), share) for share in shares]
    still = SimpleNamespace(calls=0)

    def person(bgr: np.ndarray, face: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        still.calls += 1
        return np.asarray(cv2.resize(shares[still.calls - 1].astype(np.float32), size), np.float32)

    still.person = person
    matte = made(tmp_path, bundle_of(tmp_path, pictures), still)
    for k in range(COUNT):
        assert np.abs(matte.alpha[k] / 255 - shares[k]).mean() < 0.02, k


def test_the_persons_planes_and_any_background_make_the_picture(tmp_path: Path) -> None:
    """Against the mixture in floating point of the person's own colours, within two levels of luma."""
    share, back = people.matte(SIDE), people.texture(SIDE, 9, (40, 200, 40))
    white = people.mixed(people.person(SIDE), (255, 255, 255), share)
    alpha = np.rint(share * 255).astype(np.uint8)
    matte = made(tmp_path, bundle_of(tmp_path, [white, white], [alpha, alpha]))
    assert np.array_equal(matte.alpha[1], alpha)
    behind = framing.to_i420(np.clip(np.rint(back), 0, 255).astype(np.uint8)).reshape(-1).astype(float)
    rest = alpha_planes(255 - alpha) / 255
    whole = matte.person[1].reshape(-1) + behind * rest
    wanted = framing.to_i420(people.mixed(people.person(SIDE), np.clip(back, 0, 255), share)).reshape(-1)
    luma = SIDE * SIDE
    assert np.abs(whole - wanted)[:luma].max() <= 2.5
    assert np.abs(whole - wanted)[luma:].mean() < 0.6


def test_a_damaged_matte_is_reported(tmp_path: Path) -> None:
    share = people.matte(SIDE)
    white = people.mixed(people.person(SIDE), (255, 255, 255), share)
    bundle = bundle_of(tmp_path, [white], [np.rint(share * 255).astype(np.uint8)])
    made(tmp_path, bundle)
    person = tmp_path / "matte" / "person.npy"
    whole = person.read_bytes()
    person.write_bytes(whole[:-100])
    with pytest.raises(DamagedBundle):
        load_matte(tmp_path / "matte", bundle)
    person.unlink()
    with pytest.raises(DamagedBundle):
        load_matte(tmp_path / "matte", bundle)
    person.write_bytes(whole)
    bundle.width += 2
    with pytest.raises(DamagedBundle, match="wrong shape"):
        load_matte(tmp_path / "matte", bundle)


def test_the_fingerprint_is_the_networks() -> None:
    manifest = Manifest.load()
    entry = manifest.entries["face/selfie_segmentation.tflite"]
    other = Manifest({**manifest.entries, entry.name: entry.model_copy(update={"sha256": "0" * 64})})
    assert matte_files.fingerprint(manifest) == matte_files.fingerprint(manifest)
    assert matte_files.fingerprint(manifest) != matte_files.fingerprint(other)
