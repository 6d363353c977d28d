from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind
from musetalk_agent.avatars.video import open_clip
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Pixels

from .clips import flat, video

LIMITS = AvatarLimits()


def levels(tmp_path: Path, data: bytes, fps: int = 25, kind: MediaKind = MediaKind.MP4) -> list[int]:
    """Grey level of every frame, in steps of 20: which source frame it is."""
    path = tmp_path / "clip"
    path.write_bytes(data)
    return [round(float(frame.mean()) / 20) for frame in frames_of(path, kind, fps)]


def frames_of(
    path: Path, kind: MediaKind = MediaKind.MP4, fps: int = 25, limits: AvatarLimits = LIMITS
) -> list[Pixels]:
    """All frames at the clip's own size."""
    with open_clip(path, kind, fps, limits) as clip:
        return list(clip.frames(clip.size))


def greys(count: int) -> list[np.ndarray]:
    return [flat(20 * k + 20, 96, 80) for k in range(count)]


def test_constant_rate_passes_through(tmp_path: Path) -> None:
    assert levels(tmp_path, video(greys(6))) == [1, 2, 3, 4, 5, 6]


def test_variable_rate_follows_the_timestamps(tmp_path: Path) -> None:
    """At 25 fps frames begin at 0, 40, 80 … ms; each shows the newest source frame at or before it."""
    data = video(greys(5), times_ms=[0, 10, 100, 130, 200])
    assert levels(tmp_path, data)[:6] == [1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize(("fps", "expected"), [(50, [1, 1, 2, 2, 3, 3, 4, 4]), (25, [1, 2, 3, 4])])
def test_rate_of_the_session(tmp_path: Path, fps: int, expected: list[int]) -> None:
    assert levels(tmp_path, video(greys(4)), fps) == expected


def test_a_lower_rate_skips_frames_but_keeps_the_duration(tmp_path: Path) -> None:
    seen = levels(tmp_path, video(greys(10)), 15)  # 400 ms: frames at 0, 67, 133, 200, 267, 333 ms
    assert seen == [1, 2, 4, 6, 7, 9]


def test_a_repeated_frame_is_the_same_array(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video(greys(2)))
    frames = frames_of(path, fps=50)
    assert frames[0] is frames[1] and frames[1] is not frames[2]


@pytest.mark.parametrize(
    ("kind", "container", "codec"),
    [
        (MediaKind.WEBM, "webm", "libvpx"),
        (MediaKind.WEBM, "webm", "libvpx-vp9"),
        (MediaKind.MP4, "mov", "libx264"),
        (MediaKind.MP4, "mp4", "libx265"),
        (MediaKind.MPEG, "mpeg", "mpeg1video"),
    ],
)
def test_containers(tmp_path: Path, kind: MediaKind, container: str, codec: str) -> None:
    seen = levels(tmp_path, video(greys(6), container=container, codec=codec), kind=kind)
    assert seen[0] == 1 and seen[-1] == 6 and 5 <= len(seen) <= 7


def test_rotation_is_honoured(tmp_path: Path) -> None:
    picture = flat(40, 128, 96)
    picture[:48, :64] = 200  # bright at the top left
    path = tmp_path / "clip"
    path.write_bytes(video([picture] * 3, clockwise=90))
    frame = frames_of(path)[0]
    assert frame.shape == (128, 96, 3)
    assert frame[:60, 52:].mean() > 180 and frame[:60, :44].mean() < 60  # now at the top right


def test_length_limit_is_read_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video(greys(3), times_ms=[0, 40, 70_000]))
    with pytest.raises(AvatarTooLarge, match="60 s"):
        frames_of(path)[0]


def test_pixel_limit(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video(greys(3)))
    with pytest.raises(AvatarTooLarge, match="96×80"):
        frames_of(path, limits=AvatarLimits(picture_pixels=96 * 80 - 1))


def test_codecs_that_nobody_films_in_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video(greys(3), container="matroska", codec="ffv1"))
    with pytest.raises(AvatarUndecodable, match=r"ffv1.*export it as H\.264") as refused:
        frames_of(path, MediaKind.WEBM)
    assert refused.value.value == "ffv1"


def test_a_camera_s_sound_counts_little_in_the_index(tmp_path: Path) -> None:
    """Uncompressed sound has a sample of its own for each 1/48,000 s, more in ten seconds than any index of pictures may list."""
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w", format="mov") as file:
        pictures = file.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 96, "yuv420p"
        sound = file.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        for k in range(250):
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(np.full((96, 96, 3), k, np.uint8), format="bgr24")))
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
            piece.sample_rate = 48_000
            file.mux(sound.encode(piece))
        file.mux(pictures.encode(None))
    assert 10 * 48_000 > AvatarLimits().video_samples
    assert len(frames_of(path)) == 250
