"""The livekit-agents `Agent` of a conversation: knows the time of each word that it speaks, and listens to persons only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable
from functools import partial

from livekit import rtc
from livekit.agents import Agent, APIError, ModelSettings, stt
from livekit.agents.stt import SpeechEventType
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, TimedString
from livekit.agents.vad import VADEvent, VADEventType, VADStream

from musetalk_agent.protocol.action_marks import ActionMarks, MarkTimes
from orchestrator.conversation.worker.early_recognition import EarlyRecognition
from orchestrator.conversation.worker.early_sentences import EarlySentences
from orchestrator.conversation.worker.floor import Floor
from orchestrator.conversation.worker.heard_output import USERDATA_ACTIONS
from orchestrator.conversation.worker.interruption import spoken
from orchestrator.conversation.worker.timed_voice import SAMPLE_RATE, TimedVoice

_LETTERS_PER_S = 14.0
"""Of speech at its usual pace, by which marks are placed where a voice says no times."""


class RoomAgent(Agent):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`Agent` for a `TimedVoice`; with any other voice it is livekit-agents' own. `floor` decides what is a turn of the user.

    `recognises_early`: the recogniser is asked at each short pause in the speech, and the model begins with what it heard. An
    answer is spoken when the turn is over, and only if all that was said is what it answers.
    """

    floor: Floor
    recognises_early = False
    words = ""
    """What was recognised last."""
    clips: tuple[str, ...] = ()
    """Names of the avatar's clips: `[NAME]` in what it says plays one, and is neither spoken nor shown."""

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncGenerator[stt.SpeechEvent, None]:
        """Recognises what the detector calls speech, and keeps back what is no turn of the user."""
        recogniser, detector = self.session.stt, self.session.vad
        if recogniser is None or recogniser.capabilities.streaming or detector is None:
            async for event in Agent.default.stt_node(self, audio, model_settings):
                if event.type is SpeechEventType.FINAL_TRANSCRIPT:
                    self.words = _text_of(event)
                    if not await self.floor.settle(self.words):
                        continue
                yield event
            return
        stream = detector.stream()

        async def listen() -> None:
            async for frame in audio:
                stream.push_frame(frame)
            stream.end_input()

        listening = asyncio.create_task(listen(), name="recogniser-input")
        try:
            async for event in self._recognised(recogniser, stream):
                yield event
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await stream.aclose()

    async def _recognised(self, recogniser: stt.STT, stream: VADStream) -> AsyncGenerator[stt.SpeechEvent, None]:
        """What was said in each stretch of speech. Its words come early where that is wanted, and again when it is over."""
        early = EarlyRecognition(partial(self._recognise, recogniser))
        # Both in one queue: on full cores two tasks for each window of the detector, 32 ms, take longer than the window. It holds
        # what comes while a recogniser is awaited, whose time is bounded.
        news: asyncio.Queue[VADEvent | asyncio.Task[stt.SpeechEvent | None] | None] = asyncio.Queue()

        async def follow() -> None:
            try:
                async for event in stream:
                    news.put_nowait(event)
            finally:
                news.put_nowait(None)

        following = asyncio.create_task(follow(), name="recogniser-events")
        try:
            while (event := await news.get()) is not None:
                if isinstance(event, asyncio.Task):
                    if event is early.task and (heard := _words_of(event)) is not None:
                        self.words = _text_of(heard)
                        yield stt.SpeechEvent(
                            SpeechEventType.PREFLIGHT_TRANSCRIPT, alternatives=[heard.alternatives[0]]
                        )
                elif event.type is VADEventType.INFERENCE_DONE:
                    if (begun := early.take(event)) is not None:
                        begun.add_done_callback(news.put_nowait)
                elif event.type is VADEventType.START_OF_SPEECH:
                    # what interrupts the avatar is a turn or none: `floor` decides it when it is over
                    early.start(self.recognises_early and self.session.agent_state != "speaking")
                    self.words = ""
                    yield stt.SpeechEvent(SpeechEventType.START_OF_SPEECH)
                elif event.type is VADEventType.END_OF_SPEECH:
                    async for result in self._ended(recogniser, event, early):
                        yield result
            await following  # raises what it failed with
        finally:
            early.cancel()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _ended(
        self, recogniser: stt.STT, event: VADEvent, early: EarlyRecognition
    ) -> AsyncGenerator[stt.SpeechEvent, None]:
        ended_at = time.time() - event.silence_duration - event.inference_duration
        yield stt.SpeechEvent(SpeechEventType.END_OF_SPEECH, speech_end_time=ended_at)
        begun = early.end()
        heard = await (self._recognise(recogniser, event.frames) if begun is None else begun)
        self.words = "" if heard is None else _text_of(heard)
        if await self.floor.settle(self.words) and heard is not None:
            final = SpeechEventType.FINAL_TRANSCRIPT
            yield stt.SpeechEvent(final, alternatives=[heard.alternatives[0]], speech_end_time=ended_at)

    async def _recognise(self, recogniser: stt.STT, recording: list[rtc.AudioFrame]) -> stt.SpeechEvent | None:
        """None when the recogniser fails: it reports that itself."""
        try:
            return await recogniser.recognize(buffer=recording)
        except APIError:
            return None

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        """Speaks sentence by sentence. The words of a frame are in seconds from the first sample of the whole speech."""
        voice, marks = self.session.tts, ActionMarks(self.clips)
        plain = _without(text, marks)
        if not isinstance(voice, TimedVoice):
            async for frame in Agent.default.tts_node(self, plain, model_settings):
                frame.userdata[USERDATA_ACTIONS] = _estimated(marks)
                yield frame
            return
        sentences, times = EarlySentences().stream(), MarkTimes(marks)

        async def write() -> None:
            async for part in plain:
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
                        placed, actions = [], []
                        for word in words:
                            actions += [(begins_s + word.start_time, name) for name in times.reached(str(word))]
                            gap = " " if first and not last[-1:].isspace() else ""
                            placed.append(TimedString(gap + word, start_time=begins_s + word.start_time))
                            first, last = False, str(word)
                        audio.frame.userdata[USERDATA_TIMED_TRANSCRIPT] = placed
                        audio.frame.userdata[USERDATA_ACTIONS] = actions
                        yield audio.frame
                        spoken_s += audio.frame.duration
                begins_s += spoken_s
            if begins_s and (last_actions := times.rest()):
                yield _silence([(begins_s, name) for name in last_actions])
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await sentences.aclose()

    async def transcription_node(
        self, text: AsyncIterable[str | TimedString], model_settings: ModelSettings
    ) -> AsyncGenerator[str | TimedString, None]:
        """What is shown of an answer, for a voice that does not know the times of its words."""
        shown = _without(text, ActionMarks(self.clips)) if self.clips else text
        async for part in Agent.default.transcription_node(self, shown, model_settings):
            yield part


async def _without(text: AsyncIterable[str], marks: ActionMarks) -> AsyncGenerator[str, None]:
    """A text that is being written, without its marks."""
    async for part in text:
        if plain := marks.push(part):
            yield plain
    if rest := marks.end():
        yield rest


def _estimated(marks: ActionMarks) -> list[tuple[float, str]]:
    """Takes the marks that were found, each with the time at which a voice without times gets there, about."""
    taken = [(mark.letters / _LETTERS_PER_S, mark.name) for mark in marks.found]
    marks.found.clear()
    return taken


def _silence(actions: list[tuple[float, str]]) -> rtc.AudioFrame:
    """The shortest frame, for what comes after the last word."""
    frame = rtc.AudioFrame(bytes(2 * SAMPLE_RATE // 100), SAMPLE_RATE, 1, SAMPLE_RATE // 100)
    frame.userdata[USERDATA_ACTIONS] = actions
    return frame


def _words_of(recognition: asyncio.Task[stt.SpeechEvent | None]) -> stt.SpeechEvent | None:
    """What was heard; None for nothing, and where the recognition failed or was cancelled."""
    if recognition.cancelled() or recognition.exception() is not None:
        return None
    heard = recognition.result()
    return heard if heard is not None and spoken(_text_of(heard)) else None


def _text_of(event: stt.SpeechEvent) -> str:
    return event.alternatives[0].text if event.alternatives else ""
