"""A language model with a small context gets the newest part of a long conversation."""

from __future__ import annotations

from typing import Any

from livekit.agents import llm
from livekit.plugins import openai

CHARACTERS = 1000
"""Of history, some 280 tokens. When the oldest go by, the rest is read anew: with 4000 the thirteenth and the
seventeenth answer of a conversation were not begun within the 10 s that livekit-agents waits, and the turns were lost."""
STEP = 8
"""The oldest messages go by so many at once: in between the prompt begins as the last one did, and is not read anew."""


class ShortMemory(openai.LLM):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`openai.LLM` that leaves the oldest messages out."""

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
