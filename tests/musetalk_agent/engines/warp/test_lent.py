"""Lower faces are enlarged once, and what is fetched from them is what would have been fetched from the frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_agent.arrays import DamagedArrays
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp import enlarged
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.enlarged import FILE, FINER_X, FINER_Y, EnlargedMouth
from musetalk_agent.engines.warp.mouth_space import CHIN, NECK, REACH, SAMPLES
from musetalk_agent.media_types import Box, Pixels
from tests.musetalk_agent.engines.warp import faces

OPEN = np.array([1, 0.2, 0.1, 0, 0], np.float32)


def demo_of_size(scale: float) -> tuple[Pixels, Box, Box]:
    """The demo picture, the window of it that is known, and a part of that around the mouth."""
    picture = faces.demo_picture()
    picture = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    x, y = (int(at * scale) for at in faces.demo_points()[[13, 14]].mean(0))
    far, near = int(110 * scale), int(80 * scale)
    return picture, Box(x - far, y - far, x + far, y + far), Box(x - near, y - near, x + near, y + near)


@pytest.mark.parametrize("scale", [1.0, 0.8, 0.5])
def test_linear_samples_of_what_is_enlarged_are_bicubic_ones_of_the_frame(scale: float) -> None:
    """Within a level but for one value of 200; the shifts are those of a mouth that moves, mostly up and down."""
    picture, window, part = demo_of_size(scale)
    mouth = EnlargedMouth.of(picture[window.y0 : window.y1, window.x0 : window.x1], window, part)
    x, y = np.meshgrid(np.arange(part.x0 + 8, part.x1 - 8.0), np.arange(part.y0 + 12, part.y1 - 12.0))
    x, y = x + 2 * np.sin(y / 9), y + 5 * np.sin(x / 13)
    exact = cv2.remap(picture.astype(np.float32), x.astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC)
    to_x, to_y = x * FINER_X + mouth.offset[0], y * FINER_Y + mouth.offset[1]
    made = cv2.remap(mouth.pixels, to_x.astype(np.float32), to_y.astype(np.float32), cv2.INTER_LINEAR)
    away = np.abs(made[..., :3] - np.clip(np.rint(exact), 0, 255))
    assert np.percentile(away, 99.5) <= 1 and away.max() <= 8


def test_the_frames_own_pixels_are_among_those_of_the_enlarged_one() -> None:
    picture, window, part = demo_of_size(1.0)
    mouth = EnlargedMouth.of(picture[window.y0 : window.y1, window.x0 : window.x1], window, part)
    assert mouth.pixels.shape == (FINER_Y * part.height, FINER_X * part.width, 4)
    own = mouth.pixels[::FINER_Y, ::FINER_X, :3]
    assert np.array_equal(own, picture[part.y0 : part.y1, part.x0 : part.x1])


@pytest.mark.parametrize("angle", [-0.5, 0.0, 0.3])
@pytest.mark.parametrize("x", [60, 240, 420], ids=["at the left", "in the middle", "at the right"])
def test_what_is_enlarged_holds_the_widest_open_mouths_patch_and_lies_in_the_window(
    tmp_path: Path, angle: float, x: int
) -> None:
    points = [faces.placed(faces.demo_points(), (x, 280 + 20 * k), 120 + 10 * k, angle) for k in range(3)]
    engine, session = faces.opened_with(tmp_path, [faces.drawn(one, (480, 480)) for one in points], points)
    art, bundle = session.artefacts, session.bundle
    assert len(np.unique(art.parts[:, 2:] - art.parts[:, :2], axis=0)) == 1, "all are of one size"
    for idle_index in range(3):
        part, window = art.part(idle_index), bundle.box(idle_index)
        assert window.x0 <= part.x0 < part.x1 <= window.x1 and window.y0 <= part.y0 < part.y1 <= window.y1
        patch = engine.infer([PatchRequest(session, idle_index, OPEN)])[0]
        assert patch is not None
        box, rest = patch.box, art.rests[idle_index]
        assert part.x0 <= box.x0 and box.x1 <= part.x1 and part.y0 <= box.y0 and box.y1 <= part.y1
        lowest = float(rest.curves[CHIN][SAMPLES // 2]) + 0.09 + NECK
        corners = np.array([(rest.centre + side * REACH, lowest) for side in (-1, 1)])
        reach = min(float((corners @ art.frames[idle_index, 1, :2] + art.frames[idle_index, 1, 2]).max()), window.y1)
        assert part.y1 >= reach - 1


def test_what_is_stored_is_what_is_made(tmp_path: Path) -> None:
    points = [faces.demo_points(), faces.demo_points() + 3]
    _, session = faces.opened_with(tmp_path, [faces.demo_picture()] * 2, points)
    stored, bundle = session.artefacts, session.bundle
    made = replace(stored, mouths=None)
    for idle_index in (0, 1):
        one, other = stored.mouth(bundle, idle_index), made.mouth(bundle, idle_index)
        assert one.offset == other.offset and np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("damage", ["cut", "longer", "another shape", "another type", "nothing"])
def test_a_file_that_is_not_whole_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    engine, session = faces.opened_with(tmp_path, [faces.demo_picture()], [faces.demo_points()])
    folder = session.bundle.engine_path(engine.fingerprint)
    path, pixels = folder / FILE, np.array(session.artefacts.mouths)
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:-100])
    elif damage == "longer":
        path.write_bytes(whole + b"x")
    elif damage == "another shape":
        np.save(path, pixels[:, :-1])
    elif damage == "another type":
        np.save(path, pixels.view(np.int8))
    missing = damage == "nothing"
    with pytest.raises(FileNotFoundError if missing else DamagedArrays, match=FILE):
        WarpArtefacts.load(folder)
    again = engine.open(session.bundle).artefacts
    assert np.array_equal(np.asarray(again.mouths), pixels)


def test_a_save_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    def pixels() -> object:
        yield np.zeros((6, 4, 4), np.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        enlarged.save(pixels(), tmp_path)
    assert not list(tmp_path.iterdir())
