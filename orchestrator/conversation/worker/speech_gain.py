"""Automatic gain: makes a quiet voice loud enough for the voice activity detector."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WANTED = 2000.0
"""Of 32768, -24 dBFS: the level of speech (root of the mean square, of its loud frames) which the gain aims at."""
HIGHEST = 16.0
"""24 dB. What is quieter still is a voice in the next room."""
_LOUDEST = 30_000.0
_ABOVE_NOISE = 4.0
"""12 dB. A frame that much over the noise is taken for speech."""
_LEAST = 15.0
"""Of 32768, -67 dBFS. Below it a frame is no speech, whatever the noise is."""
_FORGOTTEN_S = 6.0
"""The level of speech falls to a third in so long, while quieter speech comes."""
_NOISE_RISES_S = 4.0
"""The noise, which is the quietest of what was heard, rises threefold in so long."""


class SpeechGain:
    """Multiplies by a factor that follows the voice: 1 for one that is loud enough, up to `HIGHEST`. Noise alone changes nothing.

    livekit-agents' own is WebRTC's, called over the SDK's boundary for each frame: that was a quarter of the processor time of a
    worker with ten conversations (docs/reference/performance.md, "Conversations").
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._noise: float | None = None
        self._level = WANTED
        self._known = False  # some speech was heard

    def apply(self, samples: npt.NDArray[np.int16], seconds: float) -> npt.NDArray[np.int16]:
        """The samples of a frame with the gain; those given where there is none. `seconds`: how long the frame is."""
        heard = samples.astype(np.float32)
        level = float(np.sqrt(np.dot(heard, heard) / max(1, len(heard))))
        self._follow(level, seconds)
        most = max(1.0, _LOUDEST / max(1.0, float(np.abs(heard).max(initial=0.0))))
        before = min(self.factor, most)
        self.factor = min(HIGHEST, most, max(1.0, WANTED / self._level))
        if before == self.factor == 1.0:
            return samples
        heard *= np.linspace(before, self.factor, len(heard), dtype=np.float32)
        return np.clip(heard, -32768, 32767).astype(np.int16)

    def _follow(self, level: float, seconds: float) -> None:
        noise = level if self._noise is None else min(level, self._noise * 3.0 ** (seconds / _NOISE_RISES_S))
        self._noise = max(noise, 1.0)
        if level < max(_LEAST, _ABOVE_NOISE * self._noise):
            return
        if not self._known or level > self._level:
            self._level, self._known = level, True
        else:
            self._level = max(level, self._level * 3.0 ** (-seconds / _FORGOTTEN_S))
