"""Turns the heads of pictures and clips, and draws what the warp engine makes of them at several angles.

    python tools/turned_heads.py OUT.png PICTURE_OR_CLIP [--turn 40] [--nod 0] [--lean 0] [--light left|right|top] [--beard]
        [--glasses] [--talks] [--frames 48] [--first 0] [--used 48] [--scale 2] [--as-it-is] [--clip OUT.zip]
        [--no-sheet]

The mesh's points and their depths are turned about an axis through the neck, and the picture's triangles are painted from back to
front; what lies around the face follows less and less. `--light` lights the turned mesh from one side, `--beard` and `--glasses`
are drawn on the face first. `--talks` moves the lower lip and the jaw of the mesh, in each frame of a picture otherwise. A video's
frames are taken one after the other, so that a talker talks while the head turns. `--as-it-is` turns nothing: footage of a head
that turns itself. Rows are the frames nearest to each angle, columns the idle frame and what `contact_sheet.SHOWN` lists. `--clip`
keeps the frames as an avatar's upload.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
from contact_sheet import ROOT, SHOWN, Style, idle_frame, prepared, spoken, tile

from musetalk_agent.avatars.face import Face, FaceNet, crop_of
from musetalk_agent.avatars.face_track import head_angles
from musetalk_agent.engines.warp import WarpEngine
from musetalk_agent.engines.warp.mouth_space import INNER_UPPER, OUTER_UPPER
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import Manifest, ModelStore

ANGLES = (0, 15, 25, 40, -15, -25, -40)
DEPTH = 1.15
"""How much deeper faces are than the mesh says."""
NECK_BEHIND = 0.55
"""How far behind the temples the axis lies (eye distances)."""
FOLLOWS = 0.9
"""How far around the face what is beside it follows the turn (eye distances)."""
LIGHTS = {"left": (-0.85, -0.25, 0.45), "right": (0.85, -0.25, 0.45), "top": (0.0, -0.9, 0.45)}
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
JAW = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
BEARD_TOP = (454, 352, 411, 427, 410, 287, 391, 327, 2, 98, 165, 57, 186, 207, 187, 123, 234)
EYES = (33, 133), (362, 263)
WORD = 5
"""Frames from one opening of a head that talks to the next one."""
OPENS, FALLS = 0.12, 0.67
"""How far its lower lip goes down at most (eye distances), and how much of that its chin."""
CHEEK = 1.6
"""How far beside the mouth's middle skin goes with it (halves of the mouth)."""

Points = np.ndarray


def eye_distance(points: Points) -> float:
    return float(np.linalg.norm(points[33, :2] - points[263, :2]))


def pictures(path: Path, first: int, used: int, frames: int, scale: float) -> list[Pixels]:
    """The picture `frames` times, or `used` frames of a video from `first` on, forwards and backwards."""
    found: list[Pixels] = []
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        picture = cv2.imread(str(path))
        assert picture is not None, path
        found = [np.asarray(picture, np.uint8)]
    else:
        with av.open(str(path)) as container:
            for k, frame in enumerate(container.decode(video=0)):
                if k >= first + used:
                    break
                if k >= first:
                    found.append(frame.to_ndarray(format="bgr24"))
    larger = [
        np.asarray(cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8) for p in found
    ]
    path_there_and_back = [*range(len(larger)), *range(len(larger) - 2, 0, -1)]
    return [larger[path_there_and_back[k % len(path_there_and_back)]] for k in range(frames)]


def faces_in(net: FaceNet, shown: list[Pixels]) -> list[Points]:
    """Mesh and depth of each picture's face: float32 `[468, 3]`, x right, y down, z towards the viewer."""
    found: list[Points] = []
    last: Face | None = None
    seen: Pixels | None = None
    for picture in shown:
        if picture is seen:
            found.append(found[-1])
            continue
        rgb, seen = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), picture
        face = net.refine_mesh(rgb, crop_of(last.points)) if last else net.faces(rgb)[0]
        assert face is not None and face.depths is not None, "no face"
        last = face
        z = face.depths - face.depths[[127, 234, 356, 454]].mean()
        found.append(np.column_stack([face.points, DEPTH * z]).astype(np.float32))
    if len(shown) > 4:
        found = list(
            cv2.GaussianBlur(np.stack(found).reshape(len(found), -1), (1, 0), sigmaX=1e-3, sigmaY=1.0).reshape(
                -1, 468, 3
            )
        )
    return found


def turned(points: Points, turn: float, nod: float, lean: float) -> Points:
    """Points `[n, 3]` of a mesh and what lies around it, turned to the image's right, nodded down and leant, in degrees."""
    eyes = eye_distance(points)
    axis = np.append(points[[127, 234, 356, 454], :2].mean(0), -NECK_BEHIND * eyes)
    a, b, c = np.radians((turn, nod, lean))
    yaw = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    roll = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray((points - axis) @ (roll @ pitch @ yaw).T + axis, np.float32)


def talking(points: Points, frame: int) -> Points:
    """The mesh with the lower lip and the jaw as far down as they are in `frame` of a head that talks."""
    eyes, out = eye_distance(points), points.copy()
    opening = OPENS * eyes * (1 - np.cos(2 * np.pi * frame / WORD)) / 2
    lips, chin, left, right = points[13], points[152], points[61], points[291]
    down = (points[:, 1] - lips[1]) / (chin[1] - lips[1])
    half = abs(right[0] - left[0]) / 2
    follows = np.where(down > 0, 1 - (1 - FALLS) * np.clip(down, 0, 1), 0)
    follows *= np.clip(1 - ((points[:, 0] - lips[0]) / (CHEEK * half)) ** 2, 0, 1)
    follows[list(INNER_UPPER + OUTER_UPPER)] = 0
    out[:, 1] += opening * follows
    return out


def beside(here: Points, there: Points, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel around the turned face comes from, float32 `[h, w]` twice.

    It moves as the silhouette beside it does, less and less with the distance.
    """
    eyes = eye_distance(here)
    outline = cv2.convexHull(np.ascontiguousarray(there[:, :2]), returnPoints=False)[:, 0]
    ends, shifts = there[outline, :2], (there - here)[outline, :2]
    cells = np.stack(np.meshgrid(np.arange(4, size[0], 8), np.arange(4, size[1], 8)), -1).astype(np.float32)
    away = ((cells[:, :, None] - ends) ** 2).sum(-1)
    weight = 1 / (away + (0.05 * eyes) ** 2) ** 1.5
    shift = (weight[..., None] * shifts).sum(2) / weight.sum(2)[..., None]
    shift *= np.exp(-away.min(2) / (FOLLOWS * eyes) ** 2)[..., None]
    shift = cv2.resize(shift.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    x, y = (m.astype(np.float32) for m in np.meshgrid(np.arange(size[0]), np.arange(size[1])))
    return x - shift[..., 0], y - shift[..., 1]


def triangles(points: Points, size: tuple[int, int]) -> np.ndarray:
    """Triangles between the mesh's points `[n, 3]`: indices, int `[m, 3]`."""
    flat = points[:, :2].copy()
    inside = np.flatnonzero(((flat >= 0) & (flat < np.array(size) - 0.5)).all(1))
    net = cv2.Subdiv2D((0, 0, size[0], size[1]))
    by_place = {}
    for k in inside.tolist():
        x, y = (round(float(v), 2) for v in flat[k])
        by_place[(np.float32(x).item(), np.float32(y).item())] = k
        net.insert((x, y))
    found = []
    for corners in net.getTriangleList().reshape(-1, 3, 2):
        keys = [by_place.get((float(x), float(y))) for x, y in corners]
        if None not in keys:
            found.append(keys)
    return np.array(found, np.int64)


def lit(there: Points, faces: np.ndarray, light: str | None) -> np.ndarray:
    """How much light falls on each point of the turned mesh, float32 `[n]`, about 1 on average."""
    if light is None:
        return np.ones(len(there), np.float32)
    a, b, c = (there[faces[:, k]] for k in range(3))
    normals = np.zeros_like(there)
    each = np.cross(b - a, c - a)
    each *= np.sign(each[:, 2:] + 1e-9)
    for k in range(3):
        np.add.at(normals, faces[:, k], each)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    gain = 0.35 + 0.95 * np.maximum(normals @ np.array(LIGHTS[light]), 0)
    return np.asarray(gain, np.float32)


def painted(
    picture: Pixels, points: Points, moved: Points, pose: tuple[float, float, float], light: str | None
) -> Pixels:
    """The picture with its mesh `points` where they are `moved` to, and its head turned by `pose` (degrees: turn, nod, lean)."""
    size = picture.shape[1], picture.shape[0]
    here, there = points, turned(moved, *pose)
    faces = triangles(here, size)
    gain = lit(there, faces, light)
    order = np.argsort(there[faces][:, :, 2].mean(1))
    x, y = beside(here, there, size)
    shade = np.full(x.shape, 0.7 if light else 1.0, np.float32)
    for corners in faces[order]:
        to = there[corners, :2]
        x0, y0 = np.maximum(np.floor(to.min(0)).astype(int), 0)
        x1, y1 = np.minimum(np.ceil(to.max(0)).astype(int) + 1, size)
        if x1 <= x0 or y1 <= y0 or abs(np.linalg.det(np.column_stack([to, np.ones(3)]))) < 1e-3:
            continue
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillConvexPoly(mask, np.round((to - (x0, y0)) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
        fit = np.linalg.solve(np.column_stack([to, np.ones(3)]), np.column_stack([here[corners, :2], gain[corners]]))
        rows, cols = np.nonzero(mask)
        values = np.column_stack([cols + x0, rows + y0, np.ones(len(rows))]) @ fit
        x[rows + y0, cols + x0], y[rows + y0, cols + x0], shade[rows + y0, cols + x0] = values.T
    made = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    if light:
        made *= cv2.GaussianBlur(shade, (0, 0), 0.06 * eye_distance(points))[..., None]
    return np.asarray(np.clip(made, 0, 255), np.uint8)


def bearded(picture: Pixels, points: Points) -> Pixels:
    """The picture with a full beard and moustache of drawn hairs."""
    flat, eyes = points[:, :2], eye_distance(points)
    area = np.zeros(picture.shape[:2], np.uint8)
    lower = flat[list(JAW)] + np.array([0, 0.08 * eyes])
    cv2.fillPoly(area, [np.round(np.vstack([lower, flat[list(BEARD_TOP)]])).astype(np.int32)], 255)
    cv2.fillPoly(area, [np.round(flat[list(LIPS)]).astype(np.int32)], 0)
    density = cv2.GaussianBlur(area, (0, 0), 0.02 * eyes).astype(np.float32) / 255
    rng, out = np.random.default_rng(4), picture.copy()
    middle = flat[[13, 14]].mean(0)
    spots = np.argwhere(area > 0)
    for row, col in spots[rng.integers(0, len(spots), int(0.5 * len(spots)))]:
        away = np.array([col, row]) - middle + rng.normal(0, 0.15 * eyes, 2)
        way = (away / max(np.linalg.norm(away), 1) * (0.3, 1) + (0, 0.6)) * eyes * rng.uniform(0.03, 0.07)
        shade = rng.uniform(0.5, 1.5)
        colour = tuple(float(v) for v in np.array((24, 32, 48)) * shade)
        cv2.line(out, (int(col), int(row)), (round(col + way[0]), round(row + way[1])), colour, 1, cv2.LINE_AA)
    return np.asarray(
        picture + (out.astype(np.float32) - picture) * np.minimum(density * 1.2, 0.92)[..., None], np.uint8
    )


def with_glasses(picture: Pixels, points: Points) -> Pixels:
    """The picture with dark frames around the eyes."""
    flat, eyes = points[:, :2], eye_distance(points)
    out, thick = picture.copy(), max(1, round(0.025 * eyes))
    middles = [flat[list(pair)].mean(0) + np.array((0, 0.03 * eyes)) for pair in EYES]
    for middle in middles:
        axes = round(0.24 * eyes), round(0.19 * eyes)
        cv2.ellipse(out, tuple(int(v) for v in middle), axes, 0, 0, 360, (30, 25, 25), thick, cv2.LINE_AA)
    for one, other in (
        (middles[0] + (0.24 * eyes, 0), middles[1] - (0.24 * eyes, 0)),
        (middles[0] - (0.24 * eyes, 0), flat[127]),
        (middles[1] + (0.24 * eyes, 0), flat[356]),
    ):
        cv2.line(out, tuple(int(v) for v in one), tuple(int(v) for v in other), (30, 25, 25), thick, cv2.LINE_AA)
    return out


def made_clip(options: argparse.Namespace) -> list[Pixels]:
    """The frames of the clip whose head turns."""
    shown = pictures(options.source, options.first, options.used or options.frames, options.frames, options.scale)
    if options.as_it_is:
        return shown
    meshes = faces_in(FaceNet(ModelStore(options.models, Manifest.load(ROOT / "models" / "manifest.toml"))), shown)
    out, dressed = [], {}
    for k, (picture, points) in enumerate(zip(shown, meshes, strict=True)):
        if id(picture) not in dressed:
            one = bearded(picture, points) if options.beard else picture
            dressed[id(picture)] = with_glasses(one, points) if options.glasses else one
        at = 2 * np.pi * k / options.frames
        pose = options.turn * np.sin(at), options.nod * np.sin(2 * at + 0.5), options.lean * np.sin(at + 1)
        moved = talking(points, k) if options.talks else points
        out.append(painted(dressed[id(picture)], points, moved, pose, options.light))
    return out


def sheet(clip: bytes, options: argparse.Namespace) -> Pixels:
    """A row for each of `ANGLES` that the clip reaches."""
    engine, style = WarpEngine(VisemeFeatures.load()), Style(options.side, False)
    with tempfile.TemporaryDirectory() as cache:
        bundle = asyncio.run(prepared(clip, Path(cache), options.models))
        session = engine.open(bundle)
        angles = np.degrees(head_angles(np.asarray(bundle.landmarks)))
        print(
            angles.min(0).round(),
            angles.max(0).round(),
            [w.code for w in bundle.report.warnings],
            "references",
            session.artefacts.references.tolist(),
        )
        rows = []
        for wanted in ANGLES:
            pose = int(np.abs(angles[:, 0] - wanted).argmin())
            if abs(angles[pose, 0] - wanted) > 6:
                continue
            tiles = [
                tile(
                    bundle,
                    pose,
                    idle_frame(bundle, pose),
                    style,
                    f"{pose}: {angles[pose, 0]:.0f} {angles[pose, 1]:.0f}",
                )
            ]
            for label, values, weight in SHOWN[:-1]:
                frame = spoken(engine, session, pose, np.array(values, np.float32), weight)
                tiles.append(tile(bundle, pose, frame, style, label))
            rows.append(np.hstack(tiles))
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--turn", type=float, default=40.0)
    parser.add_argument("--nod", type=float, default=0.0)
    parser.add_argument("--lean", type=float, default=0.0)
    parser.add_argument("--light", choices=LIGHTS)
    parser.add_argument("--beard", action="store_true")
    parser.add_argument("--glasses", action="store_true")
    parser.add_argument("--talks", action="store_true")
    parser.add_argument("--as-it-is", action="store_true", help="turn nothing")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--first", type=int, default=0, help="a video's first frame")
    parser.add_argument("--used", type=int, help="how many of a video's frames are used (default: as many as are made)")
    parser.add_argument("--scale", type=float, default=1.0, help="enlarge the frames first")
    parser.add_argument("--side", type=int, default=200, help="width of a tile in pixels")
    parser.add_argument("--clip", type=Path, help="keep the frames as a zip")
    parser.add_argument("--no-sheet", action="store_true", help="only make the clip")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for k, frame in enumerate(made_clip(options)):
            archive.writestr(f"{k:04d}.png", cv2.imencode(".png", frame)[1].tobytes())
    if options.clip:
        options.clip.write_bytes(packed.getvalue())
    if not options.no_sheet:
        cv2.imwrite(str(options.out), sheet(packed.getvalue(), options), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
