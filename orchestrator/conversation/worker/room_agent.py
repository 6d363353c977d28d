"""The agent of a conversation: livekit-agents' own, whose speech carries the time of each word, and which hears persons only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable

from livekit import rtc
from livekit.agents import Agent, APIError, ModelSettings, stt
from livekit.agents.stt import SpeechEventType
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, TimedString
from livekit.agents.vad import VADEvent, VADEventType

from orchestrator.conversation.worker.early_sentences import EarlySentences
from orchestrator.conversation.worker.floor import Floor
from orchestrator.conversation.worker.timed_voice import TimedVoice


class RoomAgent(Agent):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`Agent` for a `TimedVoice`; with any other voice it is livekit-agents' own. `floor` decides what is a turn of the user."""

    floor: Floor

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncGenerator[stt.SpeechEvent, None]:
        """Recognises what the detector calls speech, and keeps back what is no turn of the user."""
        recogniser, detector = self.session.stt, self.session.vad
        if recogniser is None or recogniser.capabilities.streaming or detector is None:
            async for event in Agent.default.stt_node(self, audio, model_settings):
                if event.type is not SpeechEventType.FINAL_TRANSCRIPT or await self.floor.settle(_text_of(event)):
                    yield event
            return
        stream = detector.stream()

        async def listen() -> None:
            async for frame in audio:
                stream.push_frame(frame)
            stream.end_input()

        listening = asyncio.create_task(listen(), name="recogniser-input")
        try:
            async for event in stream:
                if event.type is VADEventType.START_OF_SPEECH:
                    yield stt.SpeechEvent(SpeechEventType.START_OF_SPEECH)
                elif event.type is VADEventType.END_OF_SPEECH:
                    ended_at = time.time() - event.silence_duration - event.inference_duration
                    yield stt.SpeechEvent(SpeechEventType.END_OF_SPEECH, speech_end_time=ended_at)
                    heard = await self._recognise(recogniser, event)
                    if heard is not None and await self.floor.settle(_text_of(heard)):
                        yield stt.SpeechEvent(
                            SpeechEventType.FINAL_TRANSCRIPT,
                            alternatives=[heard.alternatives[0]],
                            speech_end_time=ended_at,
                        )
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await stream.aclose()

    async def _recognise(self, recogniser: stt.STT, event: VADEvent) -> stt.SpeechEvent | None:
        """None, and the avatar goes on, when the recogniser fails: it reports that itself."""
        try:
            return await recogniser.recognize(buffer=event.frames)
        except APIError:
            await self.floor.settle("")
            return None

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        """Speaks sentence by sentence. The words of a frame are in seconds from the first sample of the whole speech."""
        voice = self.session.tts
        if not isinstance(voice, TimedVoice):
            async for frame in Agent.default.tts_node(self, text, model_settings):
                yield frame
            return
        sentences = EarlySentences().stream()

        async def write() -> None:
            async for part in text:
                sentences.push_text(part)
            sentences.end_input()

        writing = asyncio.create_task(write(), name="sentences")
        begins_s, last = 0.0, " "
        try:
            async for sentence in sentences:
                if not sentence.token.strip():
                    continue
                spoken_s, first = 0.0, True
                async with voice.synthesize(sentence.token.strip()) as speech:
                    async for audio in speech:
                        words = audio.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())
                        placed = []
                        for word in words:
                            gap = " " if first and not last[-1:].isspace() else ""
                            placed.append(TimedString(gap + word, start_time=begins_s + word.start_time))
                            first, last = False, str(word)
                        audio.frame.userdata[USERDATA_TIMED_TRANSCRIPT] = placed
                        yield audio.frame
                        spoken_s += audio.frame.duration
                begins_s += spoken_s
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await sentences.aclose()


def _text_of(event: stt.SpeechEvent) -> str:
    return event.alternatives[0].text if event.alternatives else ""
