"""The models of a conversation, made for livekit-agents. None of them connects to anything yet."""

from __future__ import annotations

from functools import cache
from typing import Any

import aiohttp
from livekit.agents import AgentSession, inference, llm, stt, tts
from livekit.plugins import openai

from orchestrator.conversation.conversation_messages import OpenConversation, Provider
from orchestrator.conversation.worker.timed_voice import SAMPLE_RATE, TimedVoice

CHARACTERS = 1000
"""Of history, some 280 tokens. When the oldest go by, the rest is read anew: with 4000 the thirteenth and the
seventeenth answer of a conversation were not begun within the 10 s that livekit-agents waits, and the turns were lost."""
STEP = 8
"""The oldest messages go by so many at once: in between the prompt begins as the last one did, and is not read anew."""


class ShortMemory(openai.LLM):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`openai.LLM` that leaves the oldest messages out, for a model with a small context."""

    def chat(self, *, chat_ctx: llm.ChatContext, **options: Any) -> llm.LLMStream:
        """See `LLM.chat`."""
        kept = chat_ctx.copy()
        sizes = [len(item.text_content or "") if isinstance(item, llm.ChatMessage) else 0 for item in kept.items]
        cut = oldest_kept(sizes)
        if cut:
            kept.truncate(max_items=len(sizes) - cut)
        return super().chat(chat_ctx=kept, **options)


def oldest_kept(sizes: list[int]) -> int:
    """Number of the first message that is kept, a multiple of `STEP`; `sizes` are characters, oldest first."""
    cut, left = 0, sum(sizes)
    while left > CHARACTERS and cut + STEP < len(sizes):
        left -= sum(sizes[cut : cut + STEP])
        cut += STEP
    return cut


def recogniser(opening: OpenConversation) -> openai.STT | inference.STT:
    """Speech to text."""
    if opening.stt.dialect == "livekit":
        return inference.STT(language=opening.language, http_session=_http(), **_access(opening.stt))
    return openai.STT(**_address(opening.stt), language=opening.language, use_realtime=False)


def language_model(opening: OpenConversation) -> openai.LLM | inference.LLM:
    """The language model."""
    if opening.llm.dialect == "livekit":
        return inference.LLM(**_access(opening.llm))
    if opening.reply_tokens:  # the embedded one
        return ShortMemory(**_address(opening.llm), max_completion_tokens=opening.reply_tokens)
    return openai.LLM(**_address(opening.llm))


def voice(opening: OpenConversation) -> TimedVoice | openai.TTS | inference.TTS:
    """Text to speech, at 24 kHz. Only the orchestrator's voices report the time of each word."""
    if opening.tts.dialect == "own":
        return TimedVoice(opening.tts, opening.voice)
    if opening.tts.dialect == "livekit":
        named = {"voice": opening.voice} if opening.voice else {}
        sound = {"sample_rate": SAMPLE_RATE, "encoding": "pcm_s16le"}
        return inference.TTS(**_access(opening.tts), **named, **sound, language=opening.language, http_session=_http())
    return openai.TTS(**_address(opening.tts), voice=opening.voice or "alloy", response_format="pcm")


def hears_itself(opening: OpenConversation) -> bool:
    """One realtime model hears, thinks and speaks."""
    return opening.llm.dialect == "realtime"


def realtime(opening: OpenConversation) -> openai.realtime.RealtimeModel:
    """That model. It decides itself when the user has finished."""
    voice = {"voice": opening.voice} if opening.voice else {}
    return openai.realtime.RealtimeModel(**_address(opening.llm), **voice)


def part_of(source: object) -> str:
    """Which part of a conversation a model is: `stt`, `llm` (a realtime model too), `tts`, or `other`."""
    kinds = {"stt": stt.STT, "llm": (llm.LLM, llm.RealtimeModel), "tts": tts.TTS}
    return next((part for part, kind in kinds.items() if isinstance(source, kind)), "other")


def greet(session: AgentSession[None], opening: OpenConversation) -> None:
    """Says the greeting: with its own voice, which for a realtime model is the model's."""
    if hears_itself(opening):
        session.generate_reply(instructions=f"Greet the user with exactly these words: {opening.greeting}")
    else:
        session.say(opening.greeting)


def _address(provider: Provider) -> dict[str, Any]:
    return {"base_url": provider.base_url, "model": provider.model, "api_key": provider.api_key}


def _access(provider: Provider) -> dict[str, Any]:
    return {**_address(provider), "api_secret": provider.api_secret}


@cache
def _http() -> aiohttp.ClientSession:
    """For what keeps none of its own: one for the process, which has one event loop, until the process ends."""
    return aiohttp.ClientSession()
