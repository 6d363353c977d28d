"""The time line of a push: gaps become silence, late sound is kept, what cannot be heard any more is left out."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.media import Pcm
from musetalk_agent.publishers.stream_encoder import Codecs, Shape, StreamEncoder
from musetalk_agent.publishers.stream_queue import Picture, Sound
from tests.musetalk_agent.publishers.feed import picture
from tests.servers.puller import RATE, Received, read

CODECS = Codecs(
    video={"preset": "ultrafast", "tune": "zerolatency"},
    audio="aac",
    channels=1,
    audio_bitrate=128_000,
    audio_options={},
    keyframe_s=2.0,
)


def tone(seconds: float) -> Pcm:
    return (10_000 * np.sin(2 * np.pi * 1000 * np.arange(int(seconds * RATE)) / RATE)).astype(np.int16)


def encode(path: Path, items: list[Sound | Picture]) -> Received:
    with av.open(str(path), "w", format="flv") as container:
        encoder = StreamEncoder(container, Shape(64, 64, 25, 200_000), CODECS)
        encoder.open()
        for item in items:
            if isinstance(item, Sound):
                encoder.play(item)
            else:
                encoder.show(item)
        encoder.finish()
    return read(path)


def pictures(begin: float, end: float) -> list[Sound | Picture]:
    return [Picture(at, picture(90, 64)) for at in np.arange(begin, end, 0.04)]


@pytest.mark.parametrize(
    ("offered", "heard"),
    [
        ([0.5], 0.5),  # in time
        ([0.49], 0.49),
        ([0.39], 0.48),  # 90 ms late: pictures are at 0.48 already, and it follows whole
    ],
)
def test_sound_is_at_its_time_or_follows_at_once(tmp_path: Path, offered: list[float], heard: float) -> None:
    items = [*pictures(100.0, 100.5), *(Sound(100.0 + at, tone(0.2)) for at in offered), *pictures(100.52, 101.5)]
    received = encode(tmp_path / "out.flv", items)
    start = received.pictures[0][0]
    assert [onset - start for onset in received.onsets()] == pytest.approx([heard], abs=0.004)
    _, wave = received.wave()
    assert abs(np.sum(np.abs(wave) > 0.05) / RATE / 0.2 - 0.9) < 0.1


def test_blocks_with_a_little_wobble_are_one_sound(tmp_path: Path) -> None:
    wave = tone(1.0)
    items: list[Sound | Picture] = []
    for index in range(25):
        block = wave[index * 1920 : (index + 1) * 1920]
        items.append(Sound(100.0 + index * 0.04 + (0.008 if index % 2 else -0.004), block))
        items.append(Picture(100.0 + index * 0.04, picture(90, 64)))
    received = encode(tmp_path / "out.flv", items)
    _, heard = received.wave()
    loud = np.flatnonzero(np.abs(heard) > 0.05)
    assert np.diff(loud).max() < 48, "no silence within"


def test_sound_for_a_past_that_is_long_over_is_left_out(tmp_path: Path) -> None:
    received = encode(tmp_path / "out.flv", [*pictures(100.0, 101.0), Sound(100.2, tone(0.5)), *pictures(101.0, 101.2)])
    assert received.onsets() == []


def test_another_size_is_scaled_and_times_go_on(tmp_path: Path) -> None:
    items: list[Sound | Picture] = [
        Picture(100.0 + k * 0.04, picture(40 + 50 * k, 64 if k % 2 else 128)) for k in range(4)
    ]
    received = encode(tmp_path / "out.flv", items)
    start = received.pictures[0][0]
    assert [round(at - start, 2) for at, _, _ in received.pictures] == [0.0, 0.04, 0.08, 0.12]
    assert [round(luma / 50) for _, luma, _ in received.pictures] == [1, 2, 3, 4]
