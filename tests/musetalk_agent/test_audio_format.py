"""PCM that is not what it claims to be is told apart; PCM that is, is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.audio_format import FormatWatch, compressed_header
from musetalk_agent.protocol.diagnosis import Suspicion

RATE = 16_000


def voice(seconds: float = 3.0) -> np.ndarray:
    """A buzz with formants, syllables and some breath: like speech in what the tests look at."""
    rng, t = np.random.default_rng(3), np.arange(int(RATE * seconds)) / RATE
    pitch = 2 * np.pi * np.cumsum(110 + 20 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 25))
    sound = buzz * (0.55 + 0.45 * np.sin(2 * np.pi * 3.5 * t)) + 0.05 * rng.standard_normal(len(t))
    return (6000 * sound).astype(np.int16)


def judge(samples: np.ndarray, rate: int = RATE, pace: float = 1.0) -> list[Suspicion]:
    watch, found = FormatWatch(rate), []
    for at in range(0, len(samples), 640):
        arisen = watch.push(samples[at : at + 640], pace * at / rate)
        if arisen:
            found.append(arisen)
    return found


@pytest.mark.parametrize("gain", [0.1, 1.0, 3.0])
def test_speech_is_left_alone(gain: float) -> None:
    assert judge(np.clip(voice(8) * gain, -32768, 32767).astype(np.int16)) == []


@pytest.mark.parametrize("hz", [100, 440, 2000, 6000])
def test_tones_and_noise_are_left_alone(hz: float) -> None:
    assert judge((16000 * np.sin(2 * np.pi * hz * np.arange(3 * RATE) / RATE)).astype(np.int16)) == []
    assert judge((3000 * np.random.default_rng(0).standard_normal(3 * RATE)).astype(np.int16)) == []


def test_each_wrong_format_has_its_name() -> None:
    speech = voice()
    as_floats = (speech.astype("<f4") / 32768).view("<i2").copy()
    assert judge(as_floats) == [Suspicion.FLOAT32]
    assert judge(as_floats[1:]) == [Suspicion.FLOAT32]
    assert judge(speech.byteswap()) == [Suspicion.BYTE_SWAPPED]
    assert judge(np.repeat(speech, 2)) == [Suspicion.STEREO]
    two_channels = np.stack([speech, np.roll(speech, 3000) // 2], 1).reshape(-1)
    assert judge(two_channels) == [Suspicion.STEREO]


def test_a_live_sender_at_another_rate_is_told_by_its_pace() -> None:
    assert judge(voice(20), pace=1 / 3) == [Suspicion.WRONG_RATE]  # 48 kHz declared as 16 kHz
    assert judge(voice(20), pace=1 / 5.3) == []  # a fast TTS keeps no common rate


def test_file_headers() -> None:
    for head in (b"RIFF\x24\x08", b"OggS\x00\x02", b"fLaC\x00\x00", b"ID3\x04", b"\xff\xfb\x90\x64"):
        assert compressed_header(head)
    assert not compressed_header(b"\x00\x00\x01\x00\xff\xff")
    wav = np.frombuffer(b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(1264), "<i2")
    assert judge(wav) == [Suspicion.COMPRESSED]


def test_silence_takes_no_suspicion_back_and_good_speech_does() -> None:
    watch = FormatWatch(RATE)
    watch.push(voice(1).byteswap(), 0.0)
    assert watch.suspicion is Suspicion.BYTE_SWAPPED
    watch.push(np.zeros(RATE, np.int16), 1.0)
    assert watch.suspicion is Suspicion.BYTE_SWAPPED
    watch.push(voice(1), 2.0)
    assert watch.suspicion is None
