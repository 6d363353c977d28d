"""Settings of a Modal deployment, read from the environment of `modal deploy`, and the check of what the deployment lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

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
        agent_linger_s: how long sessions of a replaced version may end by themselves before its agents are told to end.
        agent_drain_s: how long sessions then have to move to another container.
        agent_startup_s: weights, warm-up and all.
        agent_idle_s: a place that nobody uses ends after so long.
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
        redis_url: the same from the environment of whoever deploys. Secret: it is in no container's `env`.
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
        """Raises NumbersError."""
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
        numbers = cls(**given)  # type: ignore[arg-type]
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
