"""livekit-agents' voice activity detector, behind a gate: while the avatar is heard, only a person's speech passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import vad
from livekit.agents.vad import VADEvent, VADEventType

from orchestrator.conversation.worker.echo import KEPT_S, RATE, Echo, EchoPath, PlayedSound
from orchestrator.conversation.worker.interruption import ECHO_S, LIKELY, SPEECH_S, WINDOW, SpeechEvidence

PADDING_S = 0.5
"""Recordings begin so long before the speech, as the detector's own do."""
_DRIFT_S = 0.0001
_GAP_S = 0.5


class VadGate:
    """Decides which of the detector's events pass. Pure but for the clock that is passed in.

    Args:
        played: what the avatar says, by the same clock.
        hold, cut, quiet: called when a person speaks, has spoken for long enough to interrupt, and speaks no more.
    """

    def __init__(
        self,
        played: PlayedSound,
        hold: Callable[[], None],
        cut: Callable[[], None],
        quiet: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._played, self._clock = played, clock
        self._hold, self._cut, self._quiet = hold, cut, quiet
        self._echo = EchoPath()
        self._evidence = SpeechEvidence()
        self._unclear = SpeechEvidence()  # of what may be the avatar, too
        self._inside = self._released = False
        self._in_a_row = 0  # windows of speech
        self._samples = 0
        self._onset: int | None = None
        self._unclear_onset = 0
        self._anchor: float | None = None

    def pass_on(self, event: VADEvent) -> Iterator[VADEvent]:
        """The events that pass instead of this one."""
        if event.type is VADEventType.INFERENCE_DONE:
            yield from self._window(event)
        elif event.type is VADEventType.START_OF_SPEECH:
            self._inside = True
            if not self._echo.sounding:
                self._onset = None
            if self._speaks:
                self._released = True
                yield event
                self._act()
        else:
            self._inside = False
            if not self._released and self._person_after_all():
                self._released, self._onset = True, self._unclear_onset
                yield replace(event, type=VADEventType.START_OF_SPEECH, speaking=True)
                self._hold()
            self._reset()
            if self._released:
                self._released = False
                self._quiet()
                yield replace(event, frames=[self._since_onset(frame) for frame in event.frames])

    def forget(self) -> None:
        """Another microphone is heard: whether the avatar comes back through it is not known."""
        now = self._clock() if self._anchor is None else self._anchor
        self._echo = EchoPath(self._played.between(now - KEPT_S, round(KEPT_S * RATE)))

    def flush(self) -> None:
        """The detector begins anew."""
        self._inside = self._released = False
        self._in_a_row = 0
        self._reset()

    def _reset(self) -> None:
        self._evidence.reset()
        self._unclear.reset()

    def _person_after_all(self) -> bool:
        """Speech is over, and while it lasted it might have been the avatar: the whole of it shows more."""
        return self._echo.state is Echo.UNKNOWN and self._unclear.person and self._echo.unlike

    def _window(self, event: VADEvent) -> Iterator[VADEvent]:
        window = _at_16_khz(event.frames[0])
        self._samples += event.frames[0].samples_per_channel
        ends = self._time(len(window) / RATE)
        self._echo.push(window, self._played.between(ends - len(window) / RATE, len(window)))
        self._weigh(event.probability, window, self._samples - event.frames[0].samples_per_channel)
        self._in_a_row = self._in_a_row + 1 if event.probability >= LIKELY else 0
        if self._inside and not self._released and self._speaks:
            self._released = True
            yield replace(
                event, type=VADEventType.START_OF_SPEECH, speech_duration=self._evidence.speech_s, speaking=True
            )
        if not self._released:
            yield replace(event, speaking=False, speech_duration=0.0, raw_accumulated_speech=0.0)
            return
        yield event
        self._act()

    @property
    def _speaks(self) -> bool:
        """Speech is heard: a person's while the avatar is heard, and else whatever the detector takes for speech twice in a row."""
        return self._evidence.person or (self._in_a_row >= 2 and not self._echo.sounding)

    def _act(self) -> None:
        if self._evidence.person:
            self._hold()
        if self._evidence.certain:
            self._cut()

    def _weigh(self, probability: float, window: npt.NDArray[np.float64], begins: int) -> None:
        """`begins`: the number of the window's first sample."""
        clear, unclear = self._evidence, self._unclear
        clear_s, unclear_s = clear.speech_s, unclear.speech_s
        echoes = self._echo.state is Echo.HEARD
        louder = self._echo.louder(2) if probability >= LIKELY else None  # what is no speech does not count
        clear.needed_s = ECHO_S if echoes else SPEECH_S
        clear.takes_sure = self._echo.sounding and self._echo.state is Echo.NONE
        clear.add(probability, window, louder)
        unclear.add(probability, window, 1.0 if louder is None else louder)
        if unclear.speech_s and not unclear_s:
            self._unclear_onset = begins
        if clear.speech_s and not clear_s and not self._released:
            self._onset = begins if echoes else self._unclear_onset

    def _time(self, seconds: float) -> float:
        """When the window ended. Windows come in bursts, sound does not: the earliest of late ones is right."""
        now = self._clock()
        steady = now if self._anchor is None else self._anchor + seconds + _DRIFT_S
        self._anchor = now if now < steady or now - steady > _GAP_S else steady
        return self._anchor

    def _since_onset(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        if self._onset is None:
            return frame
        wanted = self._samples - self._onset + round(PADDING_S * frame.sample_rate)
        if wanted >= frame.samples_per_channel:
            return frame
        kept = np.frombuffer(frame.data, np.int16)[-wanted:]
        return rtc.AudioFrame(kept.tobytes(), frame.sample_rate, 1, len(kept))


class GatedVAD(vad.VAD):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """Every stream gets the same events: one of them runs the detector, for all of them hear the same microphone."""

    def __init__(self, detector: vad.VAD, gate: VadGate) -> None:
        super().__init__(capabilities=detector.capabilities)
        self.detector, self.gate = detector, gate
        self.streams: list[_GatedStream] = []

    @property
    def min_silence_duration(self) -> float | None:
        """Of the detector; livekit-agents looks at it."""
        found: float | None = getattr(self.detector, "min_silence_duration", None)
        return found

    def stream(self) -> vad.VADStream:
        """The first of those that are open runs the detector."""
        made = _GatedStream(self)
        self.streams.append(made)
        return made


class _GatedStream(vad.VADStream):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    async def _main_task(self) -> None:
        parent = self._vad
        assert isinstance(parent, GatedVAD)
        inner: vad.VADStream | None = None
        relaying: asyncio.Task[None] | None = None
        try:
            async for item in self._input_ch:
                if parent.streams[0] is not self:
                    continue
                if inner is None:
                    inner = parent.detector.stream()
                    parent.gate.flush()
                    relaying = asyncio.create_task(self._relay(parent, inner), name="gated-vad")
                if isinstance(item, rtc.AudioFrame):
                    inner.push_frame(item)
                else:
                    inner.flush()
                    parent.gate.flush()
        finally:
            parent.streams.remove(self)
            if inner is not None and relaying is not None:
                await inner.aclose()
                relaying.cancel()
                await asyncio.gather(relaying, return_exceptions=True)

    async def _relay(self, parent: GatedVAD, inner: vad.VADStream) -> None:
        async for event in inner:
            for passed in parent.gate.pass_on(event):
                for stream in parent.streams:
                    if not stream._event_ch.closed:
                        stream._event_ch.send_nowait(passed)


def _at_16_khz(frame: rtc.AudioFrame) -> npt.NDArray[np.float64]:
    """One window of the detector."""
    samples = np.frombuffer(frame.data, np.int16).astype(np.float64)
    if len(samples) == WINDOW:
        return samples
    return np.interp(np.arange(WINDOW) * len(samples) / WINDOW, np.arange(len(samples)), samples)
