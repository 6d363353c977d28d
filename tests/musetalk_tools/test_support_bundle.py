"""`support-bundle`: what it holds of a running service, and that no secret of the environment is in it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AliasChoices, SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_tools import support_bundle
from musetalk_tools.support_bundle import AGENT_VARIABLES, SECRET, orchestrator_variables
from orchestrator.__main__ import build_parser, main
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.stage import API_KEY, LIVEKIT_SECRET, Stage

CLOSED = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in orchestrator_variables() | AGENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield


def contents(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


async def bundle(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["support-bundle", *arguments])


async def test_a_running_service_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    started = await running.start(room="the-room")
    monkeypatch.setenv("ORCHESTRATOR_API_KEY", f"{API_KEY},another")
    monkeypatch.setenv("AGENT_API_KEY", AGENT_KEY)
    monkeypatch.setenv("AGENT_URL", running.settings.agent_url[0])
    output = tmp_path / "bundle.zip"
    assert await bundle("--url", running.url, "-o", str(output)) == 0
    assert capsys.readouterr().out == f"{output}\n"
    found = contents(output)
    assert json.loads(found["manifest.json"])["missing"].keys() <= {"agent-1/metrics.txt"}  # the fake has none
    assert json.loads(found["orchestrator/health.json"])["status"] == "ok"
    assert json.loads(found["orchestrator/debug-musetalk.json"])["agents"][0]["reachable"] is True
    (session,) = json.loads(found["orchestrator/debug-audio.json"])["sessions"]
    assert (session["session_id"], session["room"]) == (started["session_id"], "the-room")
    assert "avatar_orchestrator_sessions" in found["orchestrator/metrics.txt"]
    assert "agent-1/debug.json" in found and "agent-1/health.json" in found
    everything = "".join(found.values())
    for secret in (
        API_KEY,
        AGENT_KEY,
        LIVEKIT_SECRET,
        started["viewer_token"],
        started["audio_url"].split("token=")[1],
    ):
        assert secret not in everything


async def test_a_service_that_is_not_ready_or_refuses_is_noted(
    tmp_path: Path, running: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle.zip"
    assert await bundle("--url", running.url, "--api-key", "wrong", "--agent-url", CLOSED, "-o", str(output)) == 0
    found = contents(output)
    missing = json.loads(found["manifest.json"])["missing"]
    assert "orchestrator/health.json" in found  # it needs no key
    assert missing["orchestrator/debug-musetalk.json"].startswith("status 401")
    assert "refused" in missing["agent-1/health.json"] or "connect" in missing["agent-1/health.json"].lower()
    assert "agent-1/health.json is not in the bundle" in capsys.readouterr().err


def test_no_secret_of_any_setting_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each secret variable, and each part of an address that may be secret, in the environment and in a log."""
    kinds = orchestrator_variables() | AGENT_VARIABLES
    secrets = {}
    for number, (name, kind) in enumerate(kinds.items()):
        word = f"hidden{number}x"
        secrets[name] = word
        if kind == SECRET:
            monkeypatch.setenv(name, f'{word}"quoted, {word}second')
        elif name.endswith(("_URL", "_ORIGINS")):
            monkeypatch.setenv(name, f"https://{word}:{word}pw@host.example:8443/{word}path?sig={word}")
        else:
            monkeypatch.setenv(name, f"shown{number}x")
    assert sum(kind == SECRET for kind in kinds.values()) >= 8
    log = tmp_path / "service.log"
    environment = {name: os.environ[name] for name in kinds}
    log.write_text(
        "a first line\n"
        + "\n".join(f"{name} is {value}" for name, value in environment.items())
        + f"\n{json.dumps(environment)}\nAuthorization: Bearer hiddenbearer\nwss://host/audio?token=hiddentoken\n"
    )
    output = tmp_path / "bundle.zip"
    assert main(["support-bundle", "--url", CLOSED, "--agent-url", CLOSED, "--log", str(log), "-o", str(output)]) == 0
    found = contents(output)
    assert "hidden" not in "".join(found.values())
    assert found["logs/1-service.log"].startswith("a first line\nLIVEKIT_URL is ***\n")
    settings = json.loads(found["settings-orchestrator.json"])
    assert settings["LIVEKIT_API_SECRET"] == "(set)" and settings["REDIS_URL"] == "(set)"
    assert settings["WEBHOOK_URL"] == ["https://host.example:8443"]
    assert settings["VOICE"].startswith("shown")
    assert json.loads(found["settings-agent.json"])["AGENT_API_KEY"] == "(set)"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_settings_that_hold_secrets_are_secret_here_too() -> None:
    kinds = orchestrator_variables()
    named = {name for name in kinds if any(word in name for word in ("KEY", "SECRET", "PASSWORD"))}
    assert {name for name in named if kinds[name] != SECRET} == {"ORCHESTRATOR_KEYS_FILE"}
    assert kinds["REDIS_URL"] == SECRET


def test_the_agents_variables_are_the_agents() -> None:
    expected = {}
    for name, field in AgentSettings.model_fields.items():
        alias = field.validation_alias
        variable = str(alias.choices[0]) if isinstance(alias, AliasChoices) else name.upper()
        expected[variable] = SecretStr in (field.annotation, *get_args(field.annotation))
    assert {name: kind == SECRET for name, kind in AGENT_VARIABLES.items()} == expected


def test_a_long_log_keeps_its_end_from_a_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_bundle, "LOG_BYTES", 32)
    log = tmp_path / "long.log"
    log.write_text("Bearer " + "s" * 40 + "\nlast line\n")
    output = tmp_path / "bundle.zip"
    assert main(["support-bundle", "--url", CLOSED, "--log", str(log), "-o", str(output)]) == 0
    assert contents(output)["logs/1-long.log"] == "last line\n"


@pytest.mark.parametrize("wrong", ["log", "exists", "folder"])
def test_what_cannot_be_read_or_written_is_an_error(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / ("missing/b.zip" if wrong == "folder" else "b.zip")
    arguments = ["support-bundle", "--url", CLOSED, "-o", str(output)]
    if wrong == "log":
        arguments += ["--log", str(tmp_path / "none.log")]
    elif wrong == "exists":
        output.write_text("mine")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    expected = {
        "log": f"the log {tmp_path}/none.log cannot be read: No such file or directory",
        "exists": f"{output} exists already: name another file with -o",
        "folder": f"{output} cannot be written: No such file or directory",
    }
    assert said.splitlines()[-1] == f"support-bundle: {expected[wrong]}"
    assert not output.exists() or output.read_text() == "mine"


def test_an_address_that_is_none_is_noted(tmp_path: Path) -> None:
    output = tmp_path / "b.zip"
    assert main(["support-bundle", "--url", "127.0.0.1:8080", "-o", str(output)]) == 0
    missing: dict[str, Any] = json.loads(contents(output)["manifest.json"])["missing"]
    assert missing


def test_wrong_usage_is_2() -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["support-bundle", "--nonsense"])
    assert ended.value.code == 2
