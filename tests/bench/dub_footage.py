"""Footage of two people for the bench of dubs: cuts, a screen with both, reaction shots, black frames, titles, and who speaks when.

It is made of short clips of talkers with their own sound, three or more of each of two people, such as those of the GRID corpus:
`FOLDER/PERSON/*.mpg`. A listener is a clip's quietest stretch, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

FPS, RATE = 25, 48_000
SIZE = 720, 576
Pictures = list[np.ndarray]


@dataclass(frozen=True)
class Clip:
    """Frames, uint8 BGR, and sound, int16 at 48 kHz, of one length."""

    frames: Pictures
    sound: np.ndarray


@dataclass(frozen=True)
class Shot:
    """What a shot shows: `kind` is `A`, `B`, `AB`, `listens` (who does not speak), `black` or `title`; `speaks` is 0, 1 or None."""

    kind: str
    speaks: int | None
    frames: range


def read_clip(path: Path) -> Clip:
    """A clip with its sound."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    resampler, parts = av.AudioResampler(format="s16", layout="mono", rate=RATE), []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    sound = np.concatenate(parts)
    count = len(frames) * RATE // FPS
    return Clip(frames, np.pad(sound[:count], (0, max(0, count - len(sound)))).astype(np.int16))


def listener(clip: Clip, count: int) -> Pictures:
    """`count` frames of someone who says nothing: the clip's first frames, forwards and backwards."""
    part = clip.frames[:7]
    loop = [*part, *part[-2:0:-1]]
    return [loop[k % len(loop)] for k in range(count)]


def whole(frame: np.ndarray) -> np.ndarray:
    """A frame on the whole screen."""
    return cv2.resize(frame, SIZE, interpolation=cv2.INTER_CUBIC)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two people on one screen, each in a half."""
    halves = [cv2.resize(frame[:, 60:300], (360, 432), interpolation=cv2.INTER_CUBIC) for frame in (left, right)]
    canvas = np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)
    canvas[72:504] = np.hstack(halves)
    return canvas


def title(text: str) -> np.ndarray:
    """A title."""
    canvas = np.full((SIZE[1], SIZE[0], 3), (90, 40, 20), np.uint8)
    cv2.putText(canvas, text, (90, 300), cv2.FONT_HERSHEY_DUPLEX, 1.6, (240, 240, 240), 3, cv2.LINE_AA)
    return canvas


PLAN = (
    "title",
    "A",
    "B",
    "AB0",
    "black",
    "B",
    "listens0",
    "A",
    "AB1",
    "listens1",
    "A",
    "title",
    "B",
    "AB0",
    "B",
    "black",
    "AB1",
)


def compose(people: list[list[Clip]], seconds: float) -> Iterator[tuple[np.ndarray, np.ndarray, Shot]]:
    """Shot after shot: frames, their sound, and what it is. Never less than `seconds` in all."""
    at, turn = 0, 0
    while at < seconds * FPS:
        kind = PLAN[turn % len(PLAN)]
        speaker = {"A": 0, "B": 1}.get(kind, int(kind[-1]) if kind[-1] in "01" else None)
        if speaker is None:
            count = FPS * (1 if kind == "black" else 2)
            picture = title(f"Part {turn}") if kind == "title" else np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
            frames, sound = [picture] * count, np.zeros(count * RATE // FPS, np.int16)
        else:
            clip = people[speaker][turn % len(people[speaker])]
            quiet = listener(people[1 - speaker][turn % len(people[1 - speaker])], len(clip.frames))
            sound = clip.sound
            if kind in "AB":
                frames = [whole(frame) for frame in clip.frames]
            elif kind.startswith("listens"):
                frames = [whole(frame) for frame in quiet]
            else:
                pair = (clip.frames, quiet) if speaker == 0 else (quiet, clip.frames)
                frames = [beside(*both) for both in zip(*pair, strict=True)]
        yield np.array(frames), sound, Shot(kind.rstrip("01"), speaker, range(at, at + len(frames)))
        at += len(frames)
        turn += 1


def write(path: Path, people: list[list[Clip]], seconds: float) -> list[Shot]:
    """Writes the film, H.264 and AAC, and returns its shots."""
    shots: list[Shot] = []
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "16"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = film.add_stream("aac", rate=RATE, layout="mono")
        frame_number = sample = 0
        for frames, sound, shot in compose(people, seconds):
            shots.append(shot)
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p")
                frame.pts, frame.time_base = frame_number, Fraction(1, FPS)
                frame_number += 1
                film.mux(video.encode(frame))
            block = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, sample, Fraction(1, RATE)
            sample += len(sound)
            film.mux(audio.encode(block))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))
    return shots
