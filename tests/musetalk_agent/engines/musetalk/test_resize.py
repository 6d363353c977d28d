"""Images are resized by Pillow, as upstream resizes them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from musetalk_agent.engines.musetalk.face_region import Filter, resize

FILTERS: dict[Filter, Image.Resampling] = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("source", [512, 337, 40, 1])
def test_grey_and_coloured_pictures_resize_as_pillow_resizes_them(kind: Filter, source: int) -> None:
    rng = np.random.default_rng(source)
    noise = rng.integers(0, 256, (source, source, 3), np.uint8)
    hard = np.where(noise > 127, 255, 0).astype(np.uint8)  # edges make the cubic overshoot at both ends
    for picture in (noise, noise[..., 0], hard[..., 1]):
        for side in (1, 2, 90, 255, 460, 512, 513, 700):
            theirs = np.array(Image.fromarray(picture).resize((side, side), FILTERS[kind]))
            ours = resize(picture, side, kind)
            assert np.array_equal(ours, theirs), (picture.shape, side)


def test_a_picture_of_the_wanted_size_is_left_alone_and_one_that_is_not_square_refused() -> None:
    picture = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(resize(picture, 3, "bicubic"), picture)
    with pytest.raises(ValueError, match="2×3 is not square"):
        resize(picture[:, :2], 3, "bicubic")
