"""The models of a conversation, made for livekit-agents."""

from __future__ import annotations

from livekit.plugins import openai

from orchestrator.conversation.conversation_messages import OpenConversation
from orchestrator.conversation.worker.timed_voice import TimedVoice


def recogniser(opening: OpenConversation) -> openai.STT:
    """Speech to text. Connects to nothing yet."""
    return openai.STT(
        base_url=opening.stt.base_url,
        model=opening.stt.model,
        api_key=opening.stt.api_key,
        language=opening.language,
        use_realtime=False,
    )


def language_model(opening: OpenConversation) -> openai.LLM:
    """The language model. Connects to nothing yet."""
    return openai.LLM(
        base_url=opening.llm.base_url,
        model=opening.llm.model,
        api_key=opening.llm.api_key,
        **({"max_completion_tokens": opening.reply_tokens} if opening.reply_tokens else {}),
    )


def voice(opening: OpenConversation) -> TimedVoice:
    """One of the orchestrator's voices. Connects to nothing yet."""
    return TimedVoice(opening.tts, opening.voice)
