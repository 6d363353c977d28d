"""Runs speech recognition at each pause, before the turn is known to be over, so that the answer begins sooner."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from livekit import rtc

if TYPE_CHECKING:
    from livekit.agents import stt
    from livekit.agents.vad import VADEvent

PAUSE_S = 0.064
"""Silence after which speech may be over: two windows of the detector. Measured on 29 utterances of piper and espeak-ng: 120 ms
after their end in the median, and 0.17 times in each before it (three windows: 152 ms, 0.07; one: 88 ms, 0.41)."""
SPEECH = 0.35
"""Probability above which a window goes on with the speech, as livekit-agents' detector has it."""
PADDING_S = 0.5
"""A recording begins so long before the speech, as the detector's own do."""
SILENCE_S = 0.15
"""And ends with so much silence more, as the detector's own do: recognisers lose the last word of one that ends with it."""
LONGEST_S = 10.0
"""Longer speech is recognised when it is over: livekit-agents begins no answer to it earlier."""

Recognise = Callable[[list[rtc.AudioFrame]], Awaitable["stt.SpeechEvent | None"]]


class EarlyRecognition:
    """Of one microphone. What is said after the pause makes a recognition void: it is cancelled, and one begins at the next pause.

    Args:
        recognise: gets a recording; None for one that it could not recognise.
    """

    def __init__(self, recognise: Recognise) -> None:
        self._recognise = recognise
        self._windows: deque[rtc.AudioFrame] = deque()
        self._kept_s = self._quiet_s = 0.0
        self._inside = self._wanted = False
        self.task: asyncio.Task[stt.SpeechEvent | None] | None = None
        """The recognition of all that was said so far."""

    def start(self, wanted: bool) -> None:
        """Speech has begun; `wanted`: it is to be recognised early."""
        self.cancel()
        self._inside, self._wanted, self._quiet_s = True, wanted, 0.0

    def take(self, event: VADEvent) -> asyncio.Task[stt.SpeechEvent | None] | None:
        """One window of the detector. Returns the recognition that it begins; None for most."""
        window = event.frames[0]
        self._windows.append(window)
        self._kept_s += window.duration
        longest = LONGEST_S if self._inside else PADDING_S
        while self._kept_s > longest:
            self._kept_s -= self._windows.popleft().duration
            self._wanted = False  # its beginning is lost
        if not self._inside:
            return None
        if event.probability > SPEECH:
            self._quiet_s = 0.0
            self.cancel()
            return None
        self._quiet_s += window.duration
        if self._wanted and self.task is None and self._quiet_s >= PAUSE_S - 1e-9:
            recording = [*self._windows, _silence(window)]
            self.task = asyncio.create_task(_of(self._recognise(recording)), name="early-recognition")
            return self.task
        return None

    def end(self) -> asyncio.Task[stt.SpeechEvent | None] | None:
        """Speech is over. The recognition of all of it, which is the caller's now; None where there is none."""
        self._inside = False
        task, self.task = self.task, None
        return task

    def cancel(self) -> None:
        """What is being recognised is not wanted any more. Idempotent."""
        if self.task is not None:
            self.task.cancel()
            self.task = None


async def _of(recognition: Awaitable[stt.SpeechEvent | None]) -> stt.SpeechEvent | None:
    return await recognition


def _silence(like: rtc.AudioFrame) -> rtc.AudioFrame:
    samples = round(SILENCE_S * like.sample_rate)
    return rtc.AudioFrame(bytes(2 * samples * like.num_channels), like.sample_rate, like.num_channels, samples)
