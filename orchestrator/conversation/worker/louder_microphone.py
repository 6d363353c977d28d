"""What a microphone says, with quiet voices made louder."""

from __future__ import annotations

import numpy as np
from livekit import rtc
from livekit.agents.voice.io import AudioInput

from orchestrator.conversation.worker.speech_gain import SpeechGain


class LouderMicrophone(AudioInput):  # type: ignore[misc]  # livekit-agents lies in another environment, so that its base is Any here
    """Hands audio on through `SpeechGain`.

    Args:
        source: the audio as it comes.
    """

    def __init__(self, source: AudioInput) -> None:
        super().__init__(label="LouderMicrophone", source=source)
        self._gain = SpeechGain()

    async def __anext__(self) -> rtc.AudioFrame:
        frame: rtc.AudioFrame = await super().__anext__()
        heard = np.frombuffer(frame.data, np.int16)
        louder = self._gain.apply(heard, frame.duration)
        if louder is heard:
            return frame
        return rtc.AudioFrame(louder.tobytes(), frame.sample_rate, frame.num_channels, frame.samples_per_channel)

    def forget(self) -> None:
        """Another person is heard from now on."""
        self._gain = SpeechGain()
