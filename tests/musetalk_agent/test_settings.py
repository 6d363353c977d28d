"""The agent's environment: names, defaults, bounds, and that the key does not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.weights import default_models_dir


def test_the_defaults_are_those_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENT_MAX_SESSIONS", "MODELS_DIR", "LOG_LEVEL", "MUSETALK_DEVICE", "MUSETALK_FUSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AGENT_API_KEY", "the-key")
    read = AgentSettings()
    assert (read.engine, read.max_sessions, read.drain_s, read.cache_bytes) == ("auto", None, 25.0, 4 << 30)
    assert (read.musetalk_device, read.musetalk_profile, read.musetalk_lookahead_ms) == ("cuda:0", "quality", 80)
    assert (read.allow_private_urls, read.open_metrics, read.musetalk_fuse) == (False, False, "auto")
    assert read.models_dir == default_models_dir() and read.cache_dir.name == "avatars"
    assert read.agent_api_key.get_secret_value() == "the-key" and "the-key" not in f"{read!r}{read}"


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("AGENT_ENGINE", "pattern", "engine", "pattern"),
        ("AGENT_MAX_SESSIONS", "256", "max_sessions", 256),
        ("AGENT_DRAIN_S", "0", "drain_s", 0.0),
        ("AGENT_OPEN_METRICS", "true", "open_metrics", True),
        ("AVATAR_CACHE_DIR", "/tmp/c", "cache_dir", Path("/tmp/c")),
        ("AVATAR_CACHE_BYTES", "1048576", "cache_bytes", 1 << 20),
        ("MODELS_DIR", "/m", "models_dir", Path("/m")),
        ("MUSETALK_DEVICE", "cuda", "musetalk_device", "cuda"),
        ("MUSETALK_DEVICE", "cpu", "musetalk_device", "cpu"),
        ("MUSETALK_LOOKAHEAD_MS", "200", "musetalk_lookahead_ms", 200),
        ("MUSETALK_BBOX_SHIFT", "-50", "musetalk_bbox_shift", -50),
        ("MUSETALK_RESTORE", "live", "musetalk_restore", "live"),
        ("MUSETALK_RESTORE", "asked", "musetalk_restore", "asked"),
        ("MUSETALK_PRECISION", "bfloat16", "musetalk_precision", "bfloat16"),
        ("ALLOW_PRIVATE_URLS", "1", "allow_private_urls", True),
        ("LOG_LEVEL", "debug", "log_level", "debug"),
    ],
)
def test_each_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv("AGENT_API_KEY", "k")
    monkeypatch.setenv(variable, text)
    assert getattr(AgentSettings(), field) == value


@pytest.mark.parametrize(
    ("variable", "texts"),
    [
        ("AGENT_API_KEY", [""]),
        ("AGENT_MAX_SESSIONS", ["0", "257", "many", ""]),
        ("AGENT_DRAIN_S", ["-1", "601", "soon"]),
        ("AVATAR_CACHE_BYTES", ["1048575", "-1", "4G"]),
        ("MUSETALK_DEVICE", ["gpu", "cuda:", "cuda:x", "cuda:0;rm", "mps", ""]),
        ("MUSETALK_PROFILE", ["best", "Quality"]),
        ("MUSETALK_PRECISION", ["int8", "half"]),
        ("MUSETALK_LOOKAHEAD_MS", ["-1", "201", "80.5"]),
        ("MUSETALK_BBOX_SHIFT", ["-51", "51"]),
        ("MUSETALK_RESTORE", ["film", "on"]),
        ("ALLOW_PRIVATE_URLS", ["perhaps"]),
    ],
)
def test_an_impossible_value_is_refused_and_its_variable_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, texts: list[str]
) -> None:
    monkeypatch.setenv("AGENT_API_KEY", "k")
    for text in texts:
        monkeypatch.setenv(variable, text)
        with pytest.raises(ValidationError) as refused:
            AgentSettings()
        (error,) = refused.value.errors()
        assert str(error["loc"][0]).upper() == variable, text


def test_a_service_needs_a_key_and_a_command_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_ENGINE", "warp")
    with pytest.raises(ValidationError, match="agent_api_key"):
        AgentSettings()
    assert offline_settings().engine == "warp"
