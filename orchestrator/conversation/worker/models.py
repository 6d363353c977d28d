"""The models of a conversation, made for livekit-agents. None of them connects to anything yet."""

from __future__ import annotations

from functools import cache
from typing import Any

import aiohttp
from livekit.agents import AgentSession, inference, llm, stt, tts
from livekit.plugins import openai

from orchestrator.conversation.conversation_messages import OpenConversation, Provider
from orchestrator.conversation.worker.short_memory import ShortMemory
from orchestrator.conversation.worker.timed_voice import SAMPLE_RATE, TimedVoice


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
