"""Makes the demo's avatar from `skimage.data.astronaut()` (NASA, public domain).

Run it in any environment that has this project and scikit-image; the face models must have been fetched:

    python tools/make_demo_avatar.py [--out musetalk_agent/assets/demo-avatar.png]

The portrait is cropped to head and shoulders and enlarged; the warp engine closes the smiling mouth, so that the avatar rests
with its lips together.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.framing import face_windows
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.render import render
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import AvatarReport
from musetalk_agent.weights import Manifest, ModelStore

ROOT = Path(__file__).resolve().parent.parent
LEFT, TOP, SIDE = 92, 2, 252  # head and shoulders in the astronaut's 512×512
SIZE = 640


def portrait() -> Pixels:
    """The crop, enlarged: Lanczos, a light denoise for the enlarged grain, a light sharpening. BGR `[640, 640, 3]`."""
    crop = skimage.data.astronaut()[TOP : TOP + SIDE, LEFT : LEFT + SIDE, ::-1]
    large = cv2.resize(np.ascontiguousarray(crop), (SIZE, SIZE), interpolation=cv2.INTER_LANCZOS4)
    calm = cv2.fastNlMeansDenoisingColored(large, None, 2.5, 2.5, 5, 13).astype(np.float32)
    sharp = 1.6 * calm - 0.6 * cv2.GaussianBlur(calm, (0, 0), 2.0)
    return np.asarray(np.clip(sharp + 0.5, 0, 255), np.uint8)


def close_mouth(picture: Pixels, net: FaceNet) -> Pixels:
    """The picture with its lips together."""
    rgb = np.ascontiguousarray(picture[..., ::-1])
    faces = net.faces(rgb)
    if not faces:
        raise SystemExit("no face in the portrait: have the face models changed?")
    points = faces[0].points
    boxes = face_windows(points[None], SIZE, SIZE)
    x0, y0, x1, y1 = boxes[0]
    planes = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)[None]
    report = AvatarReport(avatar_id="demo", frames=1, width=SIZE, height=SIZE, fps=25)
    with tempfile.TemporaryDirectory() as folder:
        still = Bundle(Path(folder), SIZE, SIZE, 25, planes, points[None], boxes, picture[None, y0:y1, x0:x1], report)
        patch = render(still, WarpArtefacts.of(still), 0, Articulation(0, 0, 0, 0, 0), 1.0)
    if patch is None:
        raise SystemExit("the mouth lies outside the picture")
    closed = picture.copy()
    closed[patch.box.y0 : patch.box.y1, patch.box.x0 : patch.box.x1] = patch.pixels
    return closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "musetalk_agent" / "assets" / "demo-avatar.png")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    store = ModelStore(options.models, Manifest.load(ROOT / "models" / "manifest.toml"))
    cv2.imwrite(str(options.out), close_mouth(portrait(), FaceNet(store)), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
