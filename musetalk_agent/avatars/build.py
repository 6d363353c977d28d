"""Builds a bundle's folder from the source's bytes: decode → scale → follow the face → crop → windows → report.

Everything after the scaling works on pixels of the image that is shown, never on the clip's own.
Frames go through one at a time, so that a minute of 720p needs no more memory than a second of it. Images of a zip are
decoded ahead by a few threads; everything else happens in the caller's, which is a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.bundle import RELIEF_FILE, TRUST_FILE, ArrayWriter, read_rows, write_head
from musetalk_agent.avatars.clip_alpha import ClipAlpha, colours
from musetalk_agent.avatars.eyelids import Blink
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.face_track import TEMPLES, FaceTrack, FaceTracker, finish_track
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import PICTURES, VIDEOS, MediaKind, sniff_file
from musetalk_agent.avatars.picture_clips import animation_of, choose_frames, zip_frames
from musetalk_agent.avatars.picture_decoder import Size, TargetSize, decode_picture
from musetalk_agent.avatars.quality_report import make_report
from musetalk_agent.avatars.video import VideoClip, open_clip
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.protocol.http import AvatarWarning, Picture

if TYPE_CHECKING:
    from musetalk_agent.avatars.decoder_pool import Progress

_CLOSURES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far the eyes are closed in the frames of a still picture."""

Warnings = Sequence[tuple[str, str]]
"""Codes and sentences."""


@dataclass(frozen=True)
class Job:
    """One bundle to build.

    Args:
        source: file with the clip's bytes.
        avatar_id: `sha256:…` or `demo`, for the report.
        key: the bundle's key.
        image: size and rate that were asked for.
        limits: what it may cost.
        decoders: threads that decode images.
        progress: called after each frame, in the building thread.
        allow: called with the pixels of a frame before anything of its size is decoded or made, in any thread.
    """

    source: Path
    avatar_id: str
    key: str
    picture: Picture
    limits: AvatarLimits
    decoders: Executor
    progress: Progress
    allow: Callable[[int], object]


def build(job: Job, net: FaceNet, folder: Path) -> None:
    """Writes a bundle into `folder`, which exists and is empty.

    Raises:
        AvatarError: the clip cannot be used.
        MemoryError: it needs more than there is.
    """
    kind = sniff_file(job.source)
    if kind is MediaKind.ZIP:
        _build_zip(job, net, folder)
    elif kind in PICTURES:
        _build_picture(job, net, folder, job.source.read_bytes(), "the picture", ())
    elif kind in VIDEOS:
        with open_clip(job.source, kind, job.picture.fps, job.limits, job.allow, keep_alpha=True) as clip:
            _build_video(job, net, folder, clip)
    else:
        raise AvatarUndecodable(
            f"This is neither a zip of pictures nor a video nor a picture that is read here: it looks like {kind.value}.",
            value=kind.value,
        )


def _target(job: Job) -> TargetSize:
    """The size that images are scaled down to as they are decoded: the one that is shown, before it is cropped."""

    def scaled(size: Size) -> Size:
        wanted = framing.fit(size, job.picture.width, job.picture.height, job.limits).scaled
        whole = size[0] - wanted[0] <= 1 and size[1] - wanted[1] <= 1
        return size if whole else wanted

    return scaled


def _build_zip(job: Job, net: FaceNet, folder: Path) -> None:
    with closing(FrameArchive(job.source, job.limits)) as archive:
        chosen = choose_frames(archive, job.limits)
        if len(chosen.names) == 1:
            name = chosen.names[0]
            _build_picture(job, net, folder, archive.read(name), name, chosen.warnings)
            return
        with closing(zip_frames(archive, chosen.names, job.limits, _target(job), job.allow, job.decoders)) as frames:
            first = next(frames)
            pixels = (frame.pixels for frame in chain([first], frames))
            _build_clip(job, net, folder, pixels, len(chosen.names), first.size, lambda: chosen.warnings)


def _build_picture(job: Job, net: FaceNet, folder: Path, data: bytes, name: str, warnings: Warnings) -> None:
    """An image that moves becomes a clip of its own frames, any other a still."""
    animation = animation_of(data, name, job.limits, job.allow, keep_alpha=True)
    if animation is not None:
        frames = animation.frames(job.picture.fps, _target(job))
        _build_clip(job, net, folder, frames, 0, animation.size, lambda: warnings)
        return
    picture = decode_picture(data, name, job.limits, target=_target(job), allow=job.allow, keep_alpha=True)
    _build_still(job, net, folder, picture.pixels, picture.size, warnings)


def _build_video(job: Job, net: FaceNet, folder: Path, clip: VideoClip) -> None:
    """A clip of frames that are scaled while they are decoded; one frame becomes a still."""
    shape = framing.fit(clip.size, job.picture.width, job.picture.height, job.limits)
    with closing(clip.frames(shape.scaled)) as frames:
        first = next(frames)
        same, second = 1, next(frames, None)
        while second is first:
            same, second = same + 1, next(frames, None)
        if second is None:
            warning = ("single_frame", "The video has one frame; it is shown as a still picture that moves a little.")
            _build_still(job, net, folder, first, clip.size, [*clip.warnings, warning])
            return
        rest = chain(repeat(first, same), [second], frames)
        _build_clip(job, net, folder, rest, 0, clip.size, lambda: clip.warnings)


def _build_clip(
    job: Job,
    net: FaceNet,
    folder: Path,
    frames: Iterator[Pixels],
    total: int,
    clip: tuple[int, int] | None = None,
    warnings: Callable[[], Warnings] = lambda: (),
) -> None:
    """Writes the bundle of `frames`.

    Args:
        total: how many will come; 0 where that is not known.
        clip: width and height of the clip where its frames come scaled; None for the first frame's.
        warnings: called after the last frame, for what is to be reported beside what the frames show.
    """
    tracker, alpha = FaceTracker(net), ClipAlpha(folder)
    shape: framing.Fit | None = None
    last: tuple[Pixels, Pixels, Pixels] | None = None
    with closing(alpha), closing(ArrayWriter(folder / "scaled.npy")) as writer:
        for pixels in frames:
            if clip is None:
                clip = (pixels.shape[1], pixels.shape[0])
            if shape is None:
                shape = framing.fit(clip, job.picture.width, job.picture.height, job.limits)
                job.allow(shape.scaled[0] * shape.scaled[1])
            _check_length(tracker, shape, job.limits)
            if last is None or pixels is not last[0]:
                small = framing.scale(pixels, shape)
                shown = colours(small)
                last, planes = (pixels, small, shown), framing.to_i420(shown)
            alpha.take(last[1])
            tracker.push(last[2])  # the same array for a frame that is shown again
            writer.append(planes)
            job.progress("frames", writer.rows, total)
    if clip is None or shape is None:
        raise AvatarEmpty("The clip has no frame in it.")
    _finish(job, folder, finish_track(tracker, job.picture.fps), clip, shape, warnings(), alpha)


def _build_still(
    job: Job,
    net: FaceNet,
    folder: Path,
    pixels: Pixels,
    clip: tuple[int, int] | None = None,
    warnings: Warnings = (),
) -> None:
    """Writes the bundle of an image, which is of a clip of `clip` (width, height) pixels where it comes scaled.

    Its frames are the image with its eyes closed by degrees; what moves its head is made as it is shown (`compose.face_warp`).
    """
    clip = clip or (pixels.shape[1], pixels.shape[0])
    shape = framing.fit(clip, job.picture.width, job.picture.height, job.limits)
    job.allow(shape.scaled[0] * shape.scaled[1])
    pixels = framing.scale(pixels, shape)
    tracker, alpha = FaceTracker(net), ClipAlpha(folder)
    tracker.push(colours(pixels))
    found = finish_track(tracker, job.picture.fps)
    face = tracker.observations[0].face
    assert face is not None and face.depths is not None  # else `finish_track` had raised
    np.save(folder / RELIEF_FILE, _relief(face.depths), allow_pickle=False)
    blink = Blink(np.ascontiguousarray(pixels[..., :3]), found.points[0])
    closures = _CLOSURES if blink.sees_eyes else _CLOSURES[:1]
    with closing(alpha), closing(ArrayWriter(folder / "scaled.npy")) as writer:
        for closure in closures:
            frame = cast("Pixels", np.dstack([blink.closed(closure), pixels[..., 3:]]))
            alpha.take(frame)
            writer.append(framing.to_i420(colours(frame)))
            job.progress("frames", writer.rows, len(closures))
    covered = list(range(len(closures))) if found.covered else []
    track = replace(found, points=np.repeat(found.points, len(closures), 0), covered=covered)
    _finish(job, folder, track, clip, shape, warnings, alpha, still_picture=True)


def _relief(depths: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much nearer to the viewer than the temples the points of a mesh are, float32 `[468]` in pixels."""
    temples = [point for side in TEMPLES for point in side]
    return np.asarray(depths - depths[temples].mean(), np.float32)


def _check_length(tracker: FaceTracker, shape: framing.Fit, limits: AvatarLimits) -> None:
    frames = len(tracker.observations) + 1
    if frames > limits.frames:
        raise AvatarTooLarge(f"The clip has more than {limits.frames} frames.", limit=limits.frames)
    if frames * shape.scaled[0] * shape.scaled[1] * 3 // 2 > limits.bundle_bytes:
        raise AvatarTooLarge(
            f"The clip is too long for its size: its frames would take more than {limits.bundle_bytes} bytes.",
            limit=limits.bundle_bytes,
        )


def _finish(
    job: Job,
    folder: Path,
    track: FaceTrack,
    clip: tuple[int, int],
    shape: framing.Fit,
    warnings: Warnings,
    alpha: ClipAlpha,
    *,
    still_picture: bool = False,
) -> None:
    """Takes the shot out of what was scaled, crops it, cuts the face windows and writes the head.

    `track` is in pixels of the scaled image.
    """
    points = track.points
    if shape.crops or (not still_picture and len(points) < track.total):
        points = _crop(folder, points, shape, track.start, alpha)
    else:
        (folder / "scaled.npy").rename(folder / "frames.npy")
        alpha.finish(0, len(points), Box(0, 0, shape.width, shape.height))
    write_faces(folder, points, (shape.width, shape.height), partial(job.progress, "faces"))
    np.save(folder / "mouths.npy", track.mouths(), allow_pickle=False)
    if track.trust is not None:
        trust = np.broadcast_to(track.trust, len(track.points)) if len(track.trust) == 1 else track.trust
        np.save(folder / TRUST_FILE, trust, allow_pickle=False)
    track = replace(track, points=framing.to_clip(track.points, clip, shape))
    made = make_report(job.avatar_id, track, clip, (shape.width, shape.height), job.picture.fps, still_picture)
    made.warnings[:0] = [AvatarWarning(code=code, message=message) for code, message in warnings]
    write_head(folder, job.key, job.picture.fps, made)


def _crop(
    folder: Path, points: NDArray[np.float32], shape: framing.Fit, start: int, alpha: ClipAlpha
) -> NDArray[np.float32]:
    """Cuts the image's part out of the frames of the shot that begins at `start`; returns the points in that part's pixels."""
    left, top = framing.crop_corner(points, shape)
    box = Box(left, top, left + shape.width, top + shape.height)
    with closing(ArrayWriter(folder / "frames.npy")) as writer:
        for frame in read_rows(folder / "scaled.npy", start, len(points)):
            writer.append(framing.crop_i420(frame, shape.scaled, box))
    alpha.finish(start, len(points), box)
    (folder / "scaled.npy").unlink()
    return points - np.array([left, top], np.float32)


def write_faces(
    folder: Path,
    points: NDArray[np.float32],
    size: tuple[int, int],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Writes landmarks, face windows and their pixels beside `frames.npy`, whose frames have `size` (width, height).

    Raises OSError.
    """
    width, height = size
    boxes = framing.face_windows(points, width, height)
    np.save(folder / "landmarks.npy", points.astype(np.float32), allow_pickle=False)
    np.save(folder / "boxes.npy", boxes, allow_pickle=False)
    frames = read_rows(folder / "frames.npy")
    with closing(ArrayWriter(folder / "faces.npy")) as writer:
        for k, (frame, corners) in enumerate(zip(frames, boxes, strict=True)):
            window = framing.crop_i420(frame, size, Box(*(int(v) for v in corners)))
            writer.append(framing.to_bgr(window))
            progress(k + 1, len(boxes))
