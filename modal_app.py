"""Both services on Modal: `modal deploy modal_app.py`. Deployment only; see docs/how-to/modal.md.

modal run modal_app.py::doctor          what is missing
modal run modal_app.py::fetch_models    fills and verifies the volume of weights
modal run modal_app.py::doctor_on_card  what the card, the weights and the network there can do, with sessions measured
modal run modal_app.py::build_plans     TensorRT plans for that card (WITH_TENSORRT=1)
modal run modal_app.py::smoke           one session at what is deployed, with its figures
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import modal

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.checks import exit_code, next_command
from musetalk_agent.protocol.modal_renders import volume_name
from musetalk_agent.renders.modal_worker import ModalWorker
from musetalk_agent.renders.render_job import TRIES_MOST
from musetalk_agent.weights import Manifest
from musetalk_tools.deploy.modal_settings import (
    KILL_S,
    LIVEKIT_KEYS,
    OWN_KEYS,
    RENDERS,
    ModalCloud,
    ModalSettings,
    Wanted,
    examine,
    wanted_by,
)
from musetalk_tools.deploy.passed_on import describe, passed_on, plain_settings
from musetalk_tools.deploy.service import Service
from musetalk_tools.deploy.smoke import smoke as one_session
from orchestrator.settings import Settings

NUMBERS = ModalSettings.read(os.environ)
ORCHESTRATOR_PORT, AGENT_PORT = 8080, 8090
MODELS, AVATARS, KERNELS = "/root/MuseTalk/models", "/root/avatars", "/root/kernels"
RENDER_S = 4 * 3600
"""One ticket: half a minute of film, or the first look at two hours of footage."""
NOT_THE_AGENTS = frozenset({"ORCHESTRATOR_API_KEY"})
CACHES = {
    name: f"{KERNELS}/{name.lower()}" for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
}
AGENT_ENV = {
    **passed_on(os.environ, plain_settings(AgentSettings), musetalk=True),
    **NUMBERS.agent_variables(),
    **CACHES,
    "MODELS_DIR": MODELS,
    "AVATAR_CACHE_DIR": AVATARS,
    "KERNELS_DIR": KERNELS,
}
ORCHESTRATOR_ENV = {**passed_on(os.environ, plain_settings(Settings)), **NUMBERS.orchestrator_variables()}

app = modal.App(NUMBERS.modal_app)
checks = modal.App(f"{NUMBERS.modal_app}-doctor")  # its own: it runs where the app cannot, for want of a secret

livekit = modal.Secret.from_name("livekit", required_keys=LIVEKIT_KEYS)
keys = modal.Secret.from_name("musetalk-keys", required_keys=OWN_KEYS)
elevenlabs = (
    [modal.Secret.from_name("elevenlabs", required_keys=["ELEVENLABS_API_KEY"])] if NUMBERS.with_elevenlabs else []
)
# REDIS_URL holds a password: it is a secret of its own, Modal's or one made at deployment, and never in `env`.
redis = [modal.Secret.from_name("redis", required_keys=["REDIS_URL"])] if NUMBERS.with_redis else []
if NUMBERS.redis_url and not NUMBERS.with_redis:
    redis = [modal.Secret.from_dict({"REDIS_URL": NUMBERS.redis_url})]
more = [modal.Secret.from_name(name) for name in NUMBERS.more_secrets]
models = modal.Volume.from_name("musetalk-models", create_if_missing=True)
avatars = modal.Volume.from_name("musetalk-avatars", create_if_missing=True)
kernels = modal.Volume.from_name("musetalk-kernels", create_if_missing=True)
renders = modal.Volume.from_name(volume_name(NUMBERS.modal_app), create_if_missing=True)
WEIGHTS = models.with_mount_options(read_only=True)


NOT_IN_THE_IMAGE = ~modal.FilePatternMatcher("manifest.toml", "README.md", "mouth", "mouth/**")
"""Of the models folder: weights, plans and half-fetched files of the deployer's stay where they are."""


def _image(extras: str, beside: str = "") -> modal.Image:
    """The product, installed as in containers/*.Dockerfile."""
    here, image = Path(__file__).parent, modal.Image.debian_slim(python_version="3.12")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        image = image.add_local_file(here / name, f"/src/{name}", copy=True)
    for name in ("musetalk_agent", "orchestrator", "musetalk_tools", "models"):
        ignored = NOT_IN_THE_IMAGE if name == "models" else ["**/__pycache__"]
        image = image.add_local_dir(here / name, f"/src/{name}", copy=True, ignore=ignored)
    install = f"pip install --no-cache-dir --constraint /src/constraints.txt '/src[{extras}]' {beside}"
    return image.run_commands(install).env({"PYTHONUNBUFFERED": "1"})


orchestrator_image = _image("voice,redis,modal")
agent_image = _image("musetalk,modal", "tensorrt" if NUMBERS.with_tensorrt else "")


@app.server(
    image=orchestrator_image,
    secrets=[livekit, keys, *elevenlabs, *redis, *more],
    env=ORCHESTRATOR_ENV,
    volumes={RENDERS: renders},
    port=ORCHESTRATOR_PORT,
    cpu=2,
    memory=2048,
    min_containers=1,
    # Alone it has no limit: a limit of one would leave no room for its successor at a redeploy.
    max_containers=NUMBERS.orchestrator_containers if NUMBERS.orchestrator_containers > 1 else None,
    target_concurrency=NUMBERS.orchestrator_requests if NUMBERS.orchestrator_containers > 1 else None,
    scaledown_window=300,
    startup_timeout=120,
    exit_grace_period=0,  # it drains by itself, and gives its sessions to its successor
    unauthenticated=True,  # it has keys of its own
    routing_region=NUMBERS.routing_region,
)
class Orchestrator:
    @modal.enter()
    def start(self) -> None:
        url = NUMBERS.public_url or modal.Server.from_name(NUMBERS.modal_app, "Orchestrator").get_url()
        self.service = Service("orchestrator", ORCHESTRATOR_PORT, {"PUBLIC_URL": url or ""})
        print(NUMBERS.how_many_orchestrators(), flush=True)
        self.service.start(within_s=100)

    @modal.exit()
    def stop(self) -> None:
        self.service.end(drain_s=20)


@app.server(
    image=agent_image,
    secrets=[keys],
    env=AGENT_ENV,
    volumes={MODELS: WEIGHTS, AVATARS: avatars, KERNELS: kernels},
    port=AGENT_PORT,
    gpu=NUMBERS.agent_gpu,
    cpu=NUMBERS.cores,
    memory=NUMBERS.agent_memory_mb,
    min_containers=NUMBERS.agent_containers_min,
    max_containers=NUMBERS.agent_containers,
    buffer_containers=NUMBERS.agent_containers_spare,
    target_concurrency=NUMBERS.sessions,
    max_concurrency=NUMBERS.sessions,
    scaledown_window=NUMBERS.scaledown_s,
    startup_timeout=NUMBERS.agent_startup_s,
    exit_grace_period=NUMBERS.agent_linger_s,
    routing_region=NUMBERS.routing_region,
    enable_memory_snapshot=NUMBERS.agent_snapshot,
    experimental_options={"enable_gpu_snapshot": True} if NUMBERS.agent_snapshot else None,
)
@modal.sessioned()
class Agent:
    @modal.enter(snap=NUMBERS.agent_snapshot)
    def start(self) -> None:
        self.service = Service("musetalk_agent", AGENT_PORT, {}, NOT_THE_AGENTS)
        self.service.start(within_s=NUMBERS.agent_startup_s)

    @modal.exit()
    def stop(self) -> None:
        self.service.end(drain_s=min(NUMBERS.agent_drain_s, KILL_S))


@app.cls(
    image=agent_image,
    secrets=[keys],
    env={**AGENT_ENV, **NUMBERS.render_variables()},
    volumes={MODELS: WEIGHTS, AVATARS: avatars, KERNELS: kernels, RENDERS: renders},
    gpu=NUMBERS.agent_gpu,
    cpu=NUMBERS.cores,
    memory=NUMBERS.agent_memory_mb,
    max_containers=NUMBERS.render_containers,
    scaledown_window=NUMBERS.scaledown_s,
    startup_timeout=NUMBERS.agent_startup_s,
    timeout=RENDER_S,
    retries=modal.Retries(max_retries=TRIES_MOST, initial_delay=1.0, backoff_coefficient=1.0),
)
class Renderer:
    @modal.enter()
    async def start(self) -> None:
        self.worker = await ModalWorker().start()

    @modal.method()
    async def do(self, render_id: str, span: int | None) -> None:
        await self.worker.do(render_id, span)

    @modal.exit()
    async def stop(self) -> None:
        await self.worker.aclose()


def _run(*arguments: str) -> None:
    """A command of the agent; one that fails raises."""
    subprocess.run(["musetalk-agent", *arguments], check=True, env=dict(os.environ))


@app.function(image=agent_image, env=AGENT_ENV, volumes={MODELS: models}, cpu=4, memory=4096, timeout=3600)
def fetch_models() -> None:
    """Fetches what is missing, checks all of it, writes the half-precision copies, and keeps what there is."""
    try:
        _run("fetch-models", *NUMBERS.groups)
        _run("fetch-models", *NUMBERS.groups, "--check")
        _run("convert-weights")
    finally:
        models.commit()


@app.function(
    image=agent_image, env=AGENT_ENV, volumes={MODELS: models}, gpu=NUMBERS.agent_gpu, cpu=4, memory=32768, timeout=3600
)
def build_plans() -> None:
    """Builds the TensorRT plan of the profile on the agents' card, and keeps it beside the weights."""
    try:
        _run("build-engine", "--profile", NUMBERS.musetalk_profile)
    finally:
        models.commit()


@app.function(
    image=agent_image,
    env=AGENT_ENV,
    secrets=[livekit, keys],
    volumes={MODELS: WEIGHTS, KERNELS: kernels},
    gpu=NUMBERS.agent_gpu,
    cpu=NUMBERS.cores,
    memory=NUMBERS.agent_memory_mb,
    timeout=1200,
)
def doctor_on_card() -> None:
    """The agent's own doctor, in a container as the agents have it."""
    _run("doctor")


@app.function(image=orchestrator_image, env=NUMBERS.agent_variables(), secrets=[keys], cpu=2, timeout=600)
def smoke() -> None:
    """One session with the demo's face; fails when no lips moved."""
    url = modal.Server.from_name(NUMBERS.modal_app, "Orchestrator").get_url()
    report = asyncio.run(one_session(url or "", os.environ["ORCHESTRATOR_API_KEY"].split(",")[0].strip()))
    print("\n".join(report.lines()))
    if not report.ok:
        raise SystemExit(1)


def wanted() -> Wanted:
    """What has to be there."""
    return wanted_by(NUMBERS, {entry.name: (entry.group, entry.size) for entry in Manifest.load().entries.values()})


@checks.local_entrypoint()
def doctor() -> None:
    """Tells what is missing, and what to do about it. Uses nothing and starts nothing."""
    findings = examine(ModalCloud(), NUMBERS, wanted())
    print("\n".join(finding.line() for finding in findings))
    print(NUMBERS.how_many_orchestrators())
    print(describe(os.environ, {"agents": AGENT_ENV, "orchestrator": ORCHESTRATOR_ENV}))
    print(f"Next: {next_command(findings) or 'modal run modal_app.py::smoke'}")
    raise SystemExit(exit_code(findings))
