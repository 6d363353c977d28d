"""The same mouth twice: how far it is open in the pictures of a film, and how far it should be open by the sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, FaceNet, Points
from musetalk_agent.avatars.face_track import FaceTracker
from musetalk_agent.features.articulation import CLOSURE, JAW
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media_types import Pcm, Pixels

Track = NDArray[np.float64]

UPPER_LIP, LOWER_LIP = 13, 14  # inner edges of the lips in the middle, of the 468 mesh points
_FULL = 0.12  # aperture at jaw 1, see features/visemes.py
_STEP_HZ = 50  # the mouth network's own steps
_PIECE = 16_000
_QUARTER_TURNS = {0: 0, 90: 1, 180: 2, 270: 3}


class VideoUnreadable(Exception):
    """The film is not there, is damaged, or has no pictures; the message says which."""


@dataclass(frozen=True)
class MouthTrack:
    """Openings of a mouth over time.

    Args:
        times: float64 `[n]`, seconds, ascending: the middle of the time for which each value is shown or heard. By their
            beginnings a film of 50 fps would be 10 ms later than the same mouth at 25 fps.
        aperture: float64 `[n]`, how far the inner lips are apart across the eye line, in outer eye distances (a little below 0 is a
            closed mouth, too); NaN where no face is seen.
    """

    times: Track
    aperture: Track


@dataclass(frozen=True)
class Faces:
    """The largest face of a film.

    Args:
        times: float64 `[n]`, seconds on the film's own time line, ascending: when each picture begins to be shown.
        meshes: n meshes, float32 `[468, 2]` in pixels, None where no face is seen.
    """

    times: Track
    meshes: list[Points | None]


def find_faces(path: Path, net: FaceNet, progress: Callable[[int], object] = lambda _: None) -> Faces:
    """Follows the largest face of a film. `progress` is called with the frames done.

    Raises:
        VideoUnreadable: no film, or one without pictures.
    """
    tracker = FaceTracker(net)
    times: list[float] = []
    for time, picture in pictures(path):
        tracker.push(picture)
        times.append(time)
        progress(len(times))
    if not times:
        raise VideoUnreadable(f"{path} has no pictures.")
    return Faces(np.array(times), tracker.meshes)


def seen_mouth(faces: Faces) -> MouthTrack:
    """How far the mouth of a followed face is open."""
    return MouthTrack(_middles(faces.times), np.array([_aperture(points) for points in faces.meshes]))


def heard_mouth(features: VisemeFeatures, sound: Pcm, start_s: float) -> MouthTrack:
    """What the mouth network makes of a whole recording, int16 `[n]` at 16 kHz whose first sample has the time `start_s`."""
    stream = features.stream(_STEP_HZ)
    vectors = [v for at in range(0, len(sound), _PIECE) for v in stream.push(sound[at : at + _PIECE])]
    made = np.array(vectors + stream.flush(), np.float64)
    times = start_s + (np.arange(len(made)) + 0.5) / _STEP_HZ
    return MouthTrack(times, _FULL * made[:, JAW] * (1 - made[:, CLOSURE]))


def _middles(times: Track) -> Track:
    """The middles of pictures that begin at these times; how long the last one is shown is not known, nor that of a single one."""
    if len(times) < 2:
        return times
    shown = np.diff(times)
    return times + np.append(shown, np.median(shown)) / 2


def _aperture(points: Points | None) -> float:
    if points is None:
        return float("nan")
    along = points[RIGHT_EYE] - points[LEFT_EYE]
    down = np.array([-along[1], along[0]])
    return float((points[LOWER_LIP] - points[UPPER_LIP]) @ down) / float(along @ along)


def pictures(path: Path) -> Iterator[tuple[float, Pixels]]:
    """Frames with their times in seconds, in order, uint8 BGR `[h, w, 3]`. Raises `VideoUnreadable`."""
    try:
        with path.open("rb") as file, av.open(file) as container:
            source = cast("InputContainer", container)
            if not source.streams.video:
                raise VideoUnreadable(f"{path} has no picture track.")
            stream = source.streams.video[0]
            stream.thread_type = "AUTO"
            last = -np.inf
            for frame in source.decode(stream):
                time = float((frame.pts or 0) * (frame.time_base or Fraction(0)))
                if time > last:  # a damaged time stamp shows nothing new
                    last = time
                    turns = _QUARTER_TURNS.get(round(frame.rotation / 90) * 90 % 360, 0)
                    picture = np.rot90(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8), turns)
                    yield time, np.ascontiguousarray(picture)
    except (av.error.FFmpegError, av.error.EOFError, ValueError) as error:
        raise VideoUnreadable(f"{path} is no film that can be read, or it is damaged.") from error
    except OSError as error:
        raise VideoUnreadable(f"{path} cannot be read: {error.strerror}.") from error
