"""Everything the agent reads from its environment; nothing else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from musetalk_agent.weights import default_models_dir

CACHE = Path("~/.cache/musetalk-livekit").expanduser()


class AgentSettings(BaseSettings):
    """Environment of `musetalk-agent serve`; `docs/how-to/operations.md` lists it for people.

    With `renders_dir`, the folder of renders that the orchestrator has too, the agent keeps `render_workers` processes for them;
    their queue is `renders_queue`, an address `redis://…` (at Modal `modal://APP`), or a file in that folder. Footage that is
    dubbed has at most `dub_seconds` and `dub_bytes`; `caption_font` is the file of the letters that are drawn into films. Every
    `judge_every_s` seconds a sample of a session that speaks is judged; 0 for never. With `mattes_ahead` the matte of an avatar
    that was prepared with its own background is made when there is time.

    `engine` is what a session gets that names none: `auto` is MuseTalk where a CUDA device and the weights are there, else `warp`.
    `max_sessions` None is the least of what card, processor, memory and pacing hold, as measured; a number takes the place of all
    but the card's.
    """

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", populate_by_name=True)

    agent_api_key: SecretStr = Field(min_length=1)
    engine: str = Field(default="auto", validation_alias=AliasChoices("AGENT_ENGINE", "engine"))
    max_sessions: int | None = Field(
        default=None, ge=1, le=256, validation_alias=AliasChoices("AGENT_MAX_SESSIONS", "max_sessions")
    )
    musetalk_device: str = Field(default="cuda:0", pattern=r"^(cpu|cuda(:\d+)?)$")
    musetalk_profile: Literal["quality", "lower", "fast"] = "quality"
    musetalk_precision: Literal["float16", "bfloat16", "float32"] | None = None
    musetalk_lookahead_ms: int = Field(default=80, ge=0, le=200)
    musetalk_bbox_shift: int = Field(default=0, ge=-50, le=50)
    musetalk_restore: Literal["off", "asked", "live"] = "off"
    musetalk_fuse: Literal["auto", "triton", "compile", "off"] = "auto"
    kernels_dir: Path = CACHE / "kernels"
    allow_private_urls: bool = False
    cache_dir: Path = Field(default=CACHE / "avatars", validation_alias=AliasChoices("AVATAR_CACHE_DIR", "cache_dir"))
    cache_bytes: int = Field(
        default=4 << 30, ge=1 << 20, validation_alias=AliasChoices("AVATAR_CACHE_BYTES", "cache_bytes")
    )
    models_dir: Path = Field(default_factory=default_models_dir)
    open_metrics: bool = Field(default=False, validation_alias=AliasChoices("AGENT_OPEN_METRICS", "open_metrics"))
    renders_dir: Path | None = None
    renders_queue: SecretStr | None = None
    render_workers: int = Field(default=1, ge=0, le=64)
    caption_font: Path | None = None
    dub_seconds: float = Field(default=7200.0, gt=0, le=86_400)
    dub_bytes: int = Field(default=8 << 30, ge=1 << 20)
    judge_every_s: float = Field(
        default=600.0, ge=0, le=86_400, validation_alias=AliasChoices("AGENT_JUDGE_EVERY_S", "judge_every_s")
    )
    mattes_ahead: bool = Field(default=True, validation_alias=AliasChoices("AGENT_MATTES_AHEAD", "mattes_ahead"))
    log_level: str = "INFO"
    drain_s: float = Field(default=25.0, ge=0, le=600, validation_alias=AliasChoices("AGENT_DRAIN_S", "drain_s"))


def offline_settings() -> AgentSettings:
    """The agent's settings from the environment, for commands that listen on no port and so need no key.

    Raises:
        pydantic.ValidationError: a variable has an impossible value.
    """
    return AgentSettings(agent_api_key=SecretStr("offline"))
