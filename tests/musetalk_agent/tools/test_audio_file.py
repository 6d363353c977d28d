"""Sound files of every kind: as many samples as they have, at their rate and with their channels; a sentence for what is none."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.tools.audio_file import KEPT_RATES, AudioFile, AudioUnreadable, mono


def tone(rate: int, seconds: float, channels: int = 1) -> NDArray[np.int16]:
    """int16 `[n, channels]`, another pitch on each channel."""
    t = np.arange(round(rate * seconds)) / rate
    waves = [8000 * np.sin(2 * np.pi * 300 * (channel + 1) * t) for channel in range(channels)]
    return np.stack(waves, axis=1).astype(np.int16)


def write(path: Path, samples: NDArray[np.int16], rate: int, codec: str, kind: str, layout: str = "mono") -> Path:
    """Samples in a file, by FFmpeg."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, format=kind)
        whole = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        whole.sample_rate = rate
        size = stream.codec_context.frame_size or 1024
        to = av.AudioResampler(format=kind, layout=layout, rate=rate, frame_size=size)
        for frame in [*to.resample(whole), *to.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def whole(sound: AudioFile) -> NDArray[np.int16]:
    return np.concatenate(list(sound.blocks()))


@pytest.mark.parametrize("rate", [*KEPT_RATES])
def test_a_wav_of_each_rate_that_is_kept_comes_back_to_the_sample(tmp_path: Path, rate: int) -> None:
    samples = tone(rate, 0.31)
    sound = AudioFile.open(write(tmp_path / "a.wav", samples, rate, "pcm_s16le", "s16"))
    assert (sound.rate, sound.channels, sound.samples, sound.start_s) == (rate, 1, len(samples), 0.0)
    assert sound.seconds == len(samples) / rate
    for _ in range(2):  # every call decodes anew
        np.testing.assert_array_equal(whole(sound), samples)


@pytest.mark.parametrize("rate", [6000, 18_000, 37_800, 96_000])
def test_another_rate_becomes_48_khz_of_the_same_length_and_pitch(tmp_path: Path, rate: int) -> None:
    sound = AudioFile.open(write(tmp_path / "a.wav", tone(rate, 0.5), rate, "pcm_s16le", "s16"))
    assert sound.rate == 48_000 and sound.seconds == pytest.approx(0.5, abs=0.002)
    made = whole(sound)[:, 0].astype(float)
    assert len(made) == sound.samples
    spectrum = np.abs(np.fft.rfft(made[4000:20_000] * np.hanning(16_000)))
    assert int(spectrum.argmax()) * 48_000 / 16_000 == pytest.approx(300, abs=3)


@pytest.mark.parametrize(
    ("name", "codec", "kind", "tolerance"),
    [
        ("a.wav", "pcm_u8", "u8", 260),
        ("a.wav", "pcm_s24le", "s32", 1),
        ("a.wav", "pcm_f32le", "flt", 1),
        ("a.flac", "flac", "s16", 0),
        ("a.mka", "pcm_s16be", "s16", 0),
    ],
)
def test_other_wrappings_have_the_same_samples(
    tmp_path: Path, name: str, codec: str, kind: str, tolerance: int
) -> None:
    samples = tone(16_000, 0.4, 2)
    sound = AudioFile.open(write(tmp_path / name, samples, 16_000, codec, kind, "stereo"))
    assert (sound.channels, sound.samples) == (2, len(samples))
    assert np.abs(whole(sound).astype(int) - samples).max() <= tolerance


def test_a_voice_is_the_mean_of_its_channels_and_of_more_than_two_stereo_is_left(tmp_path: Path) -> None:
    stereo = np.stack([np.full(4800, 6000), np.full(4800, 2000)], axis=1).astype(np.int16)
    mixed = mono(AudioFile.open(write(tmp_path / "a.wav", stereo, 48_000, "pcm_s16le", "s16", "stereo")), 48_000)
    assert mixed.shape == (4800,) and np.abs(mixed.astype(int) - 4000).max() <= 2
    surround = AudioFile.open(write(tmp_path / "b.wav", tone(48_000, 0.2, 6), 48_000, "pcm_s16le", "s16", "5.1"))
    assert surround.channels == 2 and whole(surround).shape == (9600, 2)


@pytest.mark.parametrize(("rate", "to"), [(8000, 16_000), (48_000, 16_000), (44_100, 16_000)])
def test_a_voice_has_the_length_of_its_file_at_any_rate(tmp_path: Path, rate: int, to: int) -> None:
    sound = AudioFile.open(write(tmp_path / "a.wav", tone(rate, 0.7), rate, "pcm_s16le", "s16"))
    made = mono(sound, to)
    assert made.dtype == np.int16 and len(made) == pytest.approx(0.7 * to, abs=20)
    assert 5000 < float(np.abs(made[2000:-2000].astype(float)).max()) < 9000


def test_a_lossy_file_s_length_is_what_its_blocks_give(tmp_path: Path) -> None:
    sound = AudioFile.open(write(tmp_path / "a.mp3", tone(24_000, 0.8), 24_000, "libmp3lame", "s16p"))
    assert sound.rate == 24_000 and len(whole(sound)) == sound.samples
    assert sound.seconds == pytest.approx(0.8, abs=0.1)


def empty_wav(path: Path) -> Path:
    """A header that promises nothing, and nothing."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    return path


def silent_film(path: Path) -> Path:
    """Pictures without sound."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="bgr24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path, "cannot be read: No such file or directory"),
        (lambda path: (path.mkdir(), path)[1], "cannot be read: Is a directory"),
        (lambda path: (path.write_bytes(b""), path)[1], "is no sound file that can be read, or it is damaged"),
        (lambda path: (path.write_bytes(b"RIFF" + bytes(500)), path)[1], "is no sound file"),
        (lambda path: (path.write_text("hello " * 200), path)[1], "is no sound file"),
        (silent_film, "has no sound track"),
        (empty_wav, "no sound"),
    ],
    ids=["absent", "a folder", "empty", "a header alone", "a text", "a silent film", "no sample"],
)
def test_what_is_no_sound_has_a_sentence_with_its_name(tmp_path: Path, make, says: str) -> None:  # type: ignore[no-untyped-def]  # a table of makers
    path = make(tmp_path / "a.avi" if make is silent_film else tmp_path / "a.wav")
    with pytest.raises(AudioUnreadable) as refused:
        AudioFile.open(path)
    assert str(refused.value).startswith(f"{path} ") and says in str(refused.value)


def test_a_file_that_is_gone_when_it_is_decoded_again_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(16_000, 0.1), 16_000, "pcm_s16le", "s16")
    sound = AudioFile.open(path)
    path.unlink()
    with pytest.raises(AudioUnreadable, match="cannot be read"):
        whole(sound)
