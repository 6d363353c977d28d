"""A film's sound: read from any sample on, lengthened, and replaced whole or not at all."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musetalk_agent.media_types import FEATURE_RATE, Pcm
from musetalk_agent.renders.sounds import FeatureSound, Sound, lengthen, write_sound
from musetalk_agent.tools.audio_file import AudioUnreadable
from tests.musetalk_agent.tools.test_render_film import write_wav


def hum(seconds: float, rate: int, channels: int = 1) -> Pcm:
    """Two tones that beat, so that no stretch is like another; a second channel is silent."""
    at = np.arange(round(seconds * rate)) / rate
    tones = (6000 * (np.sin(2 * np.pi * 220 * at) + np.sin(2 * np.pi * (300 + 90 * at) * at))).astype(np.int16)
    return tones if channels == 1 else np.stack([tones, np.zeros_like(tones)], 1)


def samples_of(sound: Sound) -> Pcm:
    return np.concatenate(list(sound.blocks()))


def test_a_sound_says_what_it_is_and_gives_every_sample(tmp_path: Path) -> None:
    tones = hum(1.5, 44_100, channels=2)
    sound = Sound.open(write_wav(tmp_path / "a.wav", tones, 44_100))
    assert (sound.rate, sound.channels, sound.samples, sound.seconds) == (44_100, 2, 66_150, 1.5)
    assert np.array_equal(samples_of(sound), tones)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all, but some words"])
def test_a_file_that_is_no_sound_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioUnreadable, match=str(path)):
        Sound.open(path)


def test_a_file_that_is_not_there_or_empty_or_has_too_many_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioUnreadable, match="No such file"):
        Sound.open(tmp_path / "none.wav")
    for name, tones in (("empty", np.zeros(0, np.int16)), ("surround", np.zeros((100, 6), np.int16))):
        with pytest.raises(AudioUnreadable, match="no int16 sound"):
            Sound.open(write_wav(tmp_path / f"{name}.wav", tones, 8000))


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 1), (44_100, 2), (8_000, 1)])
def test_any_stretch_is_that_of_the_whole(tmp_path: Path, rate: int, channels: int) -> None:
    """Read from the middle on, a resampler that has only just begun gives what one has that heard all of it."""
    sound = Sound.open(write_wav(tmp_path / "a.wav", hum(2.0, rate, channels), rate))
    whole_reader, reader = FeatureSound(sound), FeatureSound(sound)
    try:
        whole = whole_reader.read(0, 2 * FEATURE_RATE)
        assert len(whole) == 2 * FEATURE_RATE
        for start, end in ((0, 640), (640, 1280), (20_000, 20_640), (31_900, 32_000), (5, 50), (16_000, 32_000)):
            part = reader.read(start, end)
            assert len(part) == end - start
            # the place of a sample is rounded to one of the file's, of which 8 kHz has few
            assert np.abs(part.astype(int) - whole[start:end]).max() <= (4000 if rate == 44_100 else 2)
    finally:
        whole_reader.close()
        reader.close()
        reader.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12))
def test_pieces_that_follow_each_other_are_the_whole_to_its_end(tmp_path: Path, pieces: list[int]) -> None:
    path = tmp_path / "a.wav"
    if not path.exists():
        write_wav(path, hum(1.0, 24_000), 24_000)
    sound, at, got = Sound.open(path), 0, list[Pcm]()
    for reader in (FeatureSound(sound), FeatureSound(sound)):
        if not got:
            got.append(reader.read(0, 10 * FEATURE_RATE))
        else:
            for size in pieces:
                got.append(reader.read(at, at + size))
                at += size
        reader.close()
    assert len(got[0]) == FEATURE_RATE, "fewer than were asked for, where the sound ends"
    assert np.array_equal(np.concatenate(got[1:]), got[0][:at])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_lengthened_with_silence_and_never_shortened(tmp_path: Path, channels: int) -> None:
    tones = hum(0.5, 8000, channels)
    path = write_wav(tmp_path / "a.wav", tones, 8000)
    lengthen(path, 3000)
    assert np.array_equal(samples_of(Sound.open(path)), tones.reshape(-1, channels))
    lengthen(path, 10_000)
    made = samples_of(Sound.open(path))
    assert made.shape == (10_000, channels)
    assert np.array_equal(made[:4000], tones.reshape(-1, channels)) and not made[4000:].any()
    assert [each.name for each in tmp_path.iterdir()] == ["a.wav"]


def test_a_full_disk_leaves_the_sound_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", hum(0.5, 8000), 8000)
    before = path.read_bytes()

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wave.Wave_write, "writeframesraw", full)
    with pytest.raises(OSError, match="No space left"):
        lengthen(path, 10_000)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.wav"]


def test_a_sound_is_taken_up_to_the_longest_and_its_target_is_whole_or_not_there(tmp_path: Path) -> None:
    source, target = write_wav(tmp_path / "in.wav", hum(1.0, 22_050, 2), 22_050), tmp_path / "out.wav"
    with pytest.raises(AudioUnreadable, match=r"The sound has 1 s; a film has at most 0.5 s\."):
        write_sound(source, target, 0.5)
    assert not target.exists()
    made = write_sound(source, target, 1.0)
    assert (made.rate, made.channels, made.samples) == (22_050, 2, 22_050)
    assert np.array_equal(samples_of(made), hum(1.0, 22_050, 2))
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioUnreadable):
        write_sound(tmp_path / "text.wav", target, 1.0)
    assert np.array_equal(samples_of(Sound.open(target)), hum(1.0, 22_050, 2)), "what was there stays"
