"""What is measured of a video's lips: how far the mouth is open in the frames, how far it should be open by the audio, and LSE.

LSE-C and LSE-D are the figures by which papers on lip sync compare themselves: how well SyncNet finds lips and voice of a video to
agree. They are defined by joonson/syncnet_python (`SyncNetInstance.evaluate`) and Wav2Lip (`evaluation/scores_LSE`). All
constants are theirs, except for the face: theirs is cut out by the boxes of the detector S3FD (`run_pipeline.py`, `crop_video`),
ours by the box around the 468 mesh points, and they compress the cut frames once more. So values compare with published ones
only roughly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, FaceNet, Points
from musetalk_agent.avatars.face_track import FaceTracker
from musetalk_agent.features.phonemes import CLOSURE, JAW
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media_types import FEATURE_RATE, Feature, Pcm, Pixels
from musetalk_agent.weights import ModelStore

Track = NDArray[np.float64]

UPPER_LIP, LOWER_LIP = 13, 14  # inner edges of the lips in the middle, of the 468 mesh points
_FULL = 0.12  # aperture at jaw 1, see features/visemes.py
_STEP_HZ = 50  # the mouth network's own steps
_PIECE = 16_000
_QUARTER_TURNS = {0: 0, 90: 1, 180: 2, 270: 3}


class VideoUnreadable(Exception):
    """The video is not there, is damaged, or has no frames; the message says which."""


@dataclass(frozen=True)
class MouthTrack:
    """Openings of a mouth over time.

    Args:
        times: float64 `[n]`, seconds, ascending: the middle of the time for which each value is shown or heard. By their
            beginnings a video of 50 fps would be 10 ms later than the same mouth at 25 fps.
        aperture: float64 `[n]`, how far the inner lips are apart across the eye line, in outer eye distances (a little below 0 is a
            closed mouth, too); NaN where no face is seen.
    """

    times: Track
    aperture: Track


@dataclass(frozen=True)
class VideoFaces:
    """The largest face of a video.

    Args:
        times: float64 `[n]`, seconds on the video's own time line, ascending: when each frame begins to be shown.
        meshes: n meshes, float32 `[468, 2]` in pixels, None where no face is seen.
    """

    times: Track
    meshes: list[Points | None]


def find_faces(path: Path, net: FaceNet, progress: Callable[[int], object] = lambda _: None) -> VideoFaces:
    """Follows the largest face of a video. `progress` is called with the frames done.

    Raises:
        VideoUnreadable: no video, or one without frames.
    """
    tracker = FaceTracker(net)
    times: list[float] = []
    for time, picture in video_frames(path):
        tracker.push(picture)
        times.append(time)
        progress(len(times))
    if not times:
        raise VideoUnreadable(f"{path} has no pictures.")
    return VideoFaces(np.array(times), tracker.meshes)


def mouth_seen(faces: VideoFaces) -> MouthTrack:
    """How far the mouth of a followed face is open."""
    return MouthTrack(frame_middles(faces.times), np.array([aperture_of(points) for points in faces.meshes]))


def mouth_heard(features: VisemeFeatures, audio: Pcm, start_s: float) -> MouthTrack:
    """What the mouth network makes of a whole recording, int16 `[n]` at 16 kHz whose first sample has the time `start_s`."""
    return mouth_made(features, (audio[at : at + _PIECE] for at in range(0, len(audio), _PIECE)), start_s)


def mouth_made(features: VisemeFeatures, pieces: Iterable[Pcm], start_s: float) -> MouthTrack:
    """The same of a recording that comes in pieces, of which none is kept."""
    stream = features.stream(_STEP_HZ)
    openings: list[float] = []

    def take(vectors: list[Feature]) -> None:
        openings.extend(_FULL * float(v[JAW]) * (1 - float(v[CLOSURE])) for v in vectors)

    for piece in pieces:
        take(stream.push(piece))
    take(stream.flush())
    times = start_s + (np.arange(len(openings)) + 0.5) / _STEP_HZ
    return MouthTrack(times, np.array(openings, np.float64))


def frame_middles(times: Track) -> Track:
    """The middles of frames that begin at these times, float64 `[n]`, ascending. How long the last one is shown is not known, nor
    that of a single one."""
    if len(times) < 2:
        return times
    shown = np.diff(times)
    return times + np.append(shown, np.median(shown)) / 2


def aperture_of(points: Points | None) -> float:
    """How far the inner lips of a mesh, float32 `[468, 2]`, are apart, in outer eye distances; NaN without one."""
    if points is None:
        return float("nan")
    along = points[RIGHT_EYE] - points[LEFT_EYE]
    down = np.array([-along[1], along[0]])
    return float((points[LOWER_LIP] - points[UPPER_LIP]) @ down) / float(along @ along)


def video_frames(path: Path) -> Iterator[tuple[float, Pixels]]:
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
                    yield time, turned_frame(frame)
    except (av.error.FFmpegError, av.error.EOFError, ValueError) as error:
        raise VideoUnreadable(f"{path} is no film that can be read, or it is damaged.") from error
    except OSError as error:
        raise VideoUnreadable(f"{path} cannot be read: {error.strerror}.") from error


def turned_frame(frame: av.VideoFrame) -> Pixels:
    """A decoded frame as players show it, uint8 BGR `[h, w, 3]`: phones lay theirs on the side."""
    turns = _QUARTER_TURNS.get(round(frame.rotation / 90) * 90 % 360, 0)
    return np.ascontiguousarray(np.rot90(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8), turns))


WEIGHTS = "syncnet/syncnet_v2.model"
SIDE = 224
SHIFT = 15
"""Frames of 40 ms that lips and voice are moved against each other, to both sides."""
LEAST_FRAMES = 50

_FPS = 25
_FRAME_SAMPLES = FEATURE_RATE // _FPS
_LAST_WINDOWS = 5  # frames at the end with which no window begins
_MARGIN = 0.4  # crop_scale
_SMOOTHED = 13  # frames of the running median
_GREY = (110, 110, 110)  # beyond the frame's edges
_EPSILON = 1e-6  # of torch's pairwise_distance

Vectors = NDArray[np.float32]
Squares = NDArray[np.float64]


@dataclass(frozen=True)
class LipSync:
    """SyncNet's verdict.

    Args:
        confidence: LSE-C, higher is better: the median of the mean distances at all 31 shifts, less the least of them.
        distance: LSE-D, lower is better: the least mean distance of lips and voice.
        offset_ms: by how much the lips are late at that shift, in whole frames of 40 ms, -600 … 600.
    """

    confidence: float
    distance: float
    offset_ms: int


def syncnet_weights(store: ModelStore) -> Path | None:
    """Where SyncNet's weights are; None where they, or the extra [musetalk] that runs them, are not there."""
    path = store.location(WEIGHTS)
    able = all(importlib.util.find_spec(name) for name in ("torch", "safetensors"))
    return path if able and path.is_file() else None


def judge_sync(
    path: Path, video: Path, faces: VideoFaces, audio: Pcm, start_s: float, progress: Callable[[int], object]
) -> LipSync | None:
    """Scores a video whose faces were followed, against int16 `[n]` at 16 kHz whose first sample has the time `start_s`.

    `progress` is called with the frames read. None with a face in fewer than half of the frames, or less than two seconds of
    frames and audio.

    Raises:
        WeightsInvalid: the weights at `path` are not SyncNet's.
        VideoUnreadable: the video cannot be read.
    """
    chosen = _at_25_fps(faces)
    voice = _from(audio, float(faces.times[0]) - start_s)
    squares = _squares(faces, chosen)
    frames = min(len(chosen), len(voice) // _FRAME_SAMPLES)
    if squares is None or frames < LEAST_FRAMES:
        return None
    from musetalk_agent.measure import syncnet  # here, because torch is an extra and takes seconds to import

    net = syncnet.load(path)
    count = frames - _LAST_WINDOWS
    lips = syncnet.embed_lips(net, _cuts(video, chosen[:frames], squares, progress))[:count]
    return score(lips, syncnet.embed_voice(net, mfcc(voice), count))


def score(lips: Vectors, voice: Vectors) -> LipSync:
    """The figures of float32 `[n, d]` each, one row a frame.

    As upstream has it: beyond the ends the voice is zeros, to which the lips have a distance, too; so in short films LSE-D at
    large shifts says less than it seems to.
    """
    padded = np.pad(voice.astype(np.float64), ((SHIFT, SHIFT), (0, 0)))
    means = [
        float(np.linalg.norm(lips - padded[at : at + len(lips)] + _EPSILON, axis=1).mean())
        for at in range(2 * SHIFT + 1)
    ]
    best = int(np.argmin(means))
    return LipSync(float(np.median(means)) - means[best], means[best], (SHIFT - best) * 1000 // _FPS)


def cut(picture: Pixels, x: float, y: float, half: float) -> Pixels:
    """SyncNet's input, uint8 BGR `[224, 224, 3]`: a square 1.4 times as long as the face's box, level with its top.

    `x`, `y` is the centre of the box, `half` half its longer side, all in pixels.
    """
    left, top = x - half * (1 + _MARGIN), y - half
    pixel = half * 2 * (1 + _MARGIN) / SIDE
    shift = pixel / 2 - 0.5  # between the centres of the first pixels
    matrix = np.array([[pixel, 0, left + shift], [0, pixel, top + shift]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    made = cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=_GREY)
    return np.asarray(made, np.uint8)


def _at_25_fps(faces: VideoFaces) -> NDArray[np.int64]:
    """For every 25th of a second from the first frame to the last, the index of the frame that begins nearest."""
    times = faces.times - faces.times[0]
    slots = np.arange(round(times[-1] * _FPS) + 1) / _FPS
    after = np.clip(np.searchsorted(times, slots), 1, max(1, len(times) - 1))
    nearer = slots - times[after - 1] <= times[np.minimum(after, len(times) - 1)] - slots
    return np.asarray(np.where(nearer, after - 1, after), np.int64)


def _squares(faces: VideoFaces, chosen: NDArray[np.int64]) -> Squares | None:
    """float64 `[n, 3]`: centre and half length of the face's box in every chosen frame; straight lines over gaps, then a running
    median. None where too few frames show a face."""
    seen = [index for index, points in enumerate(faces.meshes) if points is not None]
    if not seen or 2 * len(seen) < len(faces.meshes):
        return None
    corners = np.array([[p.min(0), p.max(0)] for p in faces.meshes if p is not None], np.float64)
    found = np.column_stack([corners.mean(1), (corners[:, 1] - corners[:, 0]).max(1) / 2])
    lines = np.column_stack([np.interp(chosen, seen, column) for column in found.T])
    padded = np.pad(lines, ((_SMOOTHED // 2, _SMOOTHED // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, axis=0)
    return np.asarray(np.median(windows, axis=-1), np.float64)


def _cuts(
    video: Path, chosen: NDArray[np.int64], squares: Squares, progress: Callable[[int], object]
) -> Iterator[Pixels]:
    """The face of every chosen frame, read anew: all of a video's frames would fill the memory."""
    slot = 0
    for index, (_, picture) in enumerate(video_frames(video)):
        while slot < len(chosen) and chosen[slot] == index:
            yield cut(picture, *squares[slot])
            slot += 1
        progress(index + 1)
        if slot == len(chosen):
            return


def _from(audio: Pcm, lead_s: float) -> Pcm:
    """The audio from `lead_s` after its first sample on; silence where that is before."""
    samples = round(lead_s * FEATURE_RATE)
    return audio[samples:] if samples >= 0 else np.concatenate([np.zeros(-samples, np.int16), audio])


_COEFFICIENTS = 13
_RATE = 16_000
_WINDOW, _STEP = 400, 160  # samples: 25 ms, every 10 ms
_FFT = 512
_FILTERS = 26
_PREEMPHASIS = 0.97
_LIFTER = 22
_LEAST = float(np.finfo(np.float64).eps)

Cepstra = NDArray[np.float64]


def mfcc(audio: Pcm) -> Cepstra:
    """float64 `[n, 13]`, 100 a second, of int16 `[samples]` (one or more) at 16 kHz; value 0 is the logarithm of the energy.

    Values are those of `python_speech_features.mfcc(audio, 16000)`: pre-emphasis, windows without a shape, the last one filled with
    zeros.
    """
    samples = audio.astype(np.float64)
    samples[1:] -= _PREEMPHASIS * audio[:-1]
    count = 1 + max(0, -(-(len(samples) - _WINDOW) // _STEP))
    filled = np.zeros((count - 1) * _STEP + _WINDOW)
    filled[: len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(filled, _WINDOW)[::_STEP]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT
    bands = np.log(_above_zero(power @ _filters().T))
    cepstra: Cepstra = bands @ _cosines().T
    cepstra[:, 0] = np.log(_above_zero(power.sum(1)))
    return cepstra


def _above_zero(values: Cepstra) -> Cepstra:
    return np.where(values == 0, _LEAST, values)


def _filters() -> Cepstra:
    """Triangles evenly spaced in mels, between whole bins of the spectrum: `[26, 257]`."""
    mels = np.linspace(0, 2595 * np.log10(1 + _RATE / 2 / 700), _FILTERS + 2)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (mels / 2595) - 1) / _RATE)
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(_FFT // 2 + 1)
    rising = np.where((bins >= low) & (bins < top), (bins - low) / (top - low), 0)
    falling = np.where((bins >= top) & (bins < high), (high - bins) / (high - top), 0)
    return np.asarray(rising + falling, np.float64)


def _cosines() -> Cepstra:
    """The first rows of the orthonormal DCT-II, each with its lifter: `[13, 26]`."""
    rows = np.arange(_COEFFICIENTS)[:, None]
    waves = np.sqrt(2 / _FILTERS) * np.cos(np.pi * rows * (2 * np.arange(_FILTERS) + 1) / (2 * _FILTERS))
    # Row 0 would be weighted by √½, but energy takes its place.
    return np.asarray(waves * (1 + _LIFTER / 2 * np.sin(np.pi * rows / _LIFTER)), np.float64)
