"""What a client asks of a conversation, and the models a deployment has for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator

from musetalk_agent.protocol.http import Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.function_tools import FunctionTools

INSTRUCTIONS_CHARACTERS = 8000
DEFAULT_INSTRUCTIONS = (
    "You are the face on this page: friendly, brief and honest. You are a very small language model, and you say so when you do "
    "not know something. Answer in one or two short sentences."
)


class ModelChoice(Strict):
    """A model: behind an address in OpenAI's dialect (`base_url` ends before `/chat/completions` and the like), or LiveKit's.

    With `provider` `livekit` the model is a name of LiveKit's inference such as `openai/gpt-4o-mini`; address and key are the
    deployment's.
    """

    provider: Literal["openai", "livekit"] = "openai"
    base_url: str | None = Field(default=None, min_length=8, max_length=2048)
    model: str = Field(min_length=1, max_length=200)
    api_key: str | None = Field(default=None, min_length=1, max_length=512, repr=False)

    @model_validator(mode="after")
    def _whole(self) -> ModelChoice:
        if self.provider == "openai" and self.base_url is None:
            raise ValueError("give base_url, or provider livekit")
        if self.provider == "livekit" and (self.base_url is not None or self.api_key is not None):
            raise ValueError(
                "with provider livekit address and key are the deployment's: leave base_url and api_key out"
            )
        return self


class ConversationRequest(Strict):
    """`conversation` of `POST /session/start`."""

    instructions: str = Field(default=DEFAULT_INSTRUCTIONS, min_length=1, max_length=INSTRUCTIONS_CHARACTERS)
    greeting: str | None = Field(default=None, min_length=1, max_length=1000)
    language: str = Field(default="en", min_length=2, max_length=16)
    voice: str | None = Field(default=None, min_length=1, max_length=128)
    llm: ModelChoice | None = None
    stt: ModelChoice | None = None
    tts: ModelChoice | None = None
    tools: FunctionTools = ()

    @property
    def names_models(self) -> bool:
        """It says where models are, which only an operator may."""
        return any(choice is not None for choice in (self.llm, self.stt, self.tts))


LIVEKIT_MODEL = "livekit:"
"""Before the name of a model of LiveKit's inference, in settings."""
LIVEKIT_INFERENCE_URL = "https://agent-gateway.livekit.cloud/v1"
"""As livekit-agents has it."""


@dataclass(frozen=True)
class InferenceAccess:
    """LiveKit's inference: address, and a key with its secret that may use it."""

    url: str
    key: str
    secret: str = field(repr=False)

    def provider(self, model: str) -> Provider:
        """Its model of this name."""
        return Provider(base_url=self.url, model=model, api_key=self.key, api_secret=self.secret, dialect="livekit")


@dataclass(frozen=True)
class ConversationOptions:
    """The deployment's models; None: the embedded one, or the orchestrator's voices.

    Attributes:
        python: interpreter of the environment with livekit-agents; None where there is no such environment.
        llm, stt, tts: by environment, for sessions that name none.
        tts_voice: of `tts`, for sessions that name none.
        inference: LiveKit's inference; None where the deployment's LiveKit has none.
        threads: of each embedded model.
    """

    python: str | None = None
    llm: Provider | None = field(default=None, repr=False)
    stt: Provider | None = field(default=None, repr=False)
    tts: Provider | None = field(default=None, repr=False)
    tts_voice: str = ""
    inference: InferenceAccess | None = None
    threads: int = 2

    def chosen(self, kind: Literal["llm", "stt", "tts"], choice: ModelChoice | None) -> Provider | None:
        """What serves: the session's choice, else the deployment's.

        Raises ProblemError `conversation_unavailable` for a model of LiveKit's where there is no such access.
        """
        if choice is None:
            return {"llm": self.llm, "stt": self.stt, "tts": self.tts}[kind]
        if choice.provider == "openai":
            return Provider(
                base_url=(choice.base_url or "").rstrip("/"), model=choice.model, api_key=choice.api_key or "-"
            )
        if self.inference is None:
            where = f"conversation.{kind}"
            raise ProblemError(
                ErrorCode.CONVERSATION_UNAVAILABLE,
                f"{where}: this deployment's LiveKit is none of LiveKit Cloud's, which alone has inference; set "
                "LIVEKIT_INFERENCE_API_KEY and LIVEKIT_INFERENCE_API_SECRET to use a project there.",
                field=where,
            )
        return self.inference.provider(choice.model)
