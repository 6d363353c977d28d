"""One conversation: hears the room's microphone, answers through a language model, and speaks through the avatar."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.agents import AgentSession, inference, llm
from livekit.agents.voice import SpeechHandle, events, room_io
from livekit.agents.voice.turn import (
    EndpointingOptions,
    InterruptionOptions,
    PreemptiveGenerationOptions,
    TurnHandlingOptions,
)
from pydantic import BaseModel

from musetalk_agent.protocol.action_marks import ActionMarks
from musetalk_agent.protocol.sdk_errors import clean_up
from orchestrator.conversation.conversation_messages import (
    ConversationEnded,
    ConversationEvent,
    HistoryMessage,
    ListeningTo,
    MessageAdded,
    MicrophoneReport,
    OpenConversation,
    ToolResult,
    WordsSpoken,
)
from orchestrator.conversation.worker import awaited_events, models, room_microphones
from orchestrator.conversation.worker.echo import RATE, PlayedSound
from orchestrator.conversation.worker.floor import Floor
from orchestrator.conversation.worker.gated_vad import GatedVAD, VadGate
from orchestrator.conversation.worker.heard_output import HeardOutput
from orchestrator.conversation.worker.inline_executor import InlineExecutor
from orchestrator.conversation.worker.interruption import WINDOW_S
from orchestrator.conversation.worker.room_agent import RoomAgent
from orchestrator.conversation.worker.room_captions import RoomCaptions
from orchestrator.conversation.worker.room_microphones import LouderMicrophone, MicrophoneWatch, OpenMicrophones, State
from orchestrator.conversation.worker.room_texts import RoomTexts
from orchestrator.conversation.worker.timed_voice import SAMPLE_RATE, TimedVoice
from orchestrator.conversation.worker.turn_ends import TurnEnds
from orchestrator.conversation.worker.webhook_tools import WebhookTools

log = logging.getLogger(__name__)

END_OF_TURN_S = 0.3
"""A turn ends this long after the last speech, as livekit-agents has it with its own turn detector; the VAD adds 0.25 s."""
EARLY_ANSWERS = 6
"""Answers that are begun in one turn, at its pauses, and thrown away when it goes on. After so many it is waited for its end."""
_NEVER_S = 3600.0
"""livekit-agents interrupts on no length of speech by itself: `Floor` does."""
_CLOSE_S = 5.0
TEXTS_MAX = 16
"""Texts that wait for their answers. As many as the service lets wait."""


class RoomConversation:
    """Talks in one room from `run` until `close` or the loss of the room.

    Args:
        opening: what to be, and where.
        report: takes messages for the service; must not block.
    """

    def __init__(self, opening: OpenConversation, report: Callable[[BaseModel], None]) -> None:
        self._opening = opening
        self._report = report
        self._room = rtc.Room()
        self._ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._session: AgentSession[None] | None = None
        self._texts: asyncio.Queue[tuple[str, str]] = asyncio.Queue(TEXTS_MAX)
        self._tools = WebhookTools(opening.session_id, report)
        self._floor: Floor | None = None
        self._gate: VadGate | None = None
        self._louder: LouderMicrophone | None = None
        self._lines: list[SpeechHandle] = []
        self._early: list[str] = []  # lines that came before the conversation had begun
        self._linked = False
        self._replying = False
        self._heard: dict[str, float] = {}

    async def run(self) -> None:
        """Returns when the conversation is over, and reports why. Cancelling leaves the room."""
        reason = ""
        try:
            reason = await self._talk()
        except Exception as error:  # task boundary: whatever broke it, the service gets the reason
            log.exception("a conversation failed")
            reason = f"{type(error).__name__}: {error}"[:300]
        finally:
            await self._leave()
            self._report(ConversationEnded(session_id=self._opening.session_id, reason=reason))

    def close(self) -> None:
        """Ends `run` soon."""
        if not self._ending.done():
            self._ending.set_result("")

    def chat(self, message_id: str, text: str) -> None:
        """Answers a text as if it had been said; what the avatar says at the moment is interrupted."""
        try:
            self._texts.put_nowait((message_id, text))
        except asyncio.QueueFull:
            detail = f"{TEXTS_MAX} texts wait for their answers: this one is dropped"
            self._emit("warning", {"code": "conversation_busy", "detail": detail, "message_id": message_id})

    def take(self, result: ToolResult) -> None:
        """Hands the result of a function to the model that called it."""
        self._tools.take(result)

    def say(self, message_id: str, text: str) -> None:
        """Says a line of its own, after what is being said. What interrupts the avatar drops the lines that wait, too."""
        self._lines = [line for line in self._lines if not line.done()]
        if len(self._lines) + len(self._early) >= TEXTS_MAX:
            detail = f"{TEXTS_MAX} lines wait to be said: this one is dropped"
            self._emit("warning", {"code": "conversation_busy", "detail": detail, "message_id": message_id})
            return
        self._emit("reply.queued", {"text": self._plain(text), "message_id": message_id})
        self._early.append(text)
        self._say_early()

    def interrupt(self) -> None:
        """Ends what the avatar says, as a person's voice does; the history keeps what was heard of it."""
        self._early = []
        self._on_floor(Floor.interrupt)()

    def _say_early(self) -> None:
        if self._linked and self._session is not None:
            self._lines += [self._session.say(text) for text in self._early]
            self._early = []

    async def _talk(self) -> str:
        opening = self._opening
        self._room.on("disconnected", self._on_disconnected)
        await self._room.connect(opening.url, opening.token, room_microphones.OPTIONS)
        room_microphones.take_microphones(self._room)
        captions = RoomCaptions(self._room, opening.avatar_identity)
        output = HeardOutput(
            self._room,
            destination_identity=opening.avatar_identity,
            sample_rate=SAMPLE_RATE,
            captions=captions,
            sent=self._on_words,
            act=self._on_action,
        )
        heard = self._gated_detector(output)
        agent = RoomAgent(
            instructions=opening.instructions,
            chat_ctx=_history(opening),
            tools=[*self._tools.functions(opening.tools)],
        )
        session = self._session = self._make_session(heard, agent)
        session.output.audio = output
        floor = self._floor = Floor(session, output, opening.language)
        timed = isinstance(session.tts, TimedVoice)
        agent.floor, agent.recognises_early, agent.clips = floor, opening.recognise_early, opening.clips
        await session.start(
            agent=agent,
            room=self._room,
            room_options=_room_options(timed=timed),
            session_host=False,  # or every participant reads the instructions and drives the conversation
        )
        if timed:
            session.output.transcription = None  # `captions` knows when each word is heard
        self._linked = True
        microphones = OpenMicrophones(self._room, self._listen_to)  # the first person to join may only watch
        microphones.open()
        if opening.greeting and not opening.history:
            models.greet(session, opening)
        self._say_early()
        if opening.answer_last:  # the worker that heard it was lost before it answered
            session.generate_reply()
        texts = RoomTexts(self._room, self.chat, self._on_dropped_text, time.monotonic)
        texts.open()
        tasks = [
            asyncio.create_task(self._answer_texts(session), name="answer-texts"),
            asyncio.create_task(captions.run(), name="room-captions"),
        ]
        tasks += self._microphone_watches(session)
        try:
            for task in tasks:
                task.add_done_callback(self._on_task_done)
            return await self._ending
        finally:
            for task in tasks:
                task.cancel()
            microphones.close()
            texts.close()
            floor.close()
            await output.aclose()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _microphone_watches(self, session: AgentSession[None]) -> list[asyncio.Task[None]]:
        """One, where the session hears a microphone."""
        if session.input.audio is None:
            return []
        watch = MicrophoneWatch(session.input.audio, self._room, self._on_microphone, awaited_events.dropped)
        self._louder = session.input.audio = LouderMicrophone(watch)
        return [asyncio.create_task(watch.run(), name="microphone-watch")]

    def _gated_detector(self, output: HeardOutput) -> GatedVAD:
        """The detector of the user's speech, behind the gate that keeps out what the avatar says."""
        self._gate = VadGate(
            PlayedSound(output.played),
            self._on_floor(Floor.hold),
            self._on_floor(Floor.cut),
            self._on_floor(Floor.quiet),
        )
        detector = inference.VAD(min_speech_duration=WINDOW_S, min_silence_duration=0.25, executor=InlineExecutor())
        return GatedVAD(detector, self._gate)

    async def _answer_texts(self, session: AgentSession[None]) -> None:
        """Answers texts in their order, each once the speech that it interrupts is over. Never returns normally."""
        while True:
            message_id, text = await self._texts.get()
            self._emit("user.transcript", {"text": text, "final": True, "message_id": message_id})
            await session.interrupt()
            session.generate_reply(user_input=llm.ChatMessage(id=message_id, role="user", content=[text]))

    def _make_session(self, detector: GatedVAD, agent: RoomAgent) -> AgentSession[None]:
        opening = self._opening
        parts: dict[str, Any]
        if models.hears_itself(opening):  # the model decides when a turn ends, and what interrupts
            turns = TurnHandlingOptions(turn_detection="realtime_llm")
            parts = {"llm": models.realtime(opening), "vad": None, "turn_handling": turns}
        else:
            parts = {
                "vad": detector,
                "stt": models.recogniser(opening),
                "llm": models.language_model(opening),
                "tts": models.voice(opening),
                "turn_handling": TurnHandlingOptions(
                    turn_detection=TurnEnds(opening.language, lambda: agent.words),
                    endpointing=EndpointingOptions(mode="fixed", min_delay=END_OF_TURN_S, max_delay=1.0),
                    preemptive_generation=PreemptiveGenerationOptions(preemptive_tts=True, max_retries=EARLY_ANSWERS),
                    interruption=InterruptionOptions(
                        mode="vad",
                        min_duration=_NEVER_S,
                        resume_false_interruption=False,
                        false_interruption_timeout=None,
                    ),
                ),
            }
        session: AgentSession[None] = AgentSession(
            **parts,
            use_tts_aligned_transcript=False,  # a reply that was heard whole keeps the model's own text
            aec_warmup_duration=None,
            user_away_timeout=None,
        )
        session.on("user_state_changed", self._on_user_state)
        session.on("user_input_transcribed", self._on_transcript)
        session.on("agent_state_changed", self._on_agent_state)
        session.on("conversation_item_added", self._on_item)
        session.on("error", self._on_error)
        session.on("close", self._on_close)
        return session

    def _on_floor(self, act: Callable[[Floor], None]) -> Callable[[], None]:
        def run() -> None:
            if self._floor is not None:
                act(self._floor)

        return run

    async def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await clean_up(session.aclose(), _CLOSE_S, log, part="session")
        await clean_up(self._room.disconnect(), _CLOSE_S, log, part="room")

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self._ending.done():
            self._ending.set_result(f"{task.get_name()} failed: {task.exception()!r}"[:300])

    # --- what the room and livekit-agents report

    def _on_microphone(self, state: State) -> None:
        self._report(MicrophoneReport(session_id=self._opening.session_id, state=state))

    def _on_words(self, text: str) -> None:
        self._report(WordsSpoken(session_id=self._opening.session_id, text=text))

    def _plain(self, text: str) -> str:
        """A text without its marks."""
        return ActionMarks(self._opening.clips).whole(text)

    def _on_action(self, name: str) -> None:
        self._emit("reply.action", {"name": name})

    def _on_disconnected(self, reason: object) -> None:
        if not self._ending.done():
            self._ending.set_result(f"the room was lost ({reason})")

    def _listen_to(self, identity: str) -> None:
        if self._session is not None:
            if self._gate is not None:
                self._gate.forget()
            if self._louder is not None:
                self._louder.forget()
            self._session.room_io.set_participant(identity)
            self._report(ListeningTo(session_id=self._opening.session_id, participant=identity))

    def _on_dropped_text(self, detail: str) -> None:
        self._emit("warning", {"code": "conversation_busy", "detail": detail})

    def _on_user_state(self, event: events.UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._emit("user.started", {})

    def _on_transcript(self, event: events.UserInputTranscribedEvent) -> None:
        if event.transcript:  # a realtime model begins with nothing
            self._emit("user.transcript", {"text": event.transcript, "final": event.is_final})

    def _on_agent_state(self, event: events.AgentStateChangedEvent) -> None:
        if event.new_state == "speaking" and not self._replying:
            self._replying = True
            self._emit("reply.started", {})
        if event.old_state == "speaking" and event.new_state != "speaking" and self._replying:
            # a realtime model's message comes after the state
            asyncio.get_running_loop().call_soon(self._end_unheard)
        self._emit("conversation.state", {"state": event.new_state})

    def _end_unheard(self) -> None:
        """Not one word of the reply was heard: there is no message."""
        if self._replying:
            self._replying = False
            self._emit("reply.finished", {"text": "", "interrupted": True})

    def _on_item(self, event: events.ConversationItemAddedEvent) -> None:
        item = event.item
        if not isinstance(item, llm.ChatMessage) or item.role not in ("user", "assistant"):
            return
        text, metrics = self._plain(item.text_content or ""), item.metrics
        if item.role == "user":
            self._heard = {"heard_ms": metrics.get("end_of_turn_delay", 0.0)}  # the transcript came within it
        else:
            self._replying = False
            self._emit("reply.finished", {"text": text, "interrupted": item.interrupted})
            parts = {"thought_ms": metrics.get("llm_node_ttft", 0.0), "spoke_ms": metrics.get("tts_node_ttfb", 0.0)}
            if self._heard:
                self._emit("turn", {name: round(1000 * value) for name, value in (self._heard | parts).items()})
                self._heard = {}
        message = HistoryMessage(
            id=item.id,
            role="user" if item.role == "user" else "assistant",
            text=text,
            interrupted=item.interrupted,
            created_at=item.created_at,
        )
        self._report(MessageAdded(session_id=self._opening.session_id, message=message))

    def _on_error(self, event: events.ErrorEvent) -> None:
        part = models.part_of(event.source)
        detail = f"{part}: {event.error!r}"[:300]
        self._emit("warning", {"code": "conversation_provider", "part": part, "detail": detail})

    def _on_close(self, event: events.CloseEvent) -> None:
        if not self._ending.done():
            self._ending.set_result(f"the conversation closed ({event.reason.value})")

    def _emit(self, name: str, data: dict[str, object]) -> None:
        self._report(ConversationEvent(session_id=self._opening.session_id, name=name, data=data))


def _history(opening: OpenConversation) -> llm.ChatContext:
    """What was said in the conversation before."""
    history = llm.ChatContext.empty()
    for message in opening.history:
        history.add_message(role=message.role, content=message.text, id=message.id, created_at=message.created_at)
    return history


def _room_options(*, timed: bool) -> room_io.RoomOptions:
    """`timed`: the voice gives the time of each word, and `RoomCaptions` shows them."""
    return room_io.RoomOptions(
        audio_input=room_io.AudioInputOptions(sample_rate=RATE, auto_gain_control=False),
        audio_output=False,
        text_output=room_io.TextOutputOptions(sync_transcription=not timed),
        text_input=False,  # `RoomTexts` bounds them
        close_on_disconnect=False,
    )
