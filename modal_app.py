"""Both services on Modal: `modal deploy modal_app.py`. Deployment only; see docs/how-to/modal.md.

modal run modal_app.py::doctor        what is missing
modal run modal_app.py::fetch_models  fills and verifies the volume of weights
modal run modal_app.py::smoke         one session at what is deployed, with its figures
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import modal

from musetalk_agent.weights import Manifest
from musetalk_tools.deploy.modal_settings import KILL_S, ModalCloud, ModalSettings, Service, Wanted, examine
from musetalk_tools.deploy.smoke import smoke as one_session

NUMBERS = ModalSettings.read(os.environ)
ORCHESTRATOR_PORT, AGENT_PORT = 8080, 8090
MODELS, AVATARS = "/root/MuseTalk/models", "/root/avatars"
GROUPS = ("face", "musetalk")
LIVEKIT_KEYS = ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"]
OWN_KEYS = ["ORCHESTRATOR_API_KEY", "AGENT_API_KEY"]
NOT_THE_AGENTS = frozenset({"ORCHESTRATOR_API_KEY"})

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
models = modal.Volume.from_name("musetalk-models", create_if_missing=True)
avatars = modal.Volume.from_name("musetalk-avatars", create_if_missing=True)


def _image(extras: str) -> modal.Image:
    """The product, installed as in containers/*.Dockerfile."""
    here, image = Path(__file__).parent, modal.Image.debian_slim(python_version="3.12")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        image = image.add_local_file(here / name, f"/src/{name}", copy=True)
    for name in ("musetalk_agent", "orchestrator", "musetalk_tools", "models"):
        image = image.add_local_dir(
            here / name,
            f"/src/{name}",
            copy=True,
            ignore=["**/__pycache__", "**/*.pth", "**/*.bin", "musetalkV15", "sd-vae", "whisper"],
        )
    install = f"pip install --no-cache-dir --constraint /src/constraints.txt '/src[{extras}]'"
    return image.run_commands(install).env({"PYTHONUNBUFFERED": "1"})


orchestrator_image = _image("voice,redis,modal")
agent_image = _image("musetalk,modal")


@app.server(
    image=orchestrator_image,
    secrets=[livekit, keys, *elevenlabs, *redis],
    env=NUMBERS.orchestrator_variables(),
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
    env={**NUMBERS.agent_variables(), "MODELS_DIR": MODELS, "AVATAR_CACHE_DIR": AVATARS},
    volumes={MODELS: models.with_mount_options(read_only=True), AVATARS: avatars},
    port=AGENT_PORT,
    gpu=NUMBERS.agent_gpu,
    cpu=4,
    memory=16384,
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


@app.function(
    image=agent_image, env=NUMBERS.agent_variables(), volumes={MODELS: models}, cpu=4, memory=4096, timeout=3600
)
def fetch_models() -> None:
    """Fetches what is missing, checks all of it, writes the half-precision copies, and keeps what there is."""
    try:
        for arguments in (["fetch-models", *GROUPS], ["fetch-models", *GROUPS, "--check"], ["convert-weights"]):
            subprocess.run(["musetalk-agent", *arguments], check=True, env={**os.environ, "MODELS_DIR": MODELS})
    finally:
        models.commit()


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
    files = {entry.name: entry.size for entry in Manifest.load().entries.values() if entry.group in GROUPS}
    made = [
        (
            "livekit",
            LIVEKIT_KEYS,
            "modal secret create livekit LIVEKIT_URL=wss://… LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=…",
        ),
        ("musetalk-keys", OWN_KEYS, "modal secret create musetalk-keys ORCHESTRATOR_API_KEY=… AGENT_API_KEY=…"),
    ]
    if NUMBERS.with_elevenlabs:
        made.append(("elevenlabs", ["ELEVENLABS_API_KEY"], "modal secret create elevenlabs ELEVENLABS_API_KEY=…"))
    if NUMBERS.with_redis:
        made.append(("redis", ["REDIS_URL"], "modal secret create redis REDIS_URL=rediss://…"))
    return Wanted(made, "musetalk-models", "musetalk-avatars", files, ("Orchestrator", "Agent"))


@checks.local_entrypoint()
def doctor() -> None:
    """Tells what is missing, and what to do about it. Uses nothing and starts nothing."""
    findings = examine(ModalCloud(), NUMBERS, wanted())
    print("\n".join(finding.line() for finding in findings))
    print(NUMBERS.how_many_orchestrators())
    if any(finding.cure for finding in findings):
        raise SystemExit(1)
