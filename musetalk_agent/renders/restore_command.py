"""`musetalk-agent restore`: restores the faces of a clip before it is prepared, or of a film that was made. Frame by frame; sound
and times stay as they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.face_restorer import SIDE, FaceRestorer, pixels_of, placement_of
from musetalk_agent.avatars.framing import to_i420
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.measure.lip_measures import VideoUnreadable, turned_frame, video_frames
from musetalk_agent.media_types import Pixels

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
import argparse
import sys

from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.weights import Manifest, ModelStore

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FILMS = (".mp4", ".mkv", ".mov")
LARGE = 1.25
"""A face whose aligned square has so many times the network's pixels is left alone: it would lose detail."""
_X264 = {"preset": "medium", "crf": "15", "bf": "0"}

Progress = Callable[[int], object]


@dataclass(slots=True)
class Restored:
    """What was done: frames read, frames in which a face was restored, faces left alone because they are large."""

    frames: int = 0
    restored: int = 0
    large: int = 0


class FrameRestorer:
    """Takes a film's frames one after the other. One thread at a time.

    Args:
        net: finds the faces.
        strength: 0 … 1, how much of the restored faces is taken.
    """

    def __init__(self, net: FaceNet, restorer: FaceRestorer, strength: float = 1.0) -> None:
        self._follower, self._restorer, self._strength = FaceFollower(net), restorer, strength
        self.done = Restored()

    def frame(self, bgr: Pixels) -> Pixels:
        """The frame, uint8 BGR `[h, w, 3]`, with its faces restored; the same array where there is nothing to do."""
        self.done.frames += 1
        out = bgr
        for seen in self._follower.push(bgr):
            if pixels_of(placement_of(seen.face.points)) > LARGE * SIDE:
                self.done.large += 1
                continue
            out = self._restorer.restored(out, seen.face.points, self._strength)
        self.done.restored += out is not bgr
        return out


def restore_picture(source: Path, target: Path, frames: FrameRestorer) -> None:
    """One picture. Raises `VideoUnreadable` and OSError."""
    picture = cv2.imdecode(np.frombuffer(source.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise VideoUnreadable(f"{source} is no picture that can be read, or it is damaged.")
    made, coded = cv2.imencode(target.suffix, frames.frame(cast("Pixels", picture)))
    if not made:
        raise OSError(None, "the picture cannot be encoded", str(target))
    with _part(target) as part:
        part.write_bytes(coded.tobytes())


def restore_film(source: Path, target: Path, frames: FrameRestorer, progress: Progress = lambda _: None) -> None:
    """A film: H.264 at high quality, its sound copied. `progress` is called with 1 for each frame.

    Raises:
        VideoUnreadable: no film, or one whose sound cannot lie in a file of this kind.
        OSError: the target cannot be written.
    """
    first = next((picture for _, picture in video_frames(source)), None)
    if first is None:
        raise VideoUnreadable(f"{source} has no pictures.")
    size = first.shape[0] & ~1, first.shape[1] & ~1
    with _part(target) as part:
        try:
            with av.open(str(source)) as given, av.open(str(part), "w", format=_format(target)) as made:
                _copy(given, made, size, frames, progress)
        except (av.error.FFmpegError, av.error.EOFError, ValueError) as error:
            if isinstance(error, OSError) and error.filename == str(part):
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise VideoUnreadable(
                f"{source} is no film that can be read, or its sound does not fit into {target.suffix}: try .mkv ({error})."
            ) from error


def _copy(
    given: InputContainer, made: OutputContainer, size: tuple[int, int], frames: FrameRestorer, progress: Progress
) -> None:
    pictures = given.streams.video[0]
    pictures.thread_type = "AUTO"
    sounds = given.streams.audio[0] if given.streams.audio else None
    coded = made.add_stream("libx264", rate=pictures.average_rate or 25, options=_X264)
    coded.pix_fmt = "yuv420p"
    coded.height, coded.width = size
    coded.codec_context.colorspace, coded.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
    if pictures.time_base is not None:
        coded.codec_context.time_base = pictures.time_base  # frames keep their times, however uneven
    copied = None if sounds is None else made.add_stream_from_template(sounds)
    for packet in given.demux([stream for stream in (pictures, sounds) if stream is not None]):
        if copied is not None and packet.stream is sounds:
            if packet.dts is not None:
                packet.stream = copied
                made.mux(packet)
            continue
        for frame in packet.decode():
            if not isinstance(frame, VideoFrame):
                continue
            whole = frames.frame(turned_frame(frame))
            even = np.ascontiguousarray(whole[: coded.height, : coded.width])
            picture = VideoFrame.from_ndarray(to_i420(even).reshape(-1, coded.width), format="yuv420p")
            picture.colorspace, picture.color_range = Colorspace.ITU601, ColorRange.MPEG
            picture.pts, picture.time_base = frame.pts, frame.time_base
            made.mux(coded.encode(picture))
            progress(1)
    made.mux(coded.encode(None))


def _format(target: Path) -> str:
    return {".mkv": "matroska", ".mov": "mov"}.get(target.suffix.lower(), "mp4")


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A name beside the target to write to; what is there at the end becomes the target, and after an error nothing does."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="CLIP", help="a picture or a video with faces")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help=f"{', '.join(FILMS)}, or of a picture .png, .jpg",
    )
    parser.add_argument(
        "--strength", type=float, default=0.8, help="how much of the restored faces is taken, 0 … 1 (default: 0.8)"
    )

    parser.add_argument(
        "--network",
        type=Path,
        default=None,
        metavar="FILE",
        help="another ONNX file that takes and gives an aligned face of 3×512×512 (default: GFPGAN's of MODELS_DIR)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 refused (code and sentence on stderr), 2 wrong usage, 130 interrupted. No part of a
    file is left."""
    still = args.source.suffix.lower() in PICTURES
    if wrong := _wrong(args, still):
        print(f"restore: {wrong}", file=sys.stderr)
        return 2
    try:
        store = ModelStore(offline_settings().models_dir, Manifest.load())
        restorer = FaceRestorer(store, args.network)
        frames = FrameRestorer(FaceNet(store), restorer, args.strength)
        if still:
            restore_picture(args.source, args.output, frames)
        else:
            with tqdm(unit=" frames", desc="restore", file=sys.stderr, leave=False) as bar:
                restore_film(args.source, args.output, frames, bar.update)
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except (VideoUnreadable, OSError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("restore: interrupted; nothing was written.", file=sys.stderr)
        return 130
    done = frames.done
    where = "a card" if restorer.on_card else "the processor"
    print(f"{args.output}: faces restored in {done.restored} of {done.frames} frames, on {where}")
    if done.large:
        print(
            f"! {done.large} faces were left as they are: they have more pixels than the network makes", file=sys.stderr
        )
    return 0


def _wrong(args: argparse.Namespace, still: bool) -> str | None:
    """Why it cannot be begun; None when it can."""
    kinds = PICTURES if still else FILMS
    if args.output.suffix.lower() not in kinds:
        return f"{args.output} does not end in one of {', '.join(kinds)}."
    if not 0 <= args.strength <= 1:
        return f"--strength {args.strength}: give 0 … 1."
    if not args.source.is_file():
        return f"{args.source} is no file."
    if args.output.exists() and args.output.samefile(args.source):
        return f"{args.output} would be written over its own source."
    return None
