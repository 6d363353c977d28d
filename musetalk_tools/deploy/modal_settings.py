"""Settings of a deployment at Modal; look-up of secrets, volumes and addresses there; runs a service inside a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

CARDS = {"L4": 2, "A10": 2, "L40S": 6, "A100-40GB": 5, "A100-80GB": 5, "H100": 16, "H200": 16}
"""Speaking sessions a card is asked to hold. No card was measured: these are a third of its dense half-precision speed on paper
(121, 125, 362, 312 and 989 TFLOP/s) over 0.8 TFLOP a frame at 25 frames a second. An agent that measures less of itself refuses
the rest."""
KILL_S = 30
"""After SIGTERM Modal waits so long, and no longer."""
_MARGIN_S = 3
_THE_STORES = frozenset({"REDIS_URL", "WITH_REDIS", "ORCHESTRATOR_CONTAINERS"})


class ModalSettingsError(Exception):
    """Variables are wrong; the message names each, with what it should be."""


@dataclass(frozen=True)
class ModalSettings:
    """Each field is the variable of its upper-case name.

    Attributes:
        agent_gpu: a card of Modal's, such as `L40S`, `A100-80GB`, `H100`, `H200`.
        agent_sessions: sessions a container is given at most; 0 is what `CARDS` says of the card.
        agent_containers, agent_containers_min: at most, and always.
        agent_containers_spare: idle ones beyond demand, while there is demand.
        agent_engine: what a session gets that names none; `musetalk` keeps an agent without weights from starting.
        agent_linger_s: how long sessions of a replaced version may end by themselves before its agents must end.
        agent_drain_s: how long sessions then have to move to another container.
        agent_startup_s: weights, warm-up and all.
        agent_idle_s: an unused place ends after so long.
        agent_wait_s: longest wait for a place.
        agent_snapshot: starts containers from a snapshot of a warm one. Experimental with cards.
        scaledown_s: how long an idle container stays.
        orchestrator_containers: more than one needs `with_redis` or `redis_url`.
        orchestrator_requests: requests and connections of one before another one is started.
        routing_region: where requests enter; near the clients.
        modal_app: the app's name.
        with_elevenlabs: whether the secret `elevenlabs` is there to be used.
        with_redis: whether the secret `redis` is there to be used: the store that sessions survive in, and that several
            orchestrators share.
        redis_url: the same from the deployer's environment. Secret: it is in no container's `env`.
        public_url: the orchestrator's address where it is not Modal's own.
    """

    agent_gpu: str = "L40S"
    agent_sessions: int = 0
    agent_containers: int = 10
    agent_containers_min: int = 0
    agent_containers_spare: int = 0
    agent_engine: str = "musetalk"
    agent_linger_s: int = 600
    agent_drain_s: int = 25
    agent_startup_s: int = 300
    agent_idle_s: int = 120
    agent_wait_s: int = 90
    agent_snapshot: bool = False
    scaledown_s: int = 300
    orchestrator_containers: int = 1
    orchestrator_requests: int = 500
    routing_region: str = "us-east"
    modal_app: str = "musetalk-livekit"
    with_elevenlabs: bool = False
    with_redis: bool = False
    redis_url: str = field(default="", repr=False)
    public_url: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> ModalSettings:
        """Raises `ModalSettingsError`."""
        given: dict[str, object] = {}
        faults: list[str] = []
        for each in fields(cls):
            name, text = each.name.upper(), environment.get(each.name.upper(), "").strip()
            if not text:
                continue
            try:
                given[each.name] = _parsed(type(each.default), text)
            except ValueError as error:
                faults.append(f"{name} is {text!r}: {error}")
        if faults:
            raise ModalSettingsError("\n".join(faults))
        numbers = cls(**given)  # type: ignore[arg-type]  # fields by name, of several types
        faults = list(numbers._faults())
        if faults:
            raise ModalSettingsError("\n".join(faults))
        return numbers

    @property
    def sessions(self) -> int:
        """Sessions of one container."""
        return self.agent_sessions or CARDS.get(self.agent_gpu, 4)

    @property
    def shares_a_store(self) -> bool:
        """Whether sessions are in a Redis."""
        return self.with_redis or bool(self.redis_url)

    def how_many_orchestrators(self) -> str:
        """For people: how many containers there may be, and why no more."""
        if self.orchestrator_containers > 1:
            return f"Up to {self.orchestrator_containers} orchestrators share a Redis."
        why = (
            "set ORCHESTRATOR_CONTAINERS for more"
            if self.shares_a_store
            else "more would need REDIS_URL or WITH_REDIS, and its sessions end with it"
        )
        return f"One orchestrator: {why}."

    def variables(self) -> dict[str, str]:
        """What `read` makes the same numbers of: the containers read them again."""
        given = {each.name.upper(): str(getattr(self, each.name)) for each in fields(self)}
        return {name: value for name, value in given.items() if value}

    def agent_variables(self) -> dict[str, str]:
        """The agent's environment, but for its key and folders; the store is not its business."""
        known = {name: value for name, value in self.variables().items() if name not in _THE_STORES}
        return known | {"AGENT_MAX_SESSIONS": str(self.sessions)}

    def orchestrator_variables(self) -> dict[str, str]:
        """The orchestrator's environment, but for keys, the store's address, which holds a password, and its own address."""
        most = str(self.sessions * self.agent_containers)
        known = {name: value for name, value in self.variables().items() if name != "REDIS_URL"}
        return known | {"AGENT_POOL": "modal", "AGENT_SESSIONS_MAX": most, "STORE_PATH": ":memory:"}

    def _faults(self) -> list[str]:
        limits = {
            "agent_sessions": (0, 256),
            "agent_containers": (1, 10_000),
            "agent_containers_min": (0, self.agent_containers),
            "agent_containers_spare": (0, self.agent_containers),
            "agent_linger_s": (0, 3600),
            "agent_drain_s": (0, KILL_S - _MARGIN_S),
            "agent_startup_s": (30, 3600),
            "agent_idle_s": (30, 3600),
            "agent_wait_s": (1, 600),
            "scaledown_s": (2, 3600),
            "orchestrator_containers": (1, 100),
            "orchestrator_requests": (1, 1000),
        }
        found = [
            f"{name.upper()} is {getattr(self, name)}: {low} … {high}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.orchestrator_containers > 1 and not self.shares_a_store:
            found.append(
                f"ORCHESTRATOR_CONTAINERS is {self.orchestrator_containers}: more than one needs REDIS_URL or WITH_REDIS"
            )
        return found


def _parsed(kind: type, text: str) -> object:
    if kind is bool:
        if text.lower() in ("1", "true", "yes"):
            return True
        if text.lower() in ("0", "false", "no"):
            return False
        raise ValueError("true or false")
    if kind is int:
        if not text.isdecimal():
            raise ValueError("a whole number")
        return int(text)
    return text


class Cloud(Protocol):
    """What can be looked up. Methods block; those that find nothing return None."""

    def secret(self, name: str, keys: Sequence[str]) -> str | None:
        """What is wrong with the secret; None when it is there and has these keys."""
        ...

    def files(self, volume: str) -> Mapping[str, int] | None:
        """Sizes of a volume's files by path; None when there is no such volume."""
        ...

    def address(self, app: str, server: str) -> str | None:
        """Of a deployed server."""
        ...


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at. `cure` is what to do; empty when all is well."""

    what: str
    found: str
    cure: str = ""

    def line(self) -> str:
        """For people."""
        return f"{'missing' if self.cure else 'ok':8} {self.what}: {self.found}" + (
            f"\n         → {self.cure}" if self.cure else ""
        )


@dataclass(frozen=True)
class Wanted:
    """What the deployment needs by name.

    Attributes:
        secrets: name of each secret, its keys, and the command that makes it.
        models, avatars: the volumes.
        weights: size in bytes of each file of `models`, None where it is not known.
        servers: what is to be deployed.
    """

    secrets: Sequence[tuple[str, Sequence[str], str]]
    models: str
    avatars: str
    weights: Mapping[str, int | None]
    servers: Sequence[str]


def examine(cloud: Cloud, numbers: ModalSettings, wanted: Wanted) -> list[CheckResult]:
    """Everything, in the order in which it is to be cured."""
    findings = [_card(numbers)]
    for name, keys, command in wanted.secrets:
        fault = cloud.secret(name, keys)
        findings.append(CheckResult(f"secret {name}", fault or "there", command if fault else ""))
    findings.append(_weights(cloud, wanted))
    avatars = cloud.files(wanted.avatars)
    found = "made by the first deploy" if avatars is None else f"{len(avatars)} files"
    findings.append(CheckResult(f"volume {wanted.avatars}", found))
    for server in wanted.servers:
        address = cloud.address(numbers.modal_app, server)
        findings.append(
            CheckResult(f"server {server}", address or "not deployed", "" if address else "modal deploy modal_app.py")
        )
    return findings


def _card(numbers: ModalSettings) -> CheckResult:
    known = numbers.agent_gpu in CARDS
    found = (
        f"{numbers.agent_gpu}, {numbers.sessions} sessions a container (an estimate: make bench-gpu ARGS='--only hold')"
    )
    cure = "" if known else f"AGENT_GPU is none of {', '.join(CARDS)}: set AGENT_SESSIONS to what was measured on it"
    return CheckResult("card", found, "" if numbers.agent_sessions else cure)


def _weights(cloud: Cloud, wanted: Wanted) -> CheckResult:
    files = cloud.files(wanted.models)
    what, cure = f"weights in volume {wanted.models}", "modal run modal_app.py::fetch_models"
    if files is None:
        return CheckResult(what, "no such volume", cure)
    lacking = [name for name, size in wanted.weights.items() if name not in files or size not in (None, files[name])]
    if lacking:
        return CheckResult(
            what, f"{len(lacking)} of {len(wanted.weights)} missing or cut short: {', '.join(lacking[:3])}", cure
        )
    return CheckResult(what, f"{len(wanted.weights)} files, of the right sizes")


class ModalCloud:
    """`doctor.Cloud` for the workspace that the credentials belong to. Raises modal's AuthError without any."""

    def __init__(self) -> None:
        self._modal: Any = import_module("modal")
        self._missing = (self._modal.exception.NotFoundError, self._modal.exception.InvalidError)

    def secret(self, name: str, keys: Sequence[str]) -> str | None:
        try:
            self._modal.Secret.from_name(name, required_keys=list(keys)).hydrate()
        except self._missing as error:
            return str(error)
        return None

    def files(self, volume: str) -> Mapping[str, int] | None:
        try:
            entries = self._modal.Volume.from_name(volume).listdir("/", recursive=True)
        except self._modal.exception.NotFoundError:
            return None
        return {entry.path.lstrip("/"): entry.size for entry in entries if entry.type.name == "FILE"}

    def address(self, app: str, server: str) -> str | None:
        try:
            url: str | None = self._modal.Server.from_name(app, server).get_url()
        except self._modal.exception.NotFoundError:
            return None
        return url


_POLL_S = 0.1
_NOTICE_S = 1.0
"""How long a process has to show that the platform's own SIGTERM has reached it: a second one would end it at once."""
_ASK_S = 2.0
_CLOSE_S = 6.0
"""What a service may take to close, beyond its time to drain."""


class ServiceFailed(Exception):
    """A service ended before it was ready, or was not ready in time; the message says which and how."""


class Service:
    """One process. All methods block: Modal calls them where nothing else runs.

    Args:
        module: `orchestrator` or `musetalk_agent`.
        port: where it listens, on every interface.
        variables: its environment, over this process's own.
        without: variables that are not its business.
        host: the interface; in a container the proxy is the only way in.
    """

    def __init__(
        self,
        module: str,
        port: int,
        variables: Mapping[str, str],
        without: frozenset[str] = frozenset(),
        *,
        host: str = "0.0.0.0",
    ) -> None:
        self.command = [sys.executable, "-m", module, "serve", "--host", host, "--port", str(port)]
        self.environment = {k: v for k, v in os.environ.items() if k not in without} | dict(variables)
        self._address = f"http://127.0.0.1:{port}/health"
        self._http = build_opener(ProxyHandler({}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, within_s: float) -> None:
        """Returns when it answers, which it does only when it is warm. Raises ServiceFailed."""
        self._process = process = subprocess.Popen(self.command, env=self.environment, start_new_session=True)
        until = time.monotonic() + within_s
        while self.health() is None:
            if process.poll() is not None:
                raise ServiceFailed(f"{self.command[2]} ended with exit code {process.returncode} while starting")
            if time.monotonic() > until:
                process.kill()
                process.wait()
                raise ServiceFailed(f"{self.command[2]} was not ready within {within_s:g} s")
            time.sleep(_POLL_S)

    def health(self) -> dict[str, object] | None:
        """What it says of itself, ready or not; None when it does not answer."""
        try:
            with self._http.open(self._address, timeout=_ASK_S) as answer:
                answered = json.load(answer)
        except HTTPError as error:
            answered = json.load(error)
        except (OSError, ValueError):
            return None
        return answered if isinstance(answered, dict) else None

    def end(self, drain_s: float) -> int:
        """Lets it drain, and returns its exit code. It is killed when it has not ended soon after `drain_s`."""
        process = self._process
        assert process is not None
        noticed = time.monotonic() + _NOTICE_S
        while process.poll() is None and not self._draining() and time.monotonic() < noticed:
            time.sleep(_POLL_S)
        if process.poll() is None and not self._draining():
            process.terminate()
        try:
            return process.wait(drain_s + _CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _draining(self) -> bool:
        answered = self.health()
        return answered is not None and answered.get("status") == "draining"
