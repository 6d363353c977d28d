"""What `modal deploy modal_app.py` would ask for, read offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from modal._partial_function import _PartialFunctionFlags
from modal.cli import import_refs

from tests.modal.inspected import FILE, ROOT, inspected

REDIS = "rediss://:hidden@redis.example:6380"


def secrets_of(asked: dict[str, Any]) -> list[str]:
    return [repr(secret) for secret in asked["secrets"] if "from_name" in repr(secret)]


def named(*names: str) -> list[str]:
    return [f"modal.Secret.from_name('{name}')" for name in names]


def test_it_is_deployment_only() -> None:
    assert FILE.read_text("utf-8").count("\n") <= 200


def test_the_orchestrator(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    asked = here.asked["Orchestrator"]
    http = asked["http_config"]
    assert (http.port, http.unauthenticated, http.startup_timeout, http.exit_grace_period) == (8080, True, 120, 0)
    assert (asked["min_containers"], asked["scaledown_window"]) == (1, 300)
    assert (asked["max_containers"], asked["target_concurrent_inputs"]) == (None, None), (
        "alone, and room for a successor"
    )
    assert asked["gpu"] is None and not asked["volumes"] and not asked["is_sessioned"] and asked["is_server"]
    assert (asked["cpu"], asked["memory"], asked["enable_memory_snapshot"]) == (2, 2048, False)
    assert secrets_of(asked) == named("livekit", "musetalk-keys")
    environment = here.environment("Orchestrator")
    assert environment["AGENT_POOL"] == "modal" and environment["MODAL_APP"] == "musetalk-livekit"
    assert environment["AGENT_SESSIONS_MAX"] == "60" and "REDIS_URL" not in environment


def test_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    asked = here.asked["Agent"]
    http = asked["http_config"]
    assert asked["gpu"] == "L40S" and asked["is_sessioned"] and asked["is_server"]
    assert (http.port, http.unauthenticated, http.startup_timeout, http.exit_grace_period) == (8090, False, 300, 600)
    assert asked["startup_timeout"] == 300 and list(http.proxy_regions) == ["us-east"]
    assert asked["max_concurrent_inputs"] == asked["target_concurrent_inputs"] == 6
    assert (asked["min_containers"], asked["max_containers"], asked["buffer_containers"]) == (0, 10, 0)
    assert (asked["cpu"], asked["memory"], asked["scaledown_window"]) == (4, 16384, 300)
    assert not asked["enable_memory_snapshot"] and asked["experimental_options"] == {}
    assert secrets_of(asked) == named("musetalk-keys"), "it needs nothing of LiveKit's: tokens come with each session"
    assert sorted(asked["volumes"]) == ["/root/MuseTalk/models", "/root/avatars"]
    environment = here.environment("Agent")
    assert environment["MODELS_DIR"] == "/root/MuseTalk/models" and environment["AVATAR_CACHE_DIR"] == "/root/avatars"
    assert (environment["AGENT_MAX_SESSIONS"], environment["AGENT_DRAIN_S"]) == ("6", "25")
    assert environment["AGENT_ENGINE"] == "musetalk"


def test_the_agents_weights_are_read_only_and_the_names_of_volumes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    weights, prepared = (here.asked["Agent"]["volumes"][path] for path in ("/root/MuseTalk/models", "/root/avatars"))
    assert weights._mount_options.read_only and prepared._mount_options is None
    assert prepared._name == "musetalk-avatars" and here.module.models.name == "musetalk-models"
    (written,) = here.asked["fetch_models"]["volumes"].values()
    assert written._name == "musetalk-models" and written._mount_options is None


def test_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    here = inspected(monkeypatch)
    assert sorted(here.asked) == ["Agent", "Orchestrator", "fetch_models", "smoke"]
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
    assert again.asked["Agent"]["max_concurrent_inputs"] == given.asked["Agent"]["max_concurrent_inputs"] == 2


@pytest.mark.parametrize(("snapshot", "flag"), [("0", "ENTER_POST_SNAPSHOT"), ("1", "ENTER_PRE_SNAPSHOT")])
def test_a_snapshot_is_taken_of_a_warm_agent_or_of_none(
    snapshot: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, start, stop = inspected(monkeypatch, AGENT_SNAPSHOT=snapshot).steps("Agent")
    assert start.flags == _PartialFunctionFlags[flag] and stop.flags == _PartialFunctionFlags.EXIT
