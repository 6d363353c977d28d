from __future__ import annotations

import re
import subprocess
import sys

import pytest

from orchestrator.__main__ import _EPILOG
from orchestrator.settings import Settings, SettingsError, load
from tests.waiting import NEVER_S

ENVIRONMENT = {
    "LIVEKIT_URL": "ws://127.0.0.1:7880",
    "LIVEKIT_API_KEY": "devkey",
    "LIVEKIT_API_SECRET": "the-livekit-secret",
    "ORCHESTRATOR_API_KEY": "first-key, second-key",
    "AGENT_URL": "http://a:1/, http://b:2",
    "AGENT_API_KEY": "the-agent-key",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_BACKLOG_S", "30")
    settings = load()
    assert settings.api_keys == ("first-key", "second-key")
    assert settings.agent_url == ["http://a:1", "http://b:2"]
    assert settings.session_options.limits.backlog_s == 30
    assert settings.livekit.public_url == "ws://127.0.0.1:7880"
    assert not settings.page_token_enabled
    assert settings.token_secret == "the-livekit-secret"
    monkeypatch.setenv("AUDIO_TOKEN_SECRET", "a-secret-of-its-own")
    assert load().token_secret == "a-secret-of-its-own" and "a-secret-of-its-own" not in repr(load())


def test_secrets_are_not_shown() -> None:
    settings = load()
    shown = repr(settings) + str(settings) + repr(settings.livekit) + str(settings.model_dump())
    for secret in ("the-livekit-secret", "first-key", "second-key", "the-agent-key"):
        assert secret not in shown


def test_everything_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIVEKIT_URL")
    monkeypatch.delenv("AGENT_API_KEY")
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value) == "LIVEKIT_URL is not set\nAGENT_API_KEY is not set"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENT_URL", "a:1"),
        ("AGENT_URL", " , "),
        ("LIVEKIT_URL", "localhost:7880"),
        ("ORCHESTRATOR_API_KEY", " , "),
        ("SESSION_MAX_S", "0"),
        ("AUDIO_BACKLOG_S", "many"),
        ("WEBHOOK_URL", "http://hooks.example/of-mine"),
        ("WEBHOOK_URL", "https://hooks.example/a, https://2130706433/of-mine"),
        ("WEBHOOK_SECRET", "whsec_of-mine"),
    ],
)
def test_a_wrong_value_is_named_and_not_echoed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} is wrong: ") as caught:
        load()
    assert "of-mine" not in str(caught.value)


def test_webhooks_are_never_sent_unsigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_URL", "https://hooks.example/a, https://other.example/b")
    with pytest.raises(SettingsError, match=r"^WEBHOOK_URL needs WEBHOOK_SECRET$"):
        load()
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_" + "A" * 32 + ",whsec_" + "B" * 32)
    settings = load()
    assert settings.webhook_url == ["https://hooks.example/a", "https://other.example/b"]
    assert len(settings.webhook_secrets) == 2 and "hooks.example" not in repr(settings)


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=NEVER_S,
    )


def test_the_program_says_what_is_missing_and_exits_with_2() -> None:
    done = program("serve", LIVEKIT_URL="ws://127.0.0.1:7880")
    assert done.returncode == 2
    assert "ORCHESTRATOR_API_KEY is not set" in done.stderr and "LIVEKIT_URL" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_tells_its_version_and_its_options() -> None:
    assert program("--version").stdout.startswith("musetalk-orchestrator 0")
    reported = program("serve", "--help").stdout
    assert "ORCHESTRATOR_API_KEY" in reported and "--port" in reported


def test_the_help_of_serve_names_every_variable() -> None:
    named = set(re.findall(r"[A-Z][A-Z0-9_]+", _EPILOG))
    assert {name.upper() for name in Settings.model_fields} - named == set()
