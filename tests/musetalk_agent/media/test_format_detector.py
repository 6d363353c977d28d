"""PCM that is not what it claims to be is distinguished; PCM that is, is left alone."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.features.speech_detector import detect_rate, shipped_network
from musetalk_agent.media.format_detector import Finding, FormatDetector, compressed_header
from musetalk_agent.protocol.http import Suspicion

RATE = 16_000


def voice(seconds: float = 3.0) -> np.ndarray:
    """A buzz with formants, syllables and some breath: like speech in what the tests look at."""
    rng, t = np.random.default_rng(3), np.arange(int(RATE * seconds)) / RATE
    pitch = 2 * np.pi * np.cumsum(110 + 20 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 25))
    sound = buzz * (0.55 + 0.45 * np.sin(2 * np.pi * 3.5 * t)) + 0.05 * rng.standard_normal(len(t))
    return (6000 * sound).astype(np.int16)


def judge(samples: np.ndarray, rate: int = RATE, pace: float = 1.0) -> list[Suspicion]:
    watch, found = FormatDetector(rate), []
    for at in range(0, len(samples), 640):
        arisen = watch.push(samples[at : at + 640], pace * at / rate)
        if arisen:
            found.append(arisen.suspicion)
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


def test_a_live_sender_at_another_rate_is_recognised_by_its_pace() -> None:
    assert judge(voice(20), pace=1 / 3) == [Suspicion.WRONG_RATE]  # 48 kHz declared as 16 kHz
    assert judge(voice(20), pace=1 / 5.3) == []  # a fast TTS keeps no common rate


def test_file_headers() -> None:
    for head in (b"RIFF\x24\x08", b"OggS\x00\x02", b"fLaC\x00\x00", b"ID3\x04", b"\xff\xfb\x90\x64"):
        assert compressed_header(head)
    assert not compressed_header(b"\x00\x00\x01\x00\xff\xff")
    wav = np.frombuffer(b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(1264), "<i2")
    assert judge(wav) == [Suspicion.COMPRESSED]


def joe(rate: int = RATE, gain: float = 0.7) -> np.ndarray:
    """Eight seconds of the voice joe as int16 at a rate."""
    with np.load(Path(__file__).parents[2] / "data" / "spoken_joe.npz") as stored:
        coded = stored["mulaw"] / 127.5 - 1
    sound = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    spectrum, n = np.fft.rfft(sound), len(sound) * rate // RATE
    out = np.zeros(n // 2 + 1, complex)
    kept = min(len(spectrum), len(out))
    out[:kept] = spectrum[:kept]
    sound = np.fft.irfft(out, n)
    return np.round(sound / np.abs(sound).max() * gain * 32767).astype(np.int16)


def as_words(raw: bytes) -> np.ndarray:
    """Bytes as the service reads them."""
    return np.frombuffer(raw[: len(raw) // 2 * 2], "<i2")


def encoded(codec: str, container: str, rate: int) -> bytes:
    """Joe in a file."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(joe(rate)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def g711(law: str) -> bytes:
    """Joe at 8 kHz as the telephone has him."""
    container = av.open(io.BytesIO(encoded(f"pcm_{law}", "wav", 8000)))
    return b"".join(bytes(packet) for packet in container.demux() if packet.size)


def pcm24() -> bytes:
    wide = joe().astype(np.int32) * 256 + np.random.default_rng(1).integers(-128, 128, len(joe()))
    return wide.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def pcm32() -> bytes:
    return (
        (joe().astype(np.int64) * 65536 + np.random.default_rng(1).integers(-32768, 32768, len(joe())))
        .astype("<i4")
        .tobytes()
    )


WRONG = {
    "float32": (lambda: (joe().astype("<f4") / 32768).tobytes(), Suspicion.FLOAT32),
    "big endian": (lambda: joe().byteswap().tobytes(), Suspicion.BYTE_SWAPPED),
    "a byte is missing": (lambda: joe().tobytes()[1:], Suspicion.BYTE_SWAPPED),
    "the same channel twice": (lambda: np.repeat(joe(), 2).tobytes(), Suspicion.STEREO),
    "two channels": (lambda: np.stack([joe(), np.roll(joe(), 3000) // 2], 1).tobytes(), Suspicion.STEREO),
    "24 bit": (pcm24, Suspicion.PCM24),
    "24 bit, from its second byte on": (lambda: pcm24()[1:], Suspicion.PCM24),
    "32 bit": (pcm32, Suspicion.PCM32),
    "8 bit": (lambda: (joe() // 256 + 128).astype(np.uint8).tobytes(), Suspicion.PCM8),
    "8 bit with a sign": (lambda: (joe() // 256).astype(np.int8).tobytes(), Suspicion.PCM8),
    "mu-law": (lambda: g711("mulaw"), Suspicion.MULAW),
    "A-law": (lambda: g711("alaw"), Suspicion.ALAW),
    "MP3 without its beginning": (lambda: encoded("mp3", "mp3", 48000)[999:], Suspicion.COMPRESSED),
    "Opus in WebM without its beginning": (lambda: encoded("libopus", "webm", 48000)[999:], Suspicion.COMPRESSED),
    "FLAC without its beginning": (lambda: encoded("flac", "flac", 48000)[9999:], Suspicion.COMPRESSED),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_format_of_real_speech_has_its_name(name: str) -> None:
    make, suspicion = WRONG[name]
    raw = make()
    found = judge(as_words(raw * (1 + 40_000 // len(raw))))
    assert found[0] is suspicion and len(set(found)) == 1, found


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize("gain", [0.01, 0.1, 0.7, 4.0])
def test_real_speech_at_its_own_rate_is_left_alone(rate: int, gain: float) -> None:
    assert judge(np.clip(joe(rate).astype(float) * gain / 0.7, -32768, 32767).astype(np.int16), rate) == []


@pytest.mark.parametrize("block", [320, 4800])
def test_one_wav_header_is_reported_and_then_forgotten(block: int) -> None:
    header = as_words(b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(28))
    watch = FormatDetector(RATE)
    sound = np.concatenate([header, joe()])
    reported = [watch.push(sound[at : at + block], at / RATE) for at in range(0, len(sound), block)]
    assert [f.suspicion for f in reported if f] == [Suspicion.COMPRESSED] and "begins with a WAV header" in next(
        f for f in reported if f
    ).text
    assert watch.finding is None
    watch.begin()
    found = watch.push(header, 9.0)
    assert found is not None and found.suspicion is Suspicion.COMPRESSED  # looked for in every segment


def test_a_wav_header_on_each_chunk_is_reported_as_that() -> None:
    header = as_words(b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(28))
    watch, sound = FormatDetector(RATE), joe()
    reported: list[Finding] = []
    for at in range(0, len(sound), 3200):
        found = watch.push(np.concatenate([header, sound[at : at + 3200]]), at / RATE)
        reported += [found] if found else []
    assert [f.text.split(" ")[0] for f in reported] == ["The", "Each"]
    assert watch.suspicion is Suspicion.COMPRESSED


@pytest.mark.parametrize("name", ["float32", "big endian", "two channels", "24 bit"])
def test_a_suspicion_falls_back_when_right_pcm_comes(name: str) -> None:
    watch = FormatDetector(RATE)
    for at, sound in enumerate((as_words(WRONG[name][0]())[: 3 * RATE], joe()[: 3 * RATE])):
        for begin in range(0, len(sound), 640):
            watch.push(sound[begin : begin + 640], 3 * at + begin / RATE)
        assert (watch.suspicion is None) == (at == 1)


def test_an_even_pace_below_the_declared_rate_is_no_wrong_format() -> None:
    assert judge(joe().repeat(1), pace=1 / 0.7) == []
    assert judge(np.tile(joe(), 3), pace=1 / 0.7) == []
    assert judge(np.tile(joe(), 3), pace=2) == []


def test_a_coarse_clock_and_a_long_life_do_no_harm() -> None:
    watch, sound = FormatDetector(RATE), voice(1)
    for second in range(40):
        for at in range(0, len(sound), 160):
            watch.push(sound[at : at + 160], float(second // 10 * 10))
    assert watch.finding is None
    floats = as_words(WRONG["float32"][0]())
    for at in range(0, 400_000, 20):
        watch.push(floats[at % 200_000 : at % 200_000 + 20], at / RATE)
    held = sum(len(part) for part in watch._recent) + sum(len(part) for part in watch._for_rate)
    assert len(watch._arrivals) <= 1024 and held <= 7 * RATE


@pytest.mark.parametrize(
    ("true", "declared"), [(24000, 16000), (22050, 16000), (48000, 16000), (8000, 16000), (8000, 24000)]
)
def test_another_rate_is_recognised_by_how_it_sounds_however_fast_it_comes(true: int, declared: int) -> None:
    watch, sound = FormatDetector(declared), joe(true)
    watch.push(sound[: len(sound) // 2], 0.0)  # all at once, as a voice's server sends it
    for at in range(len(sound) // 2, 6 * len(sound), 16_000):
        watch.push(np.take(sound, range(at, at + 16_000), mode="wrap"), 0.1)
    heard = watch.audio_for_rate()
    assert heard is not None
    found = watch.judged(detect_rate(shipped_network(), heard, declared))
    assert found is not None and found.suspicion is Suspicion.WRONG_RATE
    assert watch.suspicion is Suspicion.WRONG_RATE
    reported = int(found.text.split("about ")[1].split(" ")[0])
    assert abs(reported / true - 1) < 0.1
    watch.judged(declared)
    assert watch.suspicion is None  # right sound takes it back


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_the_declared_rate_is_known_by_how_it_sounds(rate: int) -> None:
    assert detect_rate(shipped_network(), joe(rate)[: 5 * rate], rate) == rate


def test_silence_takes_no_suspicion_back_and_good_speech_does() -> None:
    watch = FormatDetector(RATE)
    watch.push(voice(1).byteswap(), 0.0)
    assert watch.suspicion is Suspicion.BYTE_SWAPPED
    watch.push(np.zeros(RATE, np.int16), 1.0)
    assert watch.suspicion is Suspicion.BYTE_SWAPPED
    watch.push(voice(1), 2.0)
    assert watch.suspicion is None


def test_the_judge_of_rates_rests_between_short_steps() -> None:
    """It runs beside the event loop: each step of the network holds the interpreter's lock."""
    rests: list[int] = []
    detect_rate(shipped_network(), joe(16_000)[:80_000], 16_000, lambda: rests.append(1))
    seconds_read = sum(5 * 16_000 / rate for rate in (16_000, 8_000, 22_050, 24_000, 44_100, 48_000))
    assert len(rests) >= 50 * seconds_read / 24
