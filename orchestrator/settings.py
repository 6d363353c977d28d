"""Configuration: the one place that reads the environment."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.agents.modal_pool import ModalOptions
from orchestrator.audio.ingest import AudioLimits
from orchestrator.avatars.avatar_library import AvatarOptions
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.conversations import find_python
from orchestrator.conversation.options import (
    LIVEKIT_INFERENCE_URL,
    LIVEKIT_MODEL,
    ConversationOptions,
    InferenceAccess,
    realtime_provider,
)
from orchestrator.livekit_rooms import IngressMode, LiveKitKeys
from orchestrator.render_orders import RenderOptions
from orchestrator.session.model import SessionOptions
from orchestrator.session.standby_voice import VoiceStandby
from orchestrator.tts import lexicon
from orchestrator.tts.elevenlabs import ELEVENLABS_URL, ElevenLabsOptions
from orchestrator.tts.local import LOADED
from orchestrator.tts.openai_speech import OPENAI_URL, OPENAI_VOICES, OpenAIOptions
from orchestrator.tts.speech_settings import NATURAL_PAUSE_MS_MAX, VOICE_CHARACTERS, SpeechSettings
from orchestrator.tts.voices import VoiceOptions
from orchestrator.webhooks import secret, secure_address


def default_store_path() -> str:
    """In the user's state folder, as the XDG specification has it."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return str(Path(state).expanduser() / "musetalk-livekit" / "orchestrator.db")


def default_recording_dir() -> Path:
    """Beside the sessions' store."""
    return Path(default_store_path()).parent / "recordings"


def default_avatars_dir() -> Path:
    """Beside the sessions' store."""
    return Path(default_store_path()).parent / "avatars"


class SettingsError(Exception):
    """Variables are missing or wrong; the message names each and what it should be."""


class Settings(BaseSettings):
    """Environment of `musetalk-orchestrator serve`; names are the upper-case field names. Lists are separated by commas."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", populate_by_name=True)

    livekit_url: str
    livekit_api_key: str
    livekit_api_secret: SecretStr
    audio_token_secret: SecretStr | None = None
    """Signs the tokens of `audio_url`; the same at every orchestrator. By default LIVEKIT_API_SECRET does."""
    livekit_public_url: str | None = None
    """Address of LiveKit for clients, when it is not the one the services use."""
    livekit_playout_delay_ms: int = Field(default=0, ge=0, le=2000)
    """What viewers hold frames back for at least: 200 on networks that lose packets, see docs/reference/reliability.md."""
    orchestrator_api_key: SecretStr
    """Accepted API keys, separated by commas, so that a key can be changed without an interruption."""
    agent_pool: Literal["static", "modal"] = "static"
    """Where agents are: at the addresses of `AGENT_URL`, or in Modal's containers."""
    agent_url: Annotated[list[str], NoDecode] = Field(default=[], validate_default=True)
    agent_api_key: SecretStr
    modal_app: str = "musetalk-livekit"
    modal_agent: str = "Agent"
    """Names of the app and of the agents' server at Modal."""
    agent_wait_s: float = Field(default=90.0, gt=0, le=600)
    """Longest wait for a place in a container."""
    agent_idle_s: int = Field(default=120, ge=30, le=3600)
    """An unused place in a container ends after so long (s)."""
    agent_sessions_max: int = Field(default=0, ge=0)
    """Sessions that all containers may hold together; `/health` reports it."""
    public_url: str | None = None
    """Address of this service that `audio_url` is made from; otherwise the request's own host."""
    cors_origins: Annotated[list[str], NoDecode] = []
    allowed_origins: Annotated[list[str], NoDecode] = []
    """Origins whose pages may open `/audio`, beside our own; by default those of CORS_ORIGINS. `*`: any."""
    orchestrator_keys_file: Path | None = None
    """JSON file of further keys with scopes and limits; read again when it changes."""
    webhook_url: Annotated[list[str], NoDecode] = Field(default=[], repr=False)
    """Where every session's events are posted; https."""
    webhook_secret: SecretStr | None = None
    """Signs them: `whsec_` and base64. Several, separated by commas, while receivers change from one to another."""
    allow_private_urls: bool = False
    """Whether webhooks may go to loopback and private addresses."""
    audit_log: Path | None = None
    """File of the audit log, one JSON line each; without it the lines are in the service's own log."""
    page_token_enabled: bool = False
    """Whether `GET /page/token` hands the page a short-lived token. Loopback callers only; the demo sets it."""
    voice: str | None = Field(default=None, min_length=1, max_length=VOICE_CHARACTERS)
    """Voice of `/speak` when the request names none."""
    voices_dir: Path | None = None
    """Folder of further piper voices: each `NAME.onnx` with `NAME.onnx.json` is the voice `piper:NAME`."""
    kokoro_dir: Path | None = None
    """Folder of the styles of Kokoro's voices, `NAME.bin`; they make the voices `kokoro:NAME` available."""
    voices_loaded: int = Field(default=LOADED, ge=1, le=64)
    """Embedded voices in memory at the same time, 100 to 250 MB each."""
    lexicon_file: Path | None = None
    """JSON file of words that the voices would get wrong: `[{"word", "say" or "ipa", "language"}]`."""
    sentence_pause_ms: int | None = Field(default=None, ge=0, le=NATURAL_PAUSE_MS_MAX)
    paragraph_pause_ms: int | None = Field(default=None, ge=0, le=NATURAL_PAUSE_MS_MAX)
    """Silence after a sentence and a paragraph; by default 220 and 400 with the embedded voices."""
    elevenlabs_api_key: SecretStr | None = None
    """Makes the voices `elevenlabs:ID` available."""
    elevenlabs_voices: Annotated[list[str], NoDecode] = []
    """Ids that `GET /voices` lists; others work as well."""
    elevenlabs_model: str = "eleven_flash_v2_5"
    elevenlabs_sample_rate: Literal[16000, 22050, 24000] = 24000
    elevenlabs_base_url: str | None = None
    """Another address than `wss://api.elevenlabs.io` serves data residency: `wss://api.eu.residency.elevenlabs.io`."""
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    """Address of `/v1` that has `/audio/speech`; it or the key makes the voices `openai:NAME` available."""
    openai_voices: Annotated[list[str], NoDecode] = []
    """Names that `GET /voices` lists; by default OpenAI's own, where no other server is named."""
    openai_tts_model: str = "gpt-4o-mini-tts"
    openai_tts_format: Literal["pcm", "wav"] = "pcm"
    llm_base_url: str | None = None
    llm_model: str | None = None
    llm_api_key: SecretStr | None = None
    stt_base_url: str | None = None
    stt_model: str | None = None
    stt_api_key: SecretStr | None = None
    tts_base_url: str | None = None
    """Speech of conversations from another place than the orchestrator's own voices."""
    tts_model: str | None = None
    tts_voice: str | None = None
    tts_api_key: SecretStr | None = None
    realtime_base_url: str | None = None
    """A model of OpenAI's realtime dialect for conversations: it hears and speaks itself."""
    realtime_model: str = "gpt-realtime"
    realtime_voice: str | None = None
    realtime_api_key: SecretStr | None = None
    livekit_inference_url: str | None = None
    livekit_inference_api_key: str | None = None
    livekit_inference_api_secret: SecretStr | None = None
    """For models `livekit:NAME`; by default LiveKit's own address, key and secret, where LIVEKIT_URL is one of LiveKit Cloud."""
    conversation_python: str | None = None
    """Interpreter of the environment with livekit-agents; by default that of `tools/setup conversation`, where it exists."""
    voice_standby: VoiceStandby = VoiceStandby.WARM
    """How ready the orchestrator's own voice is for the loss of an agent: `off`, `warm`, or `joined`."""
    livekit_ingress: IngressMode = IngressMode.AUTO
    """Whether the fallback by RTMP leads into the room where LiveKit has Ingress."""
    session_max_s: int = Field(default=6 * 3600, ge=1, le=24 * 3600)
    session_idle_ttl_s: float = Field(default=900.0, gt=0)
    viewer_grace_s: float = Field(default=300.0, gt=0)
    speaker_grace_s: float = Field(default=60.0, gt=0)
    start_timeout_s: float = Field(default=180.0, gt=0)
    viewer_token_ttl_s: int = Field(default=3600, ge=60, le=24 * 3600)
    page_token_ttl_s: int = Field(default=900, ge=60, le=24 * 3600)
    audio_message_bytes: int = Field(default=1 << 20, ge=1024, le=16 << 20)
    audio_backlog_s: float = Field(default=120.0, ge=1, le=570)
    audio_bytes_per_s: int = Field(default=4 << 20, ge=64_000)
    audio_idle_s: float = Field(default=900.0, gt=0)
    """An `/audio` connection without any message for this long is closed."""
    avatar_upload_bytes: int = Field(default=256 << 20, ge=1024)
    avatars_dir: Path = Field(default_factory=default_avatars_dir)
    avatars_url: str | None = None
    """Folder of the avatar library: records and the bytes of clips. Orchestrators that share it share the library."""
    avatars_max: int = Field(default=200, ge=1)
    """Avatars of one key."""
    avatars_bytes: int = Field(default=20 << 30, ge=1 << 20)
    """Bytes of all clips in the library together."""
    store_path: str = Field(default_factory=default_store_path)
    """File of the sessions' store; `:memory:` keeps nothing beyond the process."""
    renders_dir: Path | None = None
    """Folder of renders, the same as the agents'; without it there are none."""
    renders_queue: SecretStr | None = None
    """Their queue when workers are on several machines: redis://…, or modal://APP at Modal; by default a file in that folder."""
    renders_days: float = Field(default=7.0, gt=0, le=3650)
    """How long results are kept."""
    redis_url: SecretStr | None = None
    """The store when several orchestrators share it; `STORE_PATH` is then not used."""
    recording_dir: Path = Field(default_factory=default_recording_dir)
    """Folder of the films of sessions; orchestrators that share it go on with each other's."""
    recording_url: str | None = None
    """`s3://BUCKET/FOLDER` in place of the folder; keys and endpoint as `AWS_…`. Needs the extra [s3]."""
    recording_days: float = Field(default=7.0, gt=0, le=3650)
    """So long a film is kept after it changed last."""
    egress_dir: Path | None = None
    """Folder in which LiveKit Egress writes films of rooms, as both see it; without it no room is recorded."""
    drain_s: float = Field(default=20.0, ge=0, le=600)
    """How long SIGTERM lets speech that is under way be heard."""
    log_level: str = "INFO"

    @field_validator(
        "agent_url",
        "cors_origins",
        "allowed_origins",
        "webhook_url",
        "elevenlabs_voices",
        "openai_voices",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip().rstrip("/") for part in value.split(",") if part.strip()]
        return value

    @field_validator("agent_pool")
    @classmethod
    def _pool(cls, value: str) -> str:
        if value == "modal" and find_spec("modal") is None:
            raise ValueError("modal needs the package modal: pip install 'musetalk-livekit[modal]'")
        return value

    @field_validator("agent_url")
    @classmethod
    def _agents(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("agent_pool") == "modal":
            return value
        if not value and "AGENT_URL" not in os.environ:
            raise PydanticCustomError("missing", "Field required")
        if not value or not all(url.startswith(("http://", "https://")) for url in value):
            raise ValueError("one or more http(s) addresses, separated by commas")
        return value

    @field_validator("livekit_url", "livekit_public_url")
    @classmethod
    def _livekit(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ws://", "wss://", "http://", "https://")):
            raise ValueError("an address that begins with ws:// or wss://")
        return value

    @field_validator(
        "elevenlabs_base_url",
        "openai_base_url",
        "llm_base_url",
        "stt_base_url",
        "tts_base_url",
        "realtime_base_url",
        "livekit_inference_url",
    )
    @classmethod
    def _provider(cls, value: str | None) -> str | None:
        if value and not value.startswith(("ws://", "wss://", "http://", "https://")):
            raise ValueError("an address that begins with https:// or wss://")
        return value.rstrip("/") if value else None

    @field_validator("recording_url", "avatars_url")
    @classmethod
    def _buckets(cls, value: str | None, field: ValidationInfo) -> str | None:
        if not value:
            return None
        if not value.startswith("s3://") or not urlsplit(value).netloc:
            folder = "RECORDING_DIR" if field.field_name == "recording_url" else "AVATARS_DIR"
            raise ValueError(f"an address like s3://BUCKET/FOLDER; for a folder there is {folder}")
        if find_spec("obstore") is None:
            raise ValueError("it needs the package obstore: pip install 'musetalk-livekit[s3]'")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("an address that begins with redis:// or rediss://")
        if find_spec("redis") is None:
            raise ValueError("it needs the package redis: pip install 'musetalk-livekit[redis]'")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _webhooks(cls, value: list[str]) -> list[str]:
        return [secure_address(url) for url in value]

    @field_validator("lexicon_file")
    @classmethod
    def _lexicon(cls, value: Path | None) -> Path | None:
        if value is not None:
            lexicon.load(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        for each in _listed(value):
            secret(each)
        return value if _listed(value) else None

    @model_validator(mode="after")
    def _signed(self) -> Settings:
        if self.webhook_url and self.webhook_secret is None:
            raise ValueError("WEBHOOK_URL needs WEBHOOK_SECRET")
        return self

    @field_validator("orchestrator_api_key", "agent_api_key", "livekit_api_secret")
    @classmethod
    def _not_blank(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().strip(", "):
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _inferred(self) -> Settings:
        for name in ("llm_model", "stt_model", "tts_model"):
            if (getattr(self, name) or "").startswith(LIVEKIT_MODEL) and self._inference is None:
                raise ValueError(
                    f"{name.upper()}: {LIVEKIT_MODEL} needs a project of LiveKit Cloud: as LIVEKIT_URL, or by "
                    "LIVEKIT_INFERENCE_API_KEY and LIVEKIT_INFERENCE_API_SECRET"
                )
        return self

    @property
    def api_keys(self) -> tuple[str, ...]:
        """Keys that clients may use."""
        return _listed(self.orchestrator_api_key)

    @property
    def token_secret(self) -> str:
        """What the tokens of `/audio` are signed with."""
        own = self.audio_token_secret.get_secret_value() if self.audio_token_secret else ""
        return own or self.livekit_api_secret.get_secret_value()

    @property
    def webhook_secrets(self) -> tuple[bytes, ...]:
        """What signs webhooks."""
        return tuple(secret(each) for each in _listed(self.webhook_secret))

    @property
    def livekit(self) -> LiveKitKeys:
        """Where LiveKit is and how it is spoken to."""
        return LiveKitKeys(
            url=self.livekit_url,
            public_url=self.livekit_public_url or self.livekit_url,
            api_key=self.livekit_api_key,
            api_secret=self.livekit_api_secret.get_secret_value(),
            playout_delay_ms=self.livekit_playout_delay_ms,
        )

    @property
    def modal_options(self) -> ModalOptions:
        """How places in Modal's containers are asked for."""
        return ModalOptions(self.agent_wait_s, self.agent_idle_s, self.agent_sessions_max)

    @property
    def conversation_options(self) -> ConversationOptions:
        """The conversations' models."""
        return ConversationOptions(
            python=self.conversation_python or find_python(),
            llm=self._model(self.llm_base_url, self.llm_model, self.llm_api_key),
            stt=self._model(self.stt_base_url, self.stt_model, self.stt_api_key),
            tts=self._model(self.tts_base_url, self.tts_model, self.tts_api_key),
            tts_voice=self.tts_voice or "",
            realtime=self._realtime,
            realtime_voice=self.realtime_voice or "",
            inference=self._inference,
        )

    @property
    def avatar_options(self) -> AvatarOptions:
        """Where the avatar library is, and what it may hold."""
        return AvatarOptions(
            self.avatars_dir, self.avatars_url, self.avatars_max, self.avatars_bytes, self.avatar_upload_bytes
        )

    @property
    def render_options(self) -> RenderOptions:
        """Where renders are."""
        queue = self.renders_queue.get_secret_value() if self.renders_queue else None
        return RenderOptions(self.renders_dir, queue or None, self.renders_days)

    @property
    def _realtime(self) -> Provider | None:
        if self.realtime_base_url is None:
            return None
        key = self.realtime_api_key.get_secret_value() if self.realtime_api_key else None
        return realtime_provider(self.realtime_base_url, self.realtime_model, key)

    @property
    def _inference(self) -> InferenceAccess | None:
        secret = self.livekit_inference_api_secret
        url = self.livekit_inference_url or LIVEKIT_INFERENCE_URL
        if self.livekit_inference_api_key and secret:
            return InferenceAccess(url, self.livekit_inference_api_key, secret.get_secret_value())
        if not (self.livekit_inference_url or (urlsplit(self.livekit_url).hostname or "").endswith(".livekit.cloud")):
            return None
        return InferenceAccess(url, self.livekit_api_key, self.livekit_api_secret.get_secret_value())

    def _model(self, base_url: str | None, model: str | None, key: SecretStr | None) -> Provider | None:
        if model is not None and model.startswith(LIVEKIT_MODEL):
            return self._inference.provider(model.removeprefix(LIVEKIT_MODEL)) if self._inference else None
        if base_url is None:
            return None
        return Provider(
            base_url=base_url.rstrip("/"), model=model or "default", api_key=key.get_secret_value() if key else "-"
        )

    @property
    def voice_options(self) -> VoiceOptions:
        """The voices elsewhere that are configured."""
        eleven, openai = (_listed(key)[:1] for key in (self.elevenlabs_api_key, self.openai_api_key))
        return VoiceOptions(
            folder=self.voices_dir,
            loaded=self.voices_loaded,
            kokoro=self.kokoro_dir,
            elevenlabs=ElevenLabsOptions(
                eleven[0],
                tuple(self.elevenlabs_voices),
                self.elevenlabs_model,
                self.elevenlabs_sample_rate,
                (self.elevenlabs_base_url or ELEVENLABS_URL).replace("http", "ws", 1),
            )
            if eleven
            else None,
            openai=OpenAIOptions(
                "".join(openai),
                self.openai_base_url or OPENAI_URL,
                tuple(self.openai_voices) or (() if self.openai_base_url else OPENAI_VOICES),
                self.openai_tts_model,
                self.openai_tts_format,
            )
            if openai or self.openai_base_url
            else None,
        )

    @property
    def session_options(self) -> SessionOptions:
        """What the lifecycle of sessions needs to know."""
        return SessionOptions(
            max_s=self.session_max_s,
            idle_ttl_s=self.session_idle_ttl_s,
            viewer_grace_s=self.viewer_grace_s,
            speaker_grace_s=self.speaker_grace_s,
            start_timeout_s=self.start_timeout_s,
            speech=SpeechSettings(
                voice=self.voice,
                sentence_pause_ms=self.sentence_pause_ms,
                paragraph_pause_ms=self.paragraph_pause_ms,
            ),
            limits=AudioLimits(
                message_bytes=self.audio_message_bytes,
                backlog_s=self.audio_backlog_s,
                bytes_per_s=self.audio_bytes_per_s,
            ),
        )


def load() -> Settings:
    """Reads the environment. Raises SettingsError with one line per variable that is missing or wrong."""
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for item in error.errors():
            if not item["loc"]:
                lines.append(item["msg"].removeprefix("Value error, "))
                continue
            name = str(item["loc"][0]).upper()
            lines.append(f"{name} is not set" if item["type"] == "missing" else f"{name} is wrong: {item['msg']}")
        raise SettingsError("\n".join(lines)) from None


def _listed(value: SecretStr | None) -> tuple[str, ...]:
    text = value.get_secret_value() if value else ""
    return tuple(part.strip() for part in text.split(",") if part.strip())
