"""The voices that need no network: piper's neural voice and espeak-ng, in the worker process."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise
from orchestrator.tts import lexicon, pauses
from orchestrator.tts import segmentation as texts
from orchestrator.tts.segmentation import spread
from orchestrator.tts.speech_worker import SpeechWorker, SpokenPart, WorkerStatistics
from orchestrator.tts.synthesizer import CHUNK_MS, PAUSE, PLAIN, SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voice_folder import VoiceFolder

WORKER = (sys.executable, "-m", "orchestrator.tts.worker")
LOADED = 3
"""Voices in the worker's memory, 100 to 250 MB each."""
SCAN_S = 5.0
"""A voice that is put into the folder can speak after this long."""
TEXT_CHARACTERS = 10_000
"""Longest text: ten minutes of speech."""
CHARACTER_S = 0.06
"""About how long a character of text sounds (s): orders the parts of different utterances, nothing depends on it."""
PARTS_AHEAD = 2
"""Parts of an utterance that may be finished or in the making beyond the one being handed out."""


class LocalSynthesizer:
    """`Synthesizer` of the embedded voices `piper:joe` and `espeak:LANGUAGE`, and of the piper voices in `folder`.

    The folder is looked at again every `SCAN_S`. The worker keeps up to `loaded` of the voices in memory.
    `languages`: texts will be asked for their language, so that the worker loads what it takes when it starts.
    `kokoro` is the folder of the styles of Kokoro's voices.
    """

    def __init__(
        self,
        command: tuple[str, ...] = WORKER,
        *,
        folder: Path | None = None,
        loaded: int = LOADED,
        metrics: Metrics | None = None,
        languages: bool = False,
        kokoro: Path | None = None,
    ) -> None:
        self._folder = VoiceFolder(folder) if folder is not None else None
        self._watching: asyncio.Task[None] | None = None
        self._metrics = metrics
        if folder is not None:
            command = (*command, "--voices-dir", str(folder.absolute()), "--loaded", str(loaded))
        if kokoro is not None:
            command = (*command, "--kokoro-dir", str(kokoro.absolute()))
        if languages:
            command = (*command, "--languages")
        self._worker = SpeechWorker(command, on_broken=self._on_broken)
        if metrics is not None:
            metrics.voices_loaded.set_function(lambda: self._worker.statistics.loaded)
            metrics.voice_loads.set_function(lambda: self._worker.statistics.loads)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._worker.pid

    @property
    def statistics(self) -> WorkerStatistics:
        """Counters of the worker."""
        return self._worker.statistics

    async def open(self) -> None:
        """Starts the worker and waits until it is warm (2 s)."""
        if self._folder is not None and self._watching is None:
            await asyncio.to_thread(self._folder.scan)
            watch = supervise("voices-folder", partial(self._watch, self._folder), self._metrics)
            self._watching = asyncio.create_task(watch, name="voices-folder")
        await self._worker.open()

    def names(self) -> list[VoiceInfo]:
        """What the worker found installed, and what is in the folder; empty before `open`."""
        found = list(self._worker.voices)
        if self._folder is not None and "piper" in self._worker.providers:
            found[1:1] = self._folder.voices  # behind piper:joe, before the many of espeak
        return found

    async def ranking(self, text: str, languages: list[str]) -> list[tuple[str, float]]:
        """See `SpeechWorker.ranking`."""
        return await self._worker.ranking(text, languages)

    def warnings(self) -> dict[str, str]:
        """Files of the folder that are no voice that can be used, and why."""
        return dict(self._folder.warnings) if self._folder is not None else {}

    def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        pieces = [(texts.clean(piece), ms) for piece, ms in pauses.split(text)]
        length = sum(len(cleaned) for cleaned, _ in pieces)
        if not length:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "`text` has nothing that can be spoken: give it at least one letter or digit.",
                field="text",
            )
        if length > TEXT_CHARACTERS:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"`text` has {length} characters, at most {TEXT_CHARACTERS} can be spoken at once: send it in pieces.",
                field="text",
                limit=TEXT_CHARACTERS,
                value=length,
            )
        parts = deque(_parts(pieces, options))
        said = self._said(voice, parts[0].text, options)
        first = self._worker.submit(voice, parts[0].text, speed=options.speed, said=said)
        return self._speak(parts, first, voice, options)

    async def aclose(self) -> None:
        """Ends the worker."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        await self._worker.aclose()

    async def _watch(self, folder: VoiceFolder) -> None:
        while True:
            await asyncio.sleep(SCAN_S)
            await asyncio.to_thread(folder.scan)

    def _on_broken(self, voice: str) -> None:
        if self._folder is not None:
            self._folder.mark_broken(voice)

    def _said(self, voice: str, text: str, options: SpeechOptions) -> tuple[lexicon.Said, ...]:
        """Words of a part that the lexicons say otherwise."""
        return lexicon.said(text, self._language(voice), options.lexicons) if options.lexicons else ()

    def _language(self, voice: str) -> str:
        return next((info.language for info in self.names() if voice in info.names), "")

    async def _speak(
        self, parts: deque[texts.Part], first: asyncio.Future[SpokenPart], voice: str, options: SpeechOptions
    ) -> AsyncGenerator[SpeechChunk, None]:
        making = deque([(parts.popleft(), first)])
        position, character_s = 0, CHARACTER_S / options.speed
        began: float | None = None
        try:
            while making:
                part, result = making[0]
                spoken = await result
                making.popleft()
                began = asyncio.get_running_loop().time() if began is None else began
                due = began + (position + len(spoken.pcm) // 2) / spoken.sample_rate
                due += sum(character_s * len(ahead.text) for ahead, _ in making)
                while parts and len(making) < PARTS_AHEAD:
                    following = parts.popleft()
                    said = self._said(voice, following.text, options)
                    made = self._worker.submit(voice, following.text, speed=options.speed, said=said, due=due)
                    making.append((following, made))
                    due += character_s * len(following.text)
                for chunk in _chunks(spoken, part, position, options.speed):
                    yield chunk
                    position += len(chunk.pcm) // 2
        finally:
            for _, result in making:
                result.cancel()
        if position == 0:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"The voice {voice!r} can pronounce nothing of `text`: use a voice of the text's language.",
                field="text",
            )


def _parts(pieces: list[tuple[str, int]], options: SpeechOptions) -> list[texts.Part]:
    """The parts of a text between its pauses."""
    sentence, paragraph = options.sentence_pause_ms, options.paragraph_pause_ms
    out: list[texts.Part] = []
    before_ms = 0
    for cleaned, ms in pieces:
        made = texts.parts(
            cleaned,
            early=not out,
            sentence_ms=texts.SENTENCE_PAUSE_MS if sentence is None else sentence,
            paragraph_ms=texts.PARAGRAPH_PAUSE_MS if paragraph is None else paragraph,
        )
        if made:
            made[0] = replace(made[0], before_ms=before_ms)
            made[-1] = replace(made[-1], silence_ms=ms)
            out, before_ms = [*out, *made], 0
        elif out:
            out[-1] = replace(out[-1], silence_ms=min(pauses.PAUSE_MS_MAX, out[-1].silence_ms + ms))
        else:
            before_ms = min(pauses.PAUSE_MS_MAX, before_ms + ms)
    return out


def _chunks(spoken: SpokenPart, part: texts.Part, position: int, speed: float) -> Iterator[SpeechChunk]:
    """The part and the pause after it in pieces; all its cues and words go with the first, so that they come before their sound."""
    rate = spoken.sample_rate
    if not spoken.pcm:
        return
    pause = round(rate * (part.silence_ms or part.pause_ms / speed) / 1000)
    before = rate * part.before_ms // 1000
    begin = position + before
    end = begin + len(spoken.pcm) // 2
    pcm = memoryview(bytes(2 * before) + spoken.pcm + bytes(2 * pause))
    cues = [CueItem(phoneme=p, start=begin + a, end=begin + b) for p, a, b in spoken.cues]
    if cues and before:
        cues.insert(0, CueItem(phoneme=PAUSE, start=position, end=begin))
    if cues and pause:
        cues.append(CueItem(phoneme=PAUSE, start=end, end=end + pause))
    words = _words(spoken, part.text, begin)
    step = 2 * (rate * CHUNK_MS // 1000)
    for at in range(0, len(pcm), step):
        piece = bytes(pcm[at : at + step])
        yield SpeechChunk(piece, rate, tuple(cues), words) if at == 0 else SpeechChunk(piece, rate, ())


def _words(spoken: SpokenPart, text: str, position: int) -> tuple[CaptionWord, ...]:
    """What is said, with a space after the part."""
    if not spoken.words:
        return spread(text + " ", position, position + len(spoken.pcm) // 2)
    words = [CaptionWord(text=word, start=position + a, end=position + b) for word, a, b in spoken.words]
    words[-1].text += " "
    return tuple(words)
