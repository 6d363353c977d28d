"""What a client asks of a conversation, and the models a deployment has for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from musetalk_agent.protocol.http import Strict
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.function_tools import FunctionTools

INSTRUCTIONS_CHARACTERS = 8000
DEFAULT_INSTRUCTIONS = (
    "You are the face on this page: friendly, brief and honest. You are a very small language model, and you say so when you do "
    "not know something. Answer in one or two short sentences."
)


class ModelChoice(Strict):
    """A model behind an address in OpenAI's dialect. `base_url` ends before `/chat/completions` and the like."""

    base_url: str = Field(min_length=8, max_length=2048)
    model: str = Field(min_length=1, max_length=200)
    api_key: str | None = Field(default=None, min_length=1, max_length=512, repr=False)

    def provider(self) -> Provider:
        """For the worker."""
        return Provider(base_url=self.base_url.rstrip("/"), model=self.model, api_key=self.api_key or "-")


class ConversationRequest(Strict):
    """`conversation` of `POST /session/start`."""

    instructions: str = Field(default=DEFAULT_INSTRUCTIONS, min_length=1, max_length=INSTRUCTIONS_CHARACTERS)
    greeting: str | None = Field(default=None, min_length=1, max_length=1000)
    language: str = Field(default="en", min_length=2, max_length=16)
    voice: str | None = Field(default=None, min_length=1, max_length=128)
    llm: ModelChoice | None = None
    stt: ModelChoice | None = None
    tools: FunctionTools = ()


@dataclass(frozen=True)
class ConversationOptions:
    """The deployment's models; None: the embedded one.

    Attributes:
        python: interpreter of the environment with livekit-agents; None where there is no such environment.
        llm, stt: by environment, for sessions that name none.
        threads: of each embedded model.
    """

    python: str | None = None
    llm: Provider | None = field(default=None, repr=False)
    stt: Provider | None = field(default=None, repr=False)
    threads: int = 2
