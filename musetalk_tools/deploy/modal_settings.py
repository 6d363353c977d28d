"""Settings of a deployment at Modal; look-up of secrets, volumes and addresses there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Protocol

from musetalk_agent.card_estimates import CARDS, CPU_BASE, CPU_SESSION, PROFILES, card_of, sessions
from musetalk_agent.checks import Check

RENDERS = "/root/renders"
"""Where the volume of renders is mounted."""
UNKNOWN_CARD_SESSIONS = 4
"""Places on a card that the estimates do not know."""
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
        agent_sessions: sessions a container is given at most; 0 is what `musetalk_agent.card_estimates` says of card and profile.
            An agent that measures less of itself refuses the rest, for which other containers are then asked.
        agent_cpu: cores of an agent's container; 0 is 2 and 0.3 a session.
        agent_memory_mb: of an agent's container.
        agent_containers, agent_containers_min: at most, and always.
        agent_containers_spare: idle ones beyond demand, while there is demand.
        agent_engine: what a session gets that names none; `musetalk` keeps an agent without weights from starting.
        agent_linger_s: how long sessions of a replaced version may end by themselves before its agents must end.
        agent_drain_s: how long sessions then have to move to another container.
        agent_startup_s: weights, warm-up and all.
        agent_idle_s: an unused place ends after so long.
        agent_wait_s: longest wait for a place.
        musetalk_profile: how frames are made; `fast` has weights of its own, which `fetch_models` then fetches.
        musetalk_fuse: how the network runs; compiled kernels are kept on a volume.
        with_tensorrt: whether TensorRT is in the agent's image, for plans that `build_plans` makes.
        render_containers: containers that make renders at most, on the same card as the agents'.
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
        orchestrator_secrets: names of further secrets at Modal for the orchestrator, separated by commas.
    """

    agent_gpu: str = "L40S"
    agent_sessions: int = 0
    agent_cpu: float = 0.0
    agent_memory_mb: int = 16384
    agent_containers: int = 10
    agent_containers_min: int = 0
    agent_containers_spare: int = 0
    agent_engine: str = "musetalk"
    musetalk_profile: str = "quality"
    musetalk_fuse: str = "auto"
    with_tensorrt: bool = False
    agent_linger_s: int = 600
    agent_drain_s: int = 25
    agent_startup_s: int = 300
    agent_idle_s: int = 120
    agent_wait_s: int = 90
    agent_snapshot: bool = False
    render_containers: int = 4
    scaledown_s: int = 300
    orchestrator_containers: int = 1
    orchestrator_requests: int = 500
    routing_region: str = "us-east"
    modal_app: str = "musetalk-livekit"
    with_elevenlabs: bool = False
    with_redis: bool = False
    redis_url: str = field(default="", repr=False)
    public_url: str = ""
    orchestrator_secrets: str = ""

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
        """Places of one container. At least one: an agent on a card that holds none says so itself."""
        estimate = self.estimated_sessions
        return self.agent_sessions or (UNKNOWN_CARD_SESSIONS if estimate is None else max(1, estimate))

    @property
    def estimated_sessions(self) -> int | None:
        """What the card should hold with the profile; None for a card that is not known."""
        card = card_of(self.agent_gpu)
        return sessions(card, self.musetalk_profile) if card else None

    @property
    def cores(self) -> float:
        """Of an agent's container."""
        return self.agent_cpu or round(CPU_BASE + CPU_SESSION * self.sessions, 1)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of weights that the agents need. `auto` may fall back to the profile `fast`."""
        fast = self.musetalk_profile == "fast" or self.agent_engine == "auto"
        return ("face", "musetalk", "fast") if fast else ("face", "musetalk")

    @property
    def more_secrets(self) -> tuple[str, ...]:
        """Names of the orchestrator's further secrets."""
        return tuple(name.strip() for name in self.orchestrator_secrets.split(",") if name.strip())

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
        """The agent's environment, but for its key and folders; the store is not its business.

        Places that are an estimate set no limit of the agent's: it measures what it holds, and refuses the rest.
        """
        known = {name: value for name, value in self.variables().items() if name not in _THE_STORES}
        return known | ({"AGENT_MAX_SESSIONS": str(self.agent_sessions)} if self.agent_sessions else {})

    def orchestrator_variables(self) -> dict[str, str]:
        """The orchestrator's environment, but for keys, the store's address, which holds a password, and its own address."""
        most = str(self.sessions * self.agent_containers)
        known = {name: value for name, value in self.variables().items() if name != "REDIS_URL"}
        own = {"AGENT_POOL": "modal", "AGENT_SESSIONS_MAX": most, "STORE_PATH": ":memory:"}
        return known | own | self.render_variables()

    def render_variables(self) -> dict[str, str]:
        """Where renders are, for the orchestrator and for the containers that make them."""
        return {"RENDERS_DIR": RENDERS, "RENDERS_QUEUE": f"modal://{self.modal_app}"}

    def _faults(self) -> list[str]:
        limits: dict[str, tuple[float, float]] = {
            "agent_sessions": (0, 256),
            "agent_cpu": (0, 64),
            "agent_memory_mb": (4096, 344_064),
            "agent_containers": (1, 10_000),
            "agent_containers_min": (0, self.agent_containers),
            "agent_containers_spare": (0, self.agent_containers),
            "agent_linger_s": (0, 3600),
            "agent_drain_s": (0, KILL_S - _MARGIN_S),
            "agent_startup_s": (30, 3600),
            "agent_idle_s": (30, 3600),
            "agent_wait_s": (1, 600),
            "scaledown_s": (2, 3600),
            "render_containers": (1, 1000),
            "orchestrator_containers": (1, 100),
            "orchestrator_requests": (1, 1000),
        }
        found = [
            f"{name.upper()} is {getattr(self, name)}: {low} … {high}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.musetalk_profile not in PROFILES:
            found.append(f"MUSETALK_PROFILE is {self.musetalk_profile!r}: {', '.join(PROFILES)}")
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
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("a number") from None
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


LIVEKIT_KEYS = ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"]
OWN_KEYS = ["ORCHESTRATOR_API_KEY", "AGENT_API_KEY"]


def wanted_by(numbers: ModalSettings, manifest: Mapping[str, tuple[str, int | None]]) -> Wanted:
    """What this deployment needs. `manifest` has group and size of each model file by name."""
    made: list[tuple[str, Sequence[str], str]] = [
        (
            "livekit",
            LIVEKIT_KEYS,
            "modal secret create livekit LIVEKIT_URL=wss://… LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=…",
        ),
        ("musetalk-keys", OWN_KEYS, "modal secret create musetalk-keys ORCHESTRATOR_API_KEY=… AGENT_API_KEY=…"),
    ]
    if numbers.with_elevenlabs:
        made.append(("elevenlabs", ["ELEVENLABS_API_KEY"], "modal secret create elevenlabs ELEVENLABS_API_KEY=…"))
    if numbers.with_redis:
        made.append(("redis", ["REDIS_URL"], "modal secret create redis REDIS_URL=rediss://…"))
    made += [(name, [], f"modal secret create {name} NAME=…") for name in numbers.more_secrets]
    weights = {name: size for name, (group, size) in manifest.items() if group in numbers.groups}
    return Wanted(made, "musetalk-models", "musetalk-avatars", weights, ("Orchestrator", "Agent"))


def examine(cloud: Cloud, numbers: ModalSettings, wanted: Wanted) -> list[Check]:
    """Everything, in the order in which it is to be cured."""
    findings = [_card(numbers)]
    for name, keys, command in wanted.secrets:
        fault = cloud.secret(name, keys)
        findings.append(Check(f"secret {name}", fault or "there", command if fault else ""))
    findings.append(_weights(cloud, wanted))
    avatars = cloud.files(wanted.avatars)
    found = "made by the first deploy" if avatars is None else f"{len(avatars)} files"
    findings.append(Check(f"volume {wanted.avatars}", found))
    for server in wanted.servers:
        address = cloud.address(numbers.modal_app, server)
        findings.append(
            Check(f"server {server}", address or "not deployed", "" if address else "modal deploy modal_app.py")
        )
    return findings


def _card(numbers: ModalSettings) -> Check:
    estimate, places = (
        numbers.estimated_sessions,
        f"{numbers.sessions} places in a container of {numbers.cores:g} cores",
    )
    if numbers.agent_sessions:
        return Check("card", f"{numbers.agent_gpu}, {places}, as AGENT_SESSIONS says")
    if estimate is None:
        cure = f"AGENT_GPU is none of {', '.join(CARDS)}: set AGENT_SESSIONS to what was measured on it"
        return Check("card", f"{numbers.agent_gpu}, {places}", cure)
    profile = f"with the profile {numbers.musetalk_profile}"
    if estimate == 0:
        cure = "take a larger card (AGENT_GPU=L40S), or MUSETALK_PROFILE=fast"
        return Check("card", f"{numbers.agent_gpu} should hold no session in real time {profile}", cure)
    cure = "modal run modal_app.py::doctor_on_card measures it"
    return Check("card", f"{numbers.agent_gpu}, {places}, an estimate {profile}", cure, needed=False)


def _weights(cloud: Cloud, wanted: Wanted) -> Check:
    files = cloud.files(wanted.models)
    what, cure = f"weights in volume {wanted.models}", "modal run modal_app.py::fetch_models"
    if files is None:
        return Check(what, "no such volume", cure)
    lacking = [name for name, size in wanted.weights.items() if name not in files or size not in (None, files[name])]
    if lacking:
        return Check(
            what, f"{len(lacking)} of {len(wanted.weights)} missing or cut short: {', '.join(lacking[:3])}", cure
        )
    return Check(what, f"{len(wanted.weights)} files, of the right sizes")


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
