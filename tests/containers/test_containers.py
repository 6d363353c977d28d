"""The image definitions and the compose file: linted, and held against the code that they start. No engine runs here."""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from musetalk_agent.agent_settings import AgentSettings
from musetalk_tools.processes import free_port
from orchestrator.settings import Settings
from tests.waiting import NEVER_S, wait_until

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "containers").glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
OURS = {"agent": AgentSettings, "orchestrator": Settings}


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} belongs to the [dev] extra"
    return found


def variables(settings: type[AgentSettings] | type[Settings]) -> set[str]:
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        names |= {name.upper()} | (
            {str(choice).upper() for choice in alias.choices} if hasattr(alias, "choices") else set()
        )
    return names


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    reported = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True, timeout=NEVER_S)
    assert reported.returncode == 0, reported.stdout + reported.stderr


def test_the_compose_file_is_one() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    reported = subprocess.run(command, capture_output=True, text=True, timeout=NEVER_S)
    assert reported.returncode == 0, reported.stdout + reported.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_not_root_and_know_their_health(file: Path) -> None:
    final = file.read_text("utf-8").rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert user and int(user[1]) > 0 and int(user[2]) > 0
    assert "\nHEALTHCHECK " in final and "\nSTOPSIGNAL SIGTERM" in final


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_is_copied_is_there_and_not_ignored(file: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--)(.+)$", file.read_text("utf-8"), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, f"{source} is ignored"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_extras_and_commands_exist(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = file.read_text("utf-8")
    extras = re.search(r'^ARG EXTRAS="(.*)"$', text, re.MULTILINE)
    assert extras and set(filter(None, extras[1].split(","))) <= set(project["optional-dependencies"])
    command = re.search(r'^CMD \["([^"]+)"', text, re.MULTILINE)
    assert command and command[1] in project["scripts"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_hardened_and_healthy(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert 0 < service["pids_limit"] <= 512
    assert re.fullmatch(r"(\$\{[A-Z]+_MEMORY:-)?\d+[gm]\}?", service["mem_limit"])
    own = ROOT / service.get("build", {}).get("dockerfile", "")
    if own.is_file():
        assert "\nHEALTHCHECK " in own.read_text("utf-8")
    else:
        assert service["healthcheck"]["test"] and int(service["user"].partition(":")[0]) > 0
        assert not service["image"].endswith(":latest") and ":" in service["image"]


def test_who_decodes_strangers_files_cannot_reach_redis() -> None:
    services = COMPOSE["services"]
    assert services["redis"]["networks"] == ["store"] and COMPOSE["networks"]["store"]["internal"] is True
    assert "ports" not in services["redis"] and "ports" not in services["agent"]
    assert {name for name, one in services.items() if "store" in one["networks"]} == {
        "redis",
        "livekit",
        "orchestrator",
    }


def test_redis_wants_its_password_which_is_in_no_arguments(tmp_path: Path) -> None:
    """Its command, run as it is but for the port and the folder."""
    service = COMPOSE["services"]["redis"]
    assert service["environment"]["REDISCLI_AUTH"] == "${REDIS_PASSWORD:?}"
    shell, flag, script = service["command"]
    port, password = free_port(), secrets.token_hex(32)
    script = script.replace("$$", "$").replace("/data", str(tmp_path)).replace("EOF\n", f"EOF\nport {port}\n", 1)
    environment = {**os.environ, "REDISCLI_AUTH": password}
    for program in ("redis-server", "redis-cli"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: run `tools/setup redis`")

    def ping(auth: str) -> str:
        command = ["redis-cli", "-p", str(port), "ping"]
        asked = subprocess.run(
            command, env={**os.environ, "REDISCLI_AUTH": auth}, capture_output=True, text=True, timeout=NEVER_S
        )
        return asked.stdout

    with subprocess.Popen([shell, flag, script], env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: ping(password) == "PONG\n")
            assert "NOAUTH" in ping("") and "PONG" not in ping("wrong")
            arguments = psutil.Process(server.pid).cmdline()
            assert "redis-server" in arguments[0] and password not in " ".join(arguments)
        finally:
            server.terminate()
            server.wait(NEVER_S)


@pytest.mark.parametrize("name", OURS)
def test_the_services_variables_are_known(name: str) -> None:
    assert set(COMPOSE["services"][name]["environment"]) <= variables(OURS[name])


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    for name in ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "ORCHESTRATOR_API_KEY", "AGENT_API_KEY", "REDIS_PASSWORD"):
        assert set(re.findall(rf"\$\{{{name}([^}}]*)\}}", text)) == {":?"}


def test_weights_and_caches_stay_out_of_the_images() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for folder in ("models/musetalkV15", "models/sd-vae-ft-mse", "models/whisper"):
        assert any(fnmatch.fnmatch(folder, pattern) for pattern in ignored)
