"""One pass over a film: follows its faces and records them. Frames are read one by one, and none is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.identity import FaceDescriber
from musetalk_agent.judge import bars
from musetalk_agent.judge.face_record import SIZE, FaceRecord, joined
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.measure.lip_measures import VideoUnreadable, video_frames
from musetalk_agent.media_types import Pixels

Progress = Callable[[int], object]


@dataclass(frozen=True)
class FilmScan:
    """What one pass found.

    Args:
        times: float64 `[n]`, when each frame begins to be shown, seconds of the film's own time line.
        black: bool `[n]`, which frames are black.
        faces: a record for each person that is seen long and large enough, in order of appearance.
        left_out: how many faces are not among them.
    """

    times: NDArray[np.float64]
    black: NDArray[np.bool_]
    faces: list[FaceRecord]
    left_out: int


def scan(path: Path, net: FaceNet, describer: FaceDescriber, progress: Progress, *, least_s: float) -> FilmScan:
    """Reads a film through; `progress` is called with 1 for every frame. Faces seen for less than `least_s` seconds are left out.

    Raises:
        VideoUnreadable: no film, or one without frames.
    """
    follower = FaceFollower(net)
    records: dict[int, FaceRecord] = {}
    times: list[float] = []
    black: list[bool] = []
    for frame, (time, bgr) in enumerate(video_frames(path)):
        times.append(time)
        black.append(is_black(bgr))
        for seen in follower.push(bgr):
            record = records.setdefault(seen.number, FaceRecord(follower.shot))
            record.push(bgr, seen.face.points, frame, time, describer)
        for record in records.values():
            if record.shot != follower.shot:
                record.close()
        progress(1)
    if not times:
        raise VideoUnreadable(f"{path} has no pictures.")
    for record in records.values():
        record.close()
    at = np.array(times)
    period = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
    persons = joined(list(records.values()), describer.same)
    faces = [
        person
        for person in persons
        if person.frames * period >= least_s and float(np.median(person.rows[:, SIZE])) >= bars.FACE_LEAST_PX
    ]
    return FilmScan(at, np.array(black, bool), faces, len(persons) - len(faces))


def is_black(bgr: Pixels) -> bool:
    """Whether a frame, uint8 BGR, shows nothing."""
    step = max(1, min(bgr.shape[:2]) // 128)
    grey = cv2.cvtColor(np.ascontiguousarray(bgr[::step, ::step]), cv2.COLOR_BGR2GRAY)
    return float(np.percentile(grey, 99)) < bars.BLACK_LEVEL
