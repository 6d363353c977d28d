"""The time line of a push: gaps become silence, late sound is kept, what cannot be heard any more is left out."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.media_types import Pcm
from musetalk_agent.publishers.stream.encoder import Codecs, QueuedAudio, QueuedFrame, StreamEncoder, StreamShape
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


def encode(path: Path, items: list[QueuedAudio | QueuedFrame]) -> Received:
    with av.open(str(path), "w", format="flv") as container:
        encoder = StreamEncoder(container, StreamShape(64, 64, 25, 200_000), CODECS)
        encoder.open()
        for item in items:
            if isinstance(item, QueuedAudio):
                encoder.play(item)
            else:
                encoder.show(item)
        encoder.finish()
    return read(path)


def pictures(begin: float, end: float) -> list[QueuedAudio | QueuedFrame]:
    return [QueuedFrame(at, picture(90, 64)) for at in np.arange(begin, end, 0.04)]


@pytest.mark.parametrize(
    ("offered", "heard"),
    [
        ([0.5], 0.5),  # in time
        ([0.49], 0.49),
        ([0.39], 0.48),  # 90 ms late: pictures are at 0.48 already, and it follows whole
    ],
)
def test_sound_is_at_its_time_or_follows_at_once(tmp_path: Path, offered: list[float], heard: float) -> None:
    items = [*pictures(100.0, 100.5), *(QueuedAudio(100.0 + at, tone(0.2)) for at in offered), *pictures(100.52, 101.5)]
    received = encode(tmp_path / "out.flv", items)
    start = received.pictures[0][0]
    assert [onset - start for onset in received.onsets()] == pytest.approx([heard], abs=0.004)
    _, wave = received.wave()
    assert abs(np.sum(np.abs(wave) > 0.05) / RATE / 0.2 - 0.9) < 0.1


def test_blocks_with_a_little_wobble_are_one_sound(tmp_path: Path) -> None:
    wave = tone(1.0)
    items: list[QueuedAudio | QueuedFrame] = []
    for index in range(25):
        block = wave[index * 1920 : (index + 1) * 1920]
        items.append(QueuedAudio(100.0 + index * 0.04 + (0.008 if index % 2 else -0.004), block))
        items.append(QueuedFrame(100.0 + index * 0.04, picture(90, 64)))
    received = encode(tmp_path / "out.flv", items)
    _, heard = received.wave()
    loud = np.flatnonzero(np.abs(heard) > 0.05)
    assert np.diff(loud).max() < 48, "no silence within"


def test_sound_for_a_past_that_is_long_over_is_left_out(tmp_path: Path) -> None:
    received = encode(
        tmp_path / "out.flv", [*pictures(100.0, 101.0), QueuedAudio(100.2, tone(0.5)), *pictures(101.0, 101.2)]
    )
    assert received.onsets() == []


def test_another_size_is_scaled_and_times_go_on(tmp_path: Path) -> None:
    items: list[QueuedAudio | QueuedFrame] = [
        QueuedFrame(100.0 + k * 0.04, picture(40 + 50 * k, 64 if k % 2 else 128)) for k in range(4)
    ]
    received = encode(tmp_path / "out.flv", items)
    start = received.pictures[0][0]
    assert [round(at - start, 2) for at, _, _ in received.pictures] == [0.0, 0.04, 0.08, 0.12]
    assert [round(luma / 50) for _, luma, _ in received.pictures] == [1, 2, 3, 4]


def skews(received: Received) -> list[float]:
    """How much earlier than its burst each flash is shown, in seconds."""
    whites = received.whites()
    return [onset - min(whites, key=lambda white: abs(white - onset)) for onset in received.onsets()]


def flashes(begin: float, seconds: int) -> list[QueuedAudio | QueuedFrame]:
    """A flash with a burst at 0.2 s of each second, and blocks of silence between."""
    items: list[QueuedAudio | QueuedFrame] = []
    for index in range(25 * seconds):
        at = begin + index * 0.04
        flash = index % 25 in (5, 6, 7)
        block = tone(0.04) if flash else np.zeros(1920, np.int16)
        items += [QueuedAudio(at, block), QueuedFrame(at, picture(235 if flash else 16, 64))]
    return items


def test_sound_that_comes_late_stays_in_step_and_silence_gives_the_delay_back(tmp_path: Path) -> None:
    stalled = QueuedFrame(
        101.075, picture(16, 64)
    )  # it fills the sound's line up to there; the sound for it comes after it
    received = encode(tmp_path / "out.flv", [*flashes(100.0, 1), stalled, *flashes(101.0, 6)])
    found = skews(received)
    assert len(found) == 7 and max(abs(skew - found[0]) for skew in found) < 0.012, found
    start = received.pictures[0][0]
    delays = [onset - start - second - 0.2 for second, onset in enumerate(received.onsets())]
    assert 0.02 < delays[1] - delays[0] < 0.08 and abs(delays[-1] - delays[0]) < 0.004, delays
    steps = np.diff([at for at, _, _ in received.pictures])
    assert steps.min() >= 0 and steps[50:].max() < 0.05


def test_a_delay_is_given_back_while_no_sound_is_offered_and_times_go_on_rising(tmp_path: Path) -> None:
    items = [
        *pictures(100.0, 100.5),
        QueuedAudio(100.41, tone(0.2)),
        *pictures(100.52, 101.98),
        QueuedAudio(102.0, tone(0.2)),
    ]
    received = encode(tmp_path / "out.flv", [*items, *pictures(102.0, 102.5)])
    start = received.pictures[0][0]
    first, second = received.onsets()
    assert first - start == pytest.approx(0.48, abs=0.004)
    assert second - start == pytest.approx(2.0, abs=0.004)
    times = [at for at, _, _ in received.pictures]
    steps = np.diff(times)
    assert steps.min() > 0.025 and times[-1] - start == pytest.approx(2.48, abs=0.05)
