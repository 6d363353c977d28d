"""The microphone's worklet: 48 and 44.1 kHz to 16 kHz int16, without images, without a gap between chunks."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser.chromium import Page

pytestmark = pytest.mark.browser

RATE = 16_000
AMPLITUDE = 0.5
RECORD = """Promise.all(%(hertz)s.map(async (frequency) => {
  const context = new AudioContext({sampleRate: %(rate)d});
  await context.audioWorklet.addModule('/pcm-worklet.js');
  const tone = new OscillatorNode(context, {frequency});
  const node = new AudioWorkletNode(context, 'pcm', {numberOfOutputs: 0});
  tone.connect(new GainNode(context, {gain: 0.5})).connect(node);
  tone.start();
  const chunks = [];
  const ended = new Promise((resolve) => {
    node.port.onmessage = ({data}) => data === 'end' ? resolve() : chunks.push(data);
  });
  await new Promise((resolve) => setTimeout(resolve, 100));
  node.port.postMessage('begin');
  await new Promise((resolve) => setTimeout(resolve, 500));
  node.port.postMessage('end');
  await ended;
  await context.close();
  const pcm = new Int16Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  chunks.reduce((at, chunk) => (pcm.set(chunk, at), at + chunk.length), 0);
  return [chunks.map((chunk) => chunk.length), btoa(String.fromCharCode(...new Uint8Array(pcm.buffer)))];
}))"""


@pytest.fixture
def page(unseen_page: Page) -> Page:
    """Nothing here is looked at."""
    return unseen_page


async def record(page: Page, web: str, rate: int, *hertz: int) -> list[tuple[list[int], NDArray[np.float64]]]:
    """For each tone the lengths of its chunks, and its samples. All are recorded at once."""
    await page.open(f"{web}/LICENSE-of-nothing")
    recorded = await page.run(RECORD % {"rate": rate, "hertz": list(hertz)}, gesture=True)
    return [(lengths, np.frombuffer(base64.b64decode(data), np.int16) / 32768) for lengths, data in recorded]


def fit(pcm: NDArray[np.float64], hertz: int) -> tuple[float, float]:
    """Amplitude of a tone in a recording, and how far the rest lies below it, in dB."""
    time = np.arange(len(pcm)) / RATE
    basis = np.stack([np.sin(2 * np.pi * hertz * time), np.cos(2 * np.pi * hertz * time)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, pcm, rcond=None)
    rest = np.sqrt(np.mean((pcm - basis @ weights) ** 2))
    amplitude = float(np.hypot(*weights))
    return amplitude, float(20 * np.log10(amplitude / np.sqrt(2) / rest))


@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000])
async def test_speech_band_is_kept_and_whole(page: Page, web: str, rate: int) -> None:
    tones = (300, 1000, 6000)
    for hertz, (lengths, pcm) in zip(tones, await record(page, web, rate, *tones), strict=True):
        assert set(lengths[:-1]) == {320}
        assert 0.35 * RATE < len(pcm) < 0.9 * RATE
        amplitude, clean_db = fit(pcm[320:], hertz)  # the filter rings in during the first chunk
        assert amplitude == pytest.approx(AMPLITUDE, rel=0.03), hertz
        assert clean_db > 55, hertz  # a lost or doubled sample anywhere costs far more


@pytest.mark.parametrize("rate", [48_000, 44_100])
async def test_nothing_above_8_khz_folds_back(page: Page, web: str, rate: int) -> None:
    tones = (8400, 10_000, 15_500, 20_000)
    for hertz, (_, pcm) in zip(tones, await record(page, web, rate, *tones), strict=True):
        assert np.sqrt(np.mean(pcm[320:] ** 2)) < AMPLITUDE / np.sqrt(2) * 10 ** (-70 / 20), hertz
