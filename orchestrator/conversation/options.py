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


class RealtimeChoice(Strict):
    """A model of OpenAI's realtime dialect, which hears and speaks itself. `base_url` ends before `/realtime`."""

    base_url: str = Field(min_length=8, max_length=2048)
    model: str = Field(min_length=1, max_length=200)
    voice: str | None = Field(default=None, min_length=1, max_length=128)
    api_key: str | None = Field(default=None, min_length=1, max_length=512, repr=False)


class ConversationRequest(Strict):
    """`conversation` of `POST /session/start`."""

    instructions: str = Field(default=DEFAULT_INSTRUCTIONS, min_length=1, max_length=INSTRUCTIONS_CHARACTERS)
    greeting: str | None = Field(default=None, min_length=1, max_length=1000)
    language: str = Field(default="en", min_length=2, max_length=16)
    voice: str | None = Field(default=None, min_length=1, max_length=128)
    llm: ModelChoice | None = None
    stt: ModelChoice | None = None
    tts: ModelChoice | None = None
    realtime: RealtimeChoice | None = None
    tools: FunctionTools = ()

    @model_validator(mode="after")
    def _one_way(self) -> ConversationRequest:
        if self.realtime is not None and (self.llm or self.stt or self.tts):
            raise ValueError("a realtime model hears and speaks itself: leave llm, stt and tts out")
        return self

    @property
    def names_models(self) -> bool:
        """It says where models are, which only an operator may."""
        return any(choice is not None for choice in (self.llm, self.stt, self.tts, self.realtime))


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
class Serving:
    """What serves one conversation; None: the embedded model, or the orchestrator's voices. `voice` is empty for the default."""

    llm: Provider | None
    stt: Provider | None
    tts: Provider | None
    voice: str

    @property
    def names(self) -> dict[str, str]:
        """As the answer to a start has them: of the orchestrator's voices those of a provider elsewhere by name."""
        own = self.voice if self.voice.startswith(("elevenlabs:", "openai:")) else "embedded"
        return {
            "llm": "embedded" if self.llm is None else self.llm.model,
            "stt": "embedded" if self.stt is None else self.stt.model,
            "tts": own if self.tts is None else self.tts.model,
        }


def realtime_provider(base_url: str, model: str, api_key: str | None) -> Provider:
    """A model of the realtime dialect."""
    return Provider(base_url=base_url.rstrip("/"), model=model, api_key=api_key or "-", dialect="realtime")


@dataclass(frozen=True)
class ConversationOptions:
    """The deployment's models; None: the embedded one, or the orchestrator's voices.

    Attributes:
        python: interpreter of the environment with livekit-agents; None where there is no such environment.
        llm, stt, tts: by environment, for sessions that name none.
        tts_voice: of `tts`, for sessions that name none.
        realtime, realtime_voice: a model that is all three, for sessions that name none of them.
        inference: LiveKit's inference; None where the deployment's LiveKit has none.
        threads: of each embedded model. The language model has one: on a busy machine its threads wait for each other at every
            layer, and 60 tokens took 10 to 21 s with two and 2 to 6 s with one (two cores, load 16).
    """

    python: str | None = None
    llm: Provider | None = field(default=None, repr=False)
    stt: Provider | None = field(default=None, repr=False)
    tts: Provider | None = field(default=None, repr=False)
    tts_voice: str = ""
    realtime: Provider | None = field(default=None, repr=False)
    realtime_voice: str = ""
    inference: InferenceAccess | None = None
    threads: dict[str, int] = field(default_factory=lambda: {"llm": 1, "stt": 2})

    def serving(self, request: ConversationRequest) -> Serving:
        """The models of a session, and the name of its voice. Raises ProblemError as `chosen` does."""
        if request.realtime is not None:
            given = request.realtime
            model = realtime_provider(given.base_url, given.model, given.api_key)
            return Serving(model, model, model, given.voice or request.voice or "")
        if self.realtime is not None and not request.names_models:
            return Serving(self.realtime, self.realtime, self.realtime, request.voice or self.realtime_voice)
        tts = self.chosen("tts", request.tts)
        return Serving(
            self.chosen("llm", request.llm),
            self.chosen("stt", request.stt),
            tts,
            request.voice or (self.tts_voice if tts is not None else ""),
        )

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
