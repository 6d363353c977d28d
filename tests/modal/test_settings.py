from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.agents.modal_pool import ModalOptions
from orchestrator.settings import SettingsError, load
from tests.waiting import NEVER_S

ENVIRONMENT = {
    "LIVEKIT_URL": "ws://127.0.0.1:7880",
    "LIVEKIT_API_KEY": "devkey",
    "LIVEKIT_API_SECRET": "the-livekit-secret",
    "ORCHESTRATOR_API_KEY": "key",
    "AGENT_API_KEY": "the-agent-key",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_agents_at_modal_have_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AGENT_POOL": "modal", "AGENT_WAIT_S": "30", "AGENT_IDLE_S": "60"}.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.agent_url == [] and (settings.modal_app, settings.modal_agent) == ("musetalk-livekit", "Agent")
    assert settings.modal_options == ModalOptions(30.0, 60, 0)


def test_agents_elsewhere_need_them() -> None:
    with pytest.raises(SettingsError, match=r"^AGENT_URL is not set$"):
        load()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_POOL", "modal")
    monkeypatch.setattr("orchestrator.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"AGENT_POOL is wrong.*pip install 'musetalk-livekit\[modal\]'"):
        load()


@pytest.mark.parametrize(("name", "value"), [("AGENT_POOL", "lambda"), ("AGENT_WAIT_S", "0"), ("AGENT_IDLE_S", "5")])
def test_a_wrong_value_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_URL", "http://a:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name} is wrong"):
        load()


def test_nobody_else_loads_the_package() -> None:
    code = "import sys, orchestrator.app; print('modal' in sys.modules)"
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S, check=True
    ).stdout
    assert reported.strip() == "False"
