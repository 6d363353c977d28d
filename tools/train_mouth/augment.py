"""Sound as microphones and rooms make it, and sounds that are no speech at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter, resample_poly

RATE = 16_000
Array = NDArray[np.float32]
Rng = np.random.Generator


def coloured(rng: Rng, count: int, slope: float) -> Array:
    """Noise of unit power with a spectrum falling as f^-slope (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hz = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)
    noise = np.fft.irfft(spectrum * hz ** (-slope / 2), count)
    return (noise / (noise.std() + 1e-12)).astype(np.float32)


def hum(rng: Rng, count: int) -> Array:
    """Mains hum, a fan or a steady tone with harmonics, slowly swelling."""
    t = np.arange(count) / RATE
    base = rng.choice([50.0, 60.0, 100.0, 120.0, rng.uniform(60, 1200)])
    parts = [
        rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6))
        for k in range(1, rng.integers(2, 12))
    ]
    wave = np.sum(parts, axis=0) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.1, 2) * t))
    return (wave / (wave.std() + 1e-9)).astype(np.float32)


def clicks(rng: Rng, count: int) -> Array:
    """Keyboard, mouse, door: bursts of filtered noise that die away, in irregular rows."""
    out = np.zeros(count + RATE, np.float32)
    at = int(rng.uniform(0, 0.5) * RATE)
    while at < count:
        size = int(rng.uniform(0.003, 0.09) * RATE)
        burst = rng.standard_normal(size) * np.exp(-np.arange(size) / size * rng.uniform(3, 8))
        low = rng.uniform(80, 2500)
        b, a = butter(2, [low, min(7500, low * rng.uniform(1.5, 6))], "band", fs=RATE)
        burst = lfilter(b, a, burst)
        out[at : at + size] += (burst / (np.abs(burst).max() + 1e-9) * rng.uniform(0.2, 1)).astype(np.float32)
        at += int(rng.exponential(rng.choice([0.08, 0.2, 0.7])) * RATE) + 200
    return out[:count] * 4


def breath(rng: Rng, count: int) -> Array:
    """Breathing: broad resonances over noise, swelling for half a second, with rests."""
    noise = coloured(rng, count, rng.uniform(0.3, 1.2))
    for _ in range(2):
        low = rng.uniform(300, 3000)
        b, a = butter(1, [low, min(7000, low * rng.uniform(1.3, 3))], "band", fs=RATE)
        noise = noise + lfilter(b, a, noise) * rng.uniform(0.5, 2)
    t = np.arange(count) / RATE
    swell = np.maximum(0, np.sin(2 * np.pi * rng.uniform(0.25, 0.9) * t + rng.uniform(0, 6))) ** rng.uniform(0.5, 2)
    return (noise * swell / (noise.std() + 1e-9)).astype(np.float32)


def tones(rng: Rng, count: int) -> Array:
    """Music without words: chords that change, notification sounds."""
    out = np.zeros(count, np.float32)
    at = 0
    while at < count:
        size = min(count - at, int(rng.uniform(0.1, 1.2) * RATE))
        t = np.arange(size) / RATE
        root = rng.uniform(100, 900)
        for ratio in rng.choice([1, 1.25, 1.5, 2, 3, 4], rng.integers(1, 4), replace=False):
            out[at : at + size] += (np.sin(2 * np.pi * root * ratio * t) * np.exp(-t * rng.uniform(0, 6))).astype(
                np.float32
            )
        at += size + int(rng.choice([0, 0, 0.3]) * RATE)
    return out


def buzz(rng: Rng, count: int) -> Array:
    """A shaver, a transformer, a synthetic voice that only holds its tone: many harmonics, swelling and stopping."""
    t = np.arange(count) / RATE
    base, fall, turn = rng.uniform(70, 260), rng.uniform(0.75, 0.98), rng.uniform(0, 3)
    top = min(60, int(7500 / base))
    wave = np.sum([np.sin(2 * np.pi * base * k * t + turn * k * k) * fall**k for k in range(1, top)], axis=0)
    swell = np.clip(
        np.sin(2 * np.pi * rng.uniform(0.1, 0.8) * t + rng.uniform(0, 6)) * rng.uniform(0.6, 3) + rng.uniform(0, 1),
        0,
        1,
    )
    return (wave * swell / (wave.std() + 1e-9)).astype(np.float32)


def music(rng: Rng, count: int) -> Array:
    """Plucked and held notes in chords over a bass and a drum."""
    out = clicks(rng, count) * rng.choice([0.0, 0.3])
    beat = rng.uniform(0.15, 0.6)
    for voice in range(int(rng.integers(2, 5))):
        root, at = 65.4 * 2 ** rng.integers(0, 4), int(rng.uniform(0, 0.3) * RATE)
        while at < count:
            size = min(count - at, int(beat * rng.choice([1, 2, 4]) * RATE))
            t = np.arange(size) / RATE
            hz = root * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
            parts = [np.sin(2 * np.pi * hz * k * t) / k ** rng.uniform(0.7, 2) for k in range(1, 8) if hz * k < 7500]
            rise = np.minimum(1, t / rng.uniform(0.003, 0.08)) * np.minimum(1, (size / RATE - t) / 0.01)
            out[at : at + size] += (np.sum(parts, axis=0) * rise * np.exp(-t * rng.uniform(0, 8)) / (1 + voice)).astype(
                np.float32
            )
            at += size
    return (out / (out.std() + 1e-9)).astype(np.float32)


def begun(rng: Rng, sound: Array) -> Array:
    """The same, beginning and ending somewhere: at once or within a second, with rests of silence."""
    at, out = 0, np.zeros(len(sound), np.float32)
    while at < len(sound):
        at += int(rng.choice([0.0, rng.uniform(0.1, 1.5)]) * RATE)
        part = sound[at : at + int(rng.uniform(0.3, 4) * RATE)]
        rise, fall = (max(1, int(rng.choice([0.003, 0.05, rng.uniform(0.1, 0.8)]) * RATE)) for _ in range(2))
        place = np.arange(len(part))
        out[at : at + len(part)] = part * np.minimum(1, place / rise) * np.minimum(1, (len(part) - place) / fall)
        at += len(part)
    return out


KINDS: dict[str, Callable[[Rng, int], Array]] = {
    "white": lambda rng, n: coloured(rng, n, 0.0),
    "pink": lambda rng, n: coloured(rng, n, 1.0),
    "coloured": lambda rng, n: coloured(rng, n, rng.uniform(0, 2)),
    "hum": hum,
    "keyboard": clicks,
    "breath": breath,
    "tones": tones,
    "buzz": buzz,
    "music": music,
}
NOISES = tuple(KINDS.values())


def negative(rng: Rng, seconds: float) -> NDArray[np.int16]:
    """Anything but speech, −65 … −10 dBFS, one or two kinds at once."""
    count = int(seconds * RATE)
    voiced = (hum, music, tones, buzz)  # what is most like a voice is drawn more often
    sound = (voiced[rng.integers(4)] if rng.random() < 0.4 else NOISES[rng.integers(len(NOISES))])(rng, count)
    if rng.random() < 0.6:
        sound = begun(rng, sound)
    if rng.random() < 0.5:
        sound = sound + NOISES[rng.integers(len(NOISES))](rng, count) * 10 ** rng.uniform(-1.5, 0)
    sound = sound * 10 ** (rng.uniform(-65, -10) / 20)
    return (np.clip(sound, -1, 1) * 32767).astype(np.int16)


def whispered(rng: Rng, sound: Array) -> Array:
    """The same spectrum over time with noise for a voice, nothing under 300 Hz."""
    size, hop = 512, 128
    window = np.hanning(size).astype(np.float32)
    padded = np.pad(sound, (0, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    shape = np.abs(np.fft.rfft(frames, axis=1))
    smooth = np.apply_along_axis(lambda row: np.convolve(row, np.ones(9) / 9, "same"), 1, shape)
    smooth[:, : int(300 * size / RATE)] = 0
    noise = np.fft.irfft(smooth * np.exp(2j * np.pi * rng.random(shape.shape)), axis=1) * window
    out = np.zeros(len(padded) + size)
    for i, part in enumerate(noise):
        out[i * hop : i * hop + size] += part
    return out[: len(sound)].astype(np.float32)


def speed(sound: Array, factor: float) -> Array:
    """Faster and higher (pitch and formants together) by `factor`, in steps of 1 %."""
    return resample_poly(sound, 100, round(100 * factor)).astype(np.float32)


def _reverberant(rng: Rng, sound: Array) -> Array:
    seconds = rng.uniform(0.08, 0.5)
    count = int(seconds * RATE)
    tail = rng.standard_normal(count) * np.exp(-6.9 * np.arange(count) / count)
    tail *= rng.uniform(0.1, 0.6) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    return fftconvolve(sound, tail)[: len(sound)].astype(np.float32)


def _equalised(rng: Rng, sound: Array) -> Array:
    hz = np.fft.rfftfreq(len(sound), 1 / RATE)
    knots = np.geomspace(80, 8000, 7)
    gain = np.interp(np.log(np.maximum(hz, 50)), np.log(knots), rng.uniform(-8, 8, 7))
    if rng.random() < 0.15:  # a telephone
        gain = gain - 50 * ((hz < 300) | (hz > 3400))
    return np.fft.irfft(np.fft.rfft(sound) * 10 ** (gain / 20), len(sound)).astype(np.float32)


def recorded(rng: Rng, sound: Array, silent: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Speech float32[n] as int16 from some room: reverberation, equaliser, noise, breaths in the pauses, level −35 … −10 dBFS."""
    speech_power = float(np.mean(sound[~silent] ** 2)) if (~silent).any() else 1e-4
    out = sound
    if rng.random() < 0.4:
        out = _reverberant(rng, out)
    if rng.random() < 0.7:
        out = _equalised(rng, out)
    scale = np.sqrt(speech_power)
    if rng.random() < 0.65:
        out = out + NOISES[rng.integers(len(NOISES))](rng, len(out)) * scale * 10 ** (-rng.uniform(3, 35) / 20)
    if rng.random() < 0.5:
        pause = NOISES[rng.choice([4, 5, 5])](rng, len(out)) * scale * 10 ** (-rng.uniform(2, 25) / 20)
        edges = np.convolve(silent.astype(np.float32), np.ones(320) / 320, "same")
        out = out + pause * (edges > 0.999)
    out = out + rng.standard_normal(len(out)) * 10 ** (-rng.uniform(60, 90) / 20)
    power = float(np.mean(out[~silent] ** 2)) if (~silent).any() else float(np.mean(out**2)) + 1e-9
    out = out * 10 ** (rng.uniform(-35, -10) / 20) / np.sqrt(power)
    return (np.clip(out, -1, 1) * 32767).astype(np.int16)
