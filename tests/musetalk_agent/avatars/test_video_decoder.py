"""How many threads decode a video: each holds frames of its own, so large ones have fewer."""

from __future__ import annotations

import os

import av
import pytest

from musetalk_agent.avatars.video_decoder import threads


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "count"),
    [
        ("h264", "yuv420p", (1920, 1080), 4),
        ("h264", "yuv420p", (3840, 2160), 4),
        ("hevc", "yuv420p10le", (3840, 2160), 2),
        ("h264", "yuv420p", (4096, 4096), 1),
        ("h264", "yuv444p", (4096, 4096), 1),
        ("hevc", None, (4096, 4096), 4),
    ],
)
def test_threads_share_fifty_megabytes_of_frames(
    codec: str, pix_fmt: str | None, size: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = av.VideoCodecContext.create(codec, "r")
    context.width, context.height = size
    if pix_fmt is not None:
        context.pix_fmt = pix_fmt
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert threads(context) == count
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert threads(context) == min(2, count)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads(context) == 1
