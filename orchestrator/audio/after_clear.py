"""How long a sender's PCM is dropped after a clear: as long as it may be the rest of what was interrupted.

It is that no more after a pause, after 300 ms without speech, and once it has come at real-time pace for a second: then it
is a live source, which never pauses. What is silence is said by the detector that rests the avatar's mouth, so that neither a quiet
speaker counts as silence nor a loud noise floor as speech.
"""

from __future__ import annotations

import numpy as np

from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.speech_detector import LevelDetector, SpeechDetector
from musetalk_agent.media_types import FEATURE_RATE
from musetalk_agent.resample import Resampler
from orchestrator.audio.ingest import BYTES_PER_SAMPLE

CLEAR_PAUSE_S = 0.3
"""A sender that pauses this long, or whose PCM has no speech for as long, has noticed the clear."""
LIVE_S = 1.0
LIVE_PACE = 1.25
"""PCM that comes no faster than this, as a multiple of real time, over `LIVE_S` is live; what is left of a text comes faster."""
_LOUD_DBFS = -35.0  # RMS of 20 ms from which sound is no silence here, tones and music too
_LOOKED_AT_S = 0.6  # of a message, its end: the event loop waits for the detector
_WARM_S = 0.3  # in which the detector, which has not heard what was before, may miss speech


class AfterClear:
    """Decides for one clear. Begins with it; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._came_s = 0.0
        self._heard_s = 0.0
        self._silent_s = 0.0
        self._rate = 0
        self._detector, self._loud = SpeechDetector.shipped(), LevelDetector(_LOUD_DBFS)

    def is_over(self, pcm: bytes, rate: int, now: float, *, paused: bool) -> bool:
        """Takes int16 PCM of the sender, which paused before it or not; returns whether it and what follows are to be heard."""
        return paused or self._is_live(len(pcm) / (BYTES_PER_SAMPLE * rate), now) or self._is_silent(pcm, rate)

    def _is_live(self, seconds: float, now: float) -> bool:
        if self._since is None:
            self._since = now  # what was sent before it is not known, so it counts for nothing
            return False
        self._came_s += seconds
        if now - self._since < LIVE_S:
            return False
        live = self._came_s <= LIVE_PACE * (now - self._since)
        self._since, self._came_s = now, 0.0
        return live

    def _is_silent(self, pcm: bytes, rate: int) -> bool:
        if rate != self._rate:
            self._rate, self._resampler = rate, Resampler(rate, FEATURE_RATE)
        samples = np.frombuffer(pcm, "<i2")[-round(_LOOKED_AT_S * rate) :].astype(np.int16)
        sound = self._resampler.push(samples)
        for speech, loud in zip(self._detector.push(sound), self._loud.push(sound), strict=True):
            self._heard_s += STEP / FEATURE_RATE
            warm = self._heard_s <= _WARM_S and not self._detector.silent
            self._silent_s = 0.0 if speech or loud or warm else self._silent_s + STEP / FEATURE_RATE
        return self._silent_s >= CLEAR_PAUSE_S - STEP / FEATURE_RATE / 2
