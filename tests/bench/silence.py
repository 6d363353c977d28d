"""Detectors of speech beside each other: speech that is lost, and sounds that are none and keep the mouth moving.

    python -m tests.bench.silence FOLDER [--silero silero_vad_16k_op15.onnx]

FOLDER holds speech (wav or flac, any depth). `--silero` is the model file of the PyPI package silero-vad, run by onnxruntime.
Speech is judged whole, at several peaks, whispered, and after two seconds of silence; noises are made here. "lost": share of the
loud 20 ms (within 25 dB of the clip's loudest) that do not count as speech, where a verdict holds for half a second and a
beginning has 60 ms to be noticed (the features' look-ahead). "moving": share of the time after the first 0.6 s that counts as
speech.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.speech_detector import LevelDetector, SpeechDetector

RATE = 16_000
HOLD, LEAD = 25, 3  # steps
Sound = NDArray[np.float64]
Judge = Callable[[NDArray[np.int16]], NDArray[np.bool_]]
LONGEST_S = 12
SECONDS = 30


def main() -> None:
    """Prints a markdown table."""
    parser = argparse.ArgumentParser(prog="tests.bench.silence")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--silero", type=Path)
    options = parser.parse_args()
    judges: dict[str, Judge] = {
        "level": _by(LevelDetector),
        "hysteresis": hysteresis,
        "network": _by(SpeechDetector.shipped),
    }
    if options.silero:
        judges["silero"] = silero(options.silero)
    clips = [read(path) for path in sorted(options.folder.rglob("*")) if path.suffix in (".wav", ".flac")]
    clips = [clip for clip in clips if np.abs(clip).max() > 0]
    print(f"{len(clips)} clips, {sum(map(len, clips)) / RATE:.0f} s\n")
    print(f"| | {' | '.join(judges)} |\n|---|{'---|' * len(judges)}")
    for name, sounds in speech(clips).items():
        figures = [np.array([lost(judge, *pair) for pair in sounds]) for judge in judges.values()]
        _row(f"lost, {name}: mean (worst clip)", [f"{f.mean():.1%} ({f.max():.0%})" for f in figures])
    for name, sound in noises().items():
        _row(f"moving, {name}", [f"{held(judge, sound)[30:].mean():.0%}" for judge in judges.values()])
    _row("one core, ms for a second of speech", [f"{_cost(judge, clips[0]):.1f}" for judge in judges.values()])


def _row(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def read(path: Path) -> Sound:
    """The beginning of a file, in -1 … 1 at 16 kHz."""
    with av.open(str(path)) as container:
        resampler, out = av.AudioResampler("s16", "mono", RATE), []
        for frame in container.decode(audio=0):
            out += [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
    return np.concatenate(out)[: LONGEST_S * RATE] / 32768.0


# --- detectors


def _by(make: Callable[[], LevelDetector | SpeechDetector]) -> Judge:
    return lambda pcm: np.array(make().push(pcm), bool)


def hysteresis(pcm: NDArray[np.int16]) -> NDArray[np.bool_]:
    """An energy gate: on at 9 dB over the background and -55 dBFS, off below 5 dB over it; the background rises by 3 dB/s."""
    verdicts, background, on = [], 0.0, False
    for level in levels(pcm / 32768.0):
        background = min(level, background + 0.06)
        on = level > background + (5 if on else 9) and level > -55
        verdicts.append(on)
    return np.array(verdicts, bool)


def silero(path: Path) -> Judge:
    """Silero VAD at its usual threshold of 0.5; a verdict is known when its 32 ms are complete."""
    import onnxruntime  # in the extra [voice]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)

    def judge(pcm: NDArray[np.int16]) -> NDArray[np.bool_]:
        sound = pcm.astype(np.float32) / 32768
        state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
        for at in range(0, len(sound) - 511, 512):
            chunk = sound[None, at : at + 512]
            inputs = {"input": np.concatenate([context, chunk], 1), "state": state, "sr": np.array(RATE, np.int64)}
            out, state = session.run(None, inputs)
            context = chunk[:, -64:]
            found.append(float(out.ravel()[0]) > 0.5)
        steps = (np.arange(1, len(pcm) // STEP + 1) * STEP) // 512 - 1
        return np.array([step >= 0 and found[step] for step in steps], bool)

    return judge


# --- measures


def levels(sound: Sound) -> Sound:
    """RMS of each 20 ms in dBFS."""
    whole = sound[: len(sound) // STEP * STEP].reshape(-1, STEP)
    return np.asarray(10 * np.log10(np.mean(whole**2, axis=1) + 1e-12))


def held(judge: Judge, sound: Sound) -> NDArray[np.bool_]:
    """The verdicts, each held for half a second."""
    verdicts = judge(np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16))
    return np.asarray(np.convolve(verdicts, np.ones(HOLD))[: len(verdicts)] > 0)


def lost(judge: Judge, sound: Sound, clean: Sound) -> float:
    """Share of the 20 ms which are loud in `clean` that do not count as speech in `sound`."""
    speaking = held(judge, sound)
    speaking |= np.append(speaking[LEAD:], [True] * LEAD)
    level = levels(clean)
    return float(np.mean(~speaking[level > level.max() - 25]))


def _cost(judge: Judge, clip: Sound) -> float:
    begun = time.perf_counter()
    held(judge, clip)
    return 1000 * (time.perf_counter() - begun) / (len(clip) / RATE)


# --- sounds

_RNG = np.random.default_rng(7)


def at_peak(sound: Sound, dbfs: float) -> Sound:
    """Scaled to a peak."""
    return np.asarray(sound / np.abs(sound).max() * 10 ** (dbfs / 20))


def at_rms(sound: Sound, dbfs: float) -> Sound:
    """Scaled to an RMS."""
    return np.asarray(sound / np.sqrt(np.mean(sound**2)) * 10 ** (dbfs / 20))


def noise(samples: int, low: float = 20, high: float = 8000, slope: float = 0.0) -> Sound:
    """Noise of a band; amplitude falls as frequency to the power of `slope`."""
    hertz = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum = np.fft.rfft(_RNG.standard_normal(samples)) * ((hertz >= low) & (hertz <= high))
    return np.fft.irfft(spectrum * np.maximum(hertz, 20) ** slope, samples)


def whispered(sound: Sound) -> Sound:
    """The same spectrum over time with noise for a voice."""
    size, hop = 512, 128
    out, window = np.zeros(len(sound) + size), np.hanning(size)
    for at in range(0, len(sound) - size, hop):
        shape = np.convolve(np.abs(np.fft.rfft(sound[at : at + size] * window)), np.ones(9) / 9, "same")
        out[at : at + size] += np.fft.irfft(shape * np.exp(2j * np.pi * _RNG.random(len(shape)))) * window
    spectrum = np.fft.rfft(out[: len(sound)])
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE) < 300] = 0
    return np.fft.irfft(spectrum, len(sound))


def speech(clips: list[Sound]) -> dict[str, list[tuple[Sound, Sound]]]:
    """The clips in the conditions they are judged in, each with the clean one."""
    late = [np.concatenate([np.zeros(2 * RATE), at_peak(clip, -6)]) for clip in clips]
    whispers = [at_peak(whispered(clip), -20) for clip in clips]
    return {
        "peak -3 dBFS": [(at_peak(clip, -3), clip) for clip in clips],
        "peak -20": [(at_peak(clip, -20), clip) for clip in clips],
        "peak -42": [(at_peak(clip, -42), clip) for clip in clips],
        "after 2 s of zeros": [(clip, clip) for clip in late],
        "after and over noise of -60 dBFS": [(clip + at_rms(noise(len(clip)), -60), clip) for clip in late],
        "10 dB over a noisy room": [(_over_a_room(clip, 10), clip) for clip in late],
        "5 dB over a noisy room": [(_over_a_room(clip, 5), clip) for clip in late],
        "whispered, peak -20": [(whisper, whisper) for whisper in whispers],
    }


def noises() -> dict[str, Sound]:
    """What is no speech."""
    found: dict[str, Sound] = {"zeros": np.zeros(SECONDS * RATE)}
    for level in (-60, -45, -30):
        found[f"white noise {level} dBFS"] = at_rms(noise(SECONDS * RATE), level)
    for level in (-45, -30):
        found[f"noisy room {level} dBFS"] = _room(level)
        found[f"hum of 50 Hz {level} dBFS"] = _hum(50, level)
        found[f"hum of 60 Hz {level} dBFS"] = _hum(60, level)
    for level in (-30, -10):
        found[f"keyboard, peak {level} dBFS"] = at_peak(_keys(), level)
    found["breath -40 dBFS"] = at_rms(_breath(), -40)
    found["music -25 dBFS"] = at_rms(_music(), -25)
    return found


def _hum(hz: float, dbfs: float) -> Sound:
    t = np.arange(SECONDS * RATE) / RATE
    return at_rms(np.asarray(sum(np.sin(2 * np.pi * hz * k * t + k) / k**1.3 for k in range(1, 12))), dbfs)


def _room(dbfs: float) -> Sound:
    """Air and machines: noise that swells a little, and hum in it."""
    t = np.arange(SECONDS * RATE) / RATE
    air = at_rms(noise(SECONDS * RATE, 30, 6000, -0.5), -20) * (1 + 0.3 * np.sin(2 * np.pi * 0.3 * t))
    return at_rms(air + _hum(100, -30), dbfs)


def _over_a_room(clip: Sound, db: float) -> Sound:
    return at_rms(clip, -20) + _room(-20 - db)[: len(clip)]


def _keys() -> Sound:
    sound, at = np.zeros(SECONDS * RATE), 0
    while at < len(sound) - RATE:
        for after, gain in ((0, 1.0), (int(_RNG.uniform(0.06, 0.11) * RATE), 0.5)):
            d = int(_RNG.uniform(0.006, 0.02) * RATE)
            click = noise(d, 800, 7500) * np.exp(-4 * np.arange(d) / d)
            sound[at + after : at + after + d] += gain * click / np.abs(click).max()
        d = int(0.04 * RATE)
        thump = np.sin(2 * np.pi * _RNG.uniform(150, 400) * np.arange(d) / RATE) * np.exp(-np.arange(d) / (0.01 * RATE))
        sound[at : at + d] += 0.4 * thump
        at += int(_RNG.uniform(0.08, 0.4) * RATE)
    return sound


def _breath() -> Sound:
    sound, at = np.zeros(SECONDS * RATE), RATE
    while at < len(sound) - 2 * RATE:
        d = int(_RNG.uniform(0.4, 1.2) * RATE)
        breath = noise(d, 200, 6000, -0.5) * np.hanning(d) ** 0.7
        sound[at : at + d] += breath / np.abs(breath).max()
        at += d + int(_RNG.uniform(1.0, 3.0) * RATE)
    return sound


def _music() -> Sound:
    """Chords that decay, and drums."""
    sound, beat = np.zeros(SECONDS * RATE), RATE // 2
    for i in range(2 * SECONDS):
        t = np.arange(beat) / RATE
        root = (220.0, 174.6, 261.6, 196.0)[(i // 4) % 4]
        for interval in (1, 1.26, 1.5, float(_RNG.choice([2, 2.25, 2.52, 3]))):
            tone = sum(np.sin(2 * np.pi * root * interval * k * t) / k**1.5 for k in range(1, 8))
            sound[i * beat : (i + 1) * beat] += tone * np.exp(-2 * t)
        drum = noise(beat, 50 if i % 2 else 2000, 300 if i % 2 else 8000)
        sound[i * beat : (i + 1) * beat] += 2 * drum / np.abs(drum).max() * np.exp(-25 * t)
    return sound


if __name__ == "__main__":
    main()
