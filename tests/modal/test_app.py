"""What `modal deploy modal_app.py` would ask for, read offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from modal._partial_function import _PartialFunctionFlags
from modal.cli import import_refs

from musetalk_agent.renders.render_job import TRIES_MOST
from tests.modal.inspected import FILE, ROOT, inspected

REDIS = "rediss://:hidden@redis.example:6380"


def secrets_of(asked: dict[str, Any]) -> list[str]:
    return [repr(secret) for secret in asked["secrets"] if "from_name" in repr(secret)]


def named(*names: str) -> list[str]:
    return [f"modal.Secret.from_name('{name}')" for name in names]


def test_it_is_deployment_only() -> None:
    assert FILE.read_text("utf-8").count("\n") <= 260


def test_the_orchestrator(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    asked = here.asked["Orchestrator"]
    http = asked["http_config"]
    assert (http.port, http.unauthenticated, http.startup_timeout, http.exit_grace_period) == (8080, True, 120, 0)
    assert (asked["min_containers"], asked["scaledown_window"]) == (1, 300)
    assert (asked["max_containers"], asked["target_concurrent_inputs"]) == (None, None), (
        "alone, and room for a successor"
    )
    assert (
        asked["gpu"] is None
        and list(asked["volumes"]) == ["/root/renders"]
        and not asked["is_sessioned"]
        and asked["is_server"]
    )
    assert (asked["cpu"], asked["memory"], asked["enable_memory_snapshot"]) == (2, 2048, False)
    assert secrets_of(asked) == named("livekit", "musetalk-keys")
    environment = here.environment("Orchestrator")
    assert environment["AGENT_POOL"] == "modal" and environment["MODAL_APP"] == "musetalk-livekit"
    assert environment["AGENT_SESSIONS_MAX"] == "30" and "REDIS_URL" not in environment


def test_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    asked = here.asked["Agent"]
    http = asked["http_config"]
    assert asked["gpu"] == "L40S" and asked["is_sessioned"] and asked["is_server"]
    assert (http.port, http.unauthenticated, http.startup_timeout, http.exit_grace_period) == (8090, False, 300, 600)
    assert asked["startup_timeout"] == 300 and list(http.proxy_regions) == ["us-east"]
    assert asked["max_concurrent_inputs"] == asked["target_concurrent_inputs"] == 3
    assert (asked["min_containers"], asked["max_containers"], asked["buffer_containers"]) == (0, 10, 0)
    assert (asked["cpu"], asked["memory"], asked["scaledown_window"]) == (2.9, 16384, 300)
    assert not asked["enable_memory_snapshot"] and asked["experimental_options"] == {}
    assert secrets_of(asked) == named("musetalk-keys"), "it needs nothing of LiveKit's: tokens come with each session"
    assert sorted(asked["volumes"]) == ["/root/MuseTalk/models", "/root/avatars", "/root/kernels"]
    environment = here.environment("Agent")
    assert environment["MODELS_DIR"] == "/root/MuseTalk/models" and environment["AVATAR_CACHE_DIR"] == "/root/avatars"
    assert (environment["AGENT_DRAIN_S"], environment["AGENT_ENGINE"]) == ("25", "musetalk")
    assert "AGENT_MAX_SESSIONS" not in environment, "three places are an estimate: the agent measures what it holds"


def test_the_agents_weights_are_read_only_and_the_names_of_volumes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    weights, prepared = (here.asked["Agent"]["volumes"][path] for path in ("/root/MuseTalk/models", "/root/avatars"))
    assert weights._mount_options.read_only and prepared._mount_options is None
    assert prepared._name == "musetalk-avatars" and here.module.models.name == "musetalk-models"
    (written,) = here.asked["fetch_models"]["volumes"].values()
    assert written._name == "musetalk-models" and written._mount_options is None


def test_renders_have_workers_of_their_own_on_the_agents_card_and_share_a_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = inspected(monkeypatch, MODAL_APP="shop", RENDER_CONTAINERS="7", AGENT_GPU="H100")
    asked, front = here.asked["Renderer.*"], here.asked["Orchestrator"]
    assert (asked["gpu"], asked["max_containers"], asked["timeout"]) == ("H100", 7, 4 * 3600)
    assert asked["max_concurrent_inputs"] in (None, 1), "one ticket at a time has the card"
    assert asked["volumes"]["/root/renders"]._name == front["volumes"]["/root/renders"]._name == "shop-renders"
    assert sorted(asked["volumes"]) == ["/root/MuseTalk/models", "/root/avatars", "/root/kernels", "/root/renders"]
    for environment in (here.environment("Renderer.*"), here.environment("Orchestrator")):
        assert (environment["RENDERS_DIR"], environment["RENDERS_QUEUE"]) == ("/root/renders", "modal://shop")
    assert "RENDERS_DIR" not in here.environment("Agent"), "live sessions have their containers to themselves"
    assert asked["retries"].max_retries == TRIES_MOST, "the try beyond the last one says that it has failed"


def test_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    functions = ["build_plans", "doctor_on_card", "fetch_models", "smoke"]
    assert sorted(here.asked) == ["Agent", "Orchestrator", "Renderer.*", *functions]
    assert {asked["app"] for asked in here.asked.values()} == {"musetalk-livekit"}
    fetch, smoke = here.asked["fetch_models"], here.asked["smoke"]
    assert fetch["timeout"] == 3600 and not secrets_of(fetch) and not fetch.get("gpu")
    assert smoke["timeout"] == 600 and secrets_of(smoke) == named("musetalk-keys") and not smoke["volumes"]


@pytest.mark.parametrize(
    ("name", "app"),
    [
        ("doctor", "musetalk-livekit-doctor"),
        ("smoke", "musetalk-livekit"),
        ("fetch_models", "musetalk-livekit"),
        ("build_plans", "musetalk-livekit"),
        ("doctor_on_card", "musetalk-livekit"),
        ("", "musetalk-livekit"),
    ],
)
def test_the_command_line_finds_what_the_documentation_names(
    name: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    reference = import_refs.ImportRef(str(FILE), False, name, "modal run")
    if name:
        runnable = import_refs.import_and_filter(reference, base_cmd="modal run")[0]
        assert import_refs._get_runnable_app(runnable).name == app
    else:
        assert import_refs.import_app_from_ref(reference, "modal deploy").name == app


def test_numbers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(
        monkeypatch,
        AGENT_GPU="H100",
        AGENT_SESSIONS="12",
        AGENT_CONTAINERS="40",
        AGENT_CONTAINERS_MIN="2",
        AGENT_CONTAINERS_SPARE="1",
        AGENT_DRAIN_S="20",
        AGENT_LINGER_S="60",
        AGENT_SNAPSHOT="true",
        ORCHESTRATOR_CONTAINERS="3",
        REDIS_URL=REDIS,
        WITH_ELEVENLABS="1",
        ROUTING_REGION="eu-west",
    )
    agent, orchestrator = here.asked["Agent"], here.asked["Orchestrator"]
    assert agent["gpu"] == "H100" and agent["max_concurrent_inputs"] == 12
    assert (agent["min_containers"], agent["max_containers"], agent["buffer_containers"]) == (2, 40, 1)
    assert agent["http_config"].exit_grace_period == 60 and list(agent["http_config"].proxy_regions) == ["eu-west"]
    assert agent["enable_memory_snapshot"] and agent["experimental_options"] == {"enable_gpu_snapshot": "True"}
    assert (orchestrator["max_containers"], orchestrator["target_concurrent_inputs"]) == (3, 500)
    assert secrets_of(orchestrator) == named("livekit", "musetalk-keys", "elevenlabs")
    assert REDIS not in repr(here.environment("Orchestrator")), "a password is no plain variable"
    assert len(orchestrator["secrets"]) == 1 + len(secrets_of(orchestrator)) + 1, "env, and the store's address"
    assert "REDIS_URL" not in here.environment("Agent") and REDIS not in repr(here.module.NUMBERS)


def test_every_setting_of_the_deployer_reaches_the_containers_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "MUSETALK_PROFILE": "fast",
        "MUSETALK_PRECISION": "bfloat16",
        "MUSETALK_FUSE": "compile",
        "MUSETALK_LOOKAHEAD_MS": "120",
        "MUSETALK_OF_A_LATER_VERSION": "7",
        "AVATAR_CACHE_BYTES": "1073741824",
        "LOG_LEVEL": "DEBUG",
        "ALLOW_PRIVATE_URLS": "true",
    }
    kept_back = {
        "MUSETALK_DEVICE": "cpu",
        "AGENT_API_KEY": "not-mine-to-give",
        "AVATAR_CACHE_DIR": "/home/me",
        "MODELS_DIR": "/home/me/models",
        "OPENAI_API_KEY": "sk-secret",
        "STORE_PATH": "/home/me/db",
        "ORCHESTRATOR_KEYS_FILE": "/home/me/keys.json",
    }
    here = inspected(monkeypatch, **given, **kept_back, VOICE="espeak:en-us", ORCHESTRATOR_SECRETS="openai, hooks")
    agent, orchestrator = here.environment("Agent"), here.environment("Orchestrator")
    assert {name: agent[name].lower() for name in given} == {name: value.lower() for name, value in given.items()}
    assert orchestrator["VOICE"] == "espeak:en-us" and orchestrator["LOG_LEVEL"] == "DEBUG"
    assert orchestrator["STORE_PATH"] == ":memory:" and agent["MODELS_DIR"] == "/root/MuseTalk/models"
    for environment in (agent, orchestrator):
        assert not set(kept_back.values()) & set(environment.values())
        assert not {"MUSETALK_DEVICE", "AGENT_API_KEY", "OPENAI_API_KEY", "ORCHESTRATOR_KEYS_FILE"} & set(environment)
    assert secrets_of(here.asked["Orchestrator"])[-2:] == named("openai", "hooks")
    for function in ("build_plans", "doctor_on_card", "fetch_models"):
        assert here.environment(function) == agent
    assert "taesd/config.json" in here.module.wanted().weights


def test_compiled_kernels_and_plans_are_kept_on_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch, AGENT_GPU="H100", WITH_TENSORRT="1")
    agent, plans, doctor = (here.asked[name] for name in ("Agent", "build_plans", "doctor_on_card"))
    assert agent["volumes"]["/root/kernels"]._name == "musetalk-kernels"
    assert agent["volumes"]["/root/kernels"]._mount_options is None
    environment = here.environment("Agent")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"):
        assert environment[name].startswith("/root/kernels/")
    assert environment["KERNELS_DIR"] == "/root/kernels"
    (written,) = plans["volumes"].values()
    assert written._name == "musetalk-models" and written._mount_options is None
    assert plans["gpu"] == doctor["gpu"] == agent["gpu"] == "H100" and plans["image"] is agent["image"]
    assert doctor["volumes"]["/root/MuseTalk/models"]._mount_options.read_only
    assert secrets_of(doctor) == named("livekit", "musetalk-keys")


def test_no_weights_of_the_deployer_go_into_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = inspected(monkeypatch).module.NOT_IN_THE_IMAGE
    shipped = ["manifest.toml", "README.md", "mouth/mouth.npz", "mouth/README.md"]
    left = [
        *(".cache/parts/musetalkV15--unet.pth.part", ".cache/verified.json", "musetalkV15/unet.fp16.safetensors"),
        *("tensorrt/quality-float16-abc.plan", "syncnet/syncnet_v2.model", "taesd/config.json", "sd-vae-ft-mse/x.bin"),
    ]
    assert not [name for name in shipped if ignored(Path(name))]
    assert [name for name in left if ignored(Path(name))] == left


def test_the_store_may_be_a_secret_at_modal(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch, WITH_REDIS="1", ORCHESTRATOR_CONTAINERS="2")
    assert secrets_of(here.asked["Orchestrator"]) == named("livekit", "musetalk-keys", "redis")
    assert secrets_of(here.asked["Agent"]) == named("musetalk-keys")
    assert ("redis", ["REDIS_URL"]) in [(name, keys) for name, keys, _ in here.module.wanted().secrets]
    assert "WITH_REDIS" not in here.environment("Agent")


@pytest.mark.parametrize("name", ["Orchestrator", "Agent", "fetch_models", "smoke"])
def test_a_container_reads_the_numbers_that_were_deployed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = inspected(monkeypatch, AGENT_GPU="L4", REDIS_URL=REDIS, ORCHESTRATOR_CONTAINERS="2", MODAL_APP="faces")
    there = given.environment(name) | ({"REDIS_URL": REDIS} if name == "Orchestrator" else {})  # its secret
    for variable in ("AGENT_GPU", "REDIS_URL", "ORCHESTRATOR_CONTAINERS", "MODAL_APP"):
        monkeypatch.delenv(variable)
    shutil.copy(FILE, tmp_path / "modal_app.py")  # nothing else of the checkout is beside it in a container
    again = inspected(monkeypatch, tmp_path / "modal_app.py", **there)
    assert again.module.NUMBERS.modal_app == "faces"
    assert again.asked["Agent"]["max_concurrent_inputs"] == given.asked["Agent"]["max_concurrent_inputs"] == 1


@pytest.mark.parametrize(("snapshot", "flag"), [("0", "ENTER_POST_SNAPSHOT"), ("1", "ENTER_PRE_SNAPSHOT")])
def test_a_snapshot_is_taken_of_a_warm_agent_or_of_none(
    snapshot: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, start, stop = inspected(monkeypatch, AGENT_SNAPSHOT=snapshot).steps("Agent")
    assert start.flags == _PartialFunctionFlags[flag] and stop.flags == _PartialFunctionFlags.EXIT
