"""What the doctor says of machines that are not whole, with torch's boundary faked, and of a LiveKit that is real or not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.checks import Check, exit_code, next_command
from musetalk_agent.engines.musetalk.card_facts import CardFacts, Driver
from musetalk_agent.publishers.livekit import detached_connect
from musetalk_agent.tools import doctor, doctor_machine
from musetalk_agent.tools.doctor import LiveKitAddress, check_livekit
from musetalk_agent.tools.doctor_machine import DoctorMachine, check_card, check_engine, check_musetalk, check_weights
from musetalk_agent.weights import Manifest, ModelStore
from musetalk_tools.livekit_server import LiveKitAccess
from musetalk_tools.processes import free_port
from tests.musetalk_agent.tools.test_commands import run
from tests.waiting import NEVER_S

GIB = 1 << 30
KERNELS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
NEW, OLD, NONE = Driver("580.95.05", (13, 0)), Driver("550.54", (12, 4)), Driver()


def card(name: str = "NVIDIA L40S", free: float = 44.0, total: float = 45.0, **more: Any) -> CardFacts:
    known: dict[str, Any] = {"capability": (8, 9), "kernels": KERNELS, "driver": NEW, "message": None, "count": 1}
    memory = {"memory_free": int(free * GIB), "memory_total": int(total * GIB)}
    return CardFacts("cuda:0", "2.15.0+cu132", "13.2", name=name, **(known | memory | more))


NO_DRIVER = CardFacts("cuda:0", "2.15.0+cu132", "13.2", NONE, "Found no NVIDIA driver.", 0)
OLD_DRIVER = CardFacts("cuda:0", "2.15.0+cu132", "13.2", OLD, "The driver is too old.", 0)


def machine(folder: Path, **settings: Any) -> DoctorMachine:
    made = AgentSettings.model_validate({"agent_api_key": "k", "models_dir": folder, "cache_dir": folder, **settings})
    return DoctorMachine(made, ModelStore(folder, Manifest.load()))


def seen(monkeypatch: pytest.MonkeyPatch, facts: CardFacts) -> None:
    monkeypatch.setattr(doctor_machine, "look", lambda device: facts)
    monkeypatch.setattr(doctor_machine, "find_driver", lambda: facts.driver)


def by_name(checks: Any) -> dict[str, Check]:
    return {check.what: check for check in checks}


def test_auto_on_a_machine_without_a_card_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    seen(monkeypatch, NO_DRIVER)
    found = list(check_musetalk(machine(tmp_path)))
    assert [check.what for check in found] == ["libraries", "driver"] and exit_code(found) == 0
    assert found[1].verdict == "note" and "--gpus all" in found[1].cure


def test_musetalk_by_name_without_a_card_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    seen(monkeypatch, NO_DRIVER)
    found = by_name(check_musetalk(machine(tmp_path, engine="musetalk")))
    assert {found[name].verdict for name in ("driver", "weights")} == {"todo"}


def test_an_old_driver_is_to_be_cured_also_with_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    seen(monkeypatch, OLD_DRIVER)
    found = list(check_musetalk(machine(tmp_path)))
    assert by_name(found)["driver"].verdict == "todo" and "+cu126" in (next_command(found) or "")
    assert by_name(found)["driver"].values()["driver"] == "550.54"


def test_the_extra_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor_machine, "find_driver", lambda: NEW)
    found = by_name(check_musetalk(machine(tmp_path)))
    assert found["libraries"].verdict == "todo" and "torch" in found["libraries"].found
    assert "musetalk-livekit[musetalk]" in found["libraries"].cure and "card" not in found
    monkeypatch.setattr(doctor_machine, "find_driver", lambda: NONE)
    assert by_name(check_musetalk(machine(tmp_path)))["libraries"].verdict == "note"


def test_a_whole_card_is_four_lines_without_a_cure() -> None:
    found = by_name(check_card(card(), "quality", needed=True))
    assert list(found) == ["driver", "card", "memory", "estimate"] and not exit_code(list(found.values()))
    assert found["card"].values()["capability"] == "8.9"
    assert found["estimate"].figures == {"estimated_sessions": 3} and "3 sessions" in found["estimate"].found


def test_a_card_that_torch_has_no_kernels_for() -> None:
    found = by_name(check_card(card("Tesla V100", capability=(7, 0)), "quality", needed=True))
    assert found["driver"].verdict == "ok" and found["card"].verdict == "todo" and "+cu126" in found["card"].cure


@pytest.mark.parametrize(
    ("free", "total", "verdict", "cure"),
    [
        (44.0, 45.0, "ok", ""),
        (4.0, 24.0, "note", "20.0 GiB (nvidia-smi"),
        (2.0, 24.0, "todo", "22.0 GiB (nvidia-smi"),
        (2.9, 4.0, "todo", "MUSETALK_PROFILE=fast"),
    ],
)
def test_memory_that_others_hold(free: float, total: float, verdict: str, cure: str) -> None:
    found = by_name(check_card(card(free=free, total=total), "quality", needed=True))["memory"]
    assert found.verdict == verdict and cure in found.cure and f"{free:.1f} of {total:.1f} GiB" in found.found


def test_a_slow_card_gets_the_profile_that_holds_one() -> None:
    slow = by_name(check_card(card("NVIDIA GeForce RTX 3060", total=12, free=11), "quality", needed=True))["estimate"]
    assert slow.verdict == "todo" and slow.cure == "set MUSETALK_PROFILE=fast"
    unknown = by_name(check_card(card("NVIDIA of tomorrow"), "quality", needed=True))["estimate"]
    assert unknown.verdict == "ok" and "not in the table" in unknown.found


def test_weights_missing_of_the_profile_and_of_another_hash(tmp_path: Path) -> None:
    weights = pytest.importorskip("tests.fakes.weights")
    empty = by_name(check_weights(machine(tmp_path / "empty"), needed=True))
    assert empty["weights"].cure == "musetalk-agent fetch-models musetalk" and empty["weights"].verdict == "todo"
    weights.write_models(tmp_path, scale="tiny")
    mine = by_name(check_weights(machine(tmp_path, musetalk_profile="fast"), needed=True))
    assert mine["weights"].verdict == "note" and "musetalkV15/unet.pth" in mine["weights"].found
    assert mine["weights"].figures["files"]["musetalkV15/unet.pth"] is False
    assert mine["weights of fast"].cure == "musetalk-agent fetch-models fast"
    assert mine["weights of fast"].verdict == "todo"
    assert "restore" not in mine
    live = by_name(check_weights(machine(tmp_path, musetalk_restore="live"), needed=True))
    assert live["restore"].cure == "musetalk-agent fetch-models restore" and live["restore"].verdict == "note"
    assert mine["copies"].verdict == "note" and mine["copies"].cure == "musetalk-agent convert-weights"


async def test_the_engine_is_started_as_the_agent_does_and_measured(tmp_path: Path) -> None:
    weights = pytest.importorskip("tests.fakes.weights")
    weights.write_models(tmp_path, scale="tiny")
    found = await check_engine(
        machine(tmp_path, musetalk_device="cpu", engine="musetalk")
    )  # `auto` turns to warp on a busy machine
    assert found.figures["engine"] == "musetalk" and found.figures["device"] == "cpu"
    assert f"{found.figures['sessions']} sessions" in found.found and found.figures["figures"]["frames_per_second"] > 0
    (tmp_path / "musetalkV15" / "unet.pth").write_bytes(b"no weights")
    broken = await check_engine(machine(tmp_path, musetalk_device="cpu", engine="musetalk"))
    assert broken.verdict == "todo" and "would not start" in broken.found and "unet.pth" in broken.found


async def test_a_real_livekit_is_joined_and_a_wrong_key_is_reported(livekit_server: LiveKitAccess) -> None:
    real = LiveKitAddress(livekit_server.url, livekit_server.api_key, livekit_server.api_secret)
    joined = await check_livekit(real, NEVER_S)
    assert joined.verdict == "ok" and "joined a room" in joined.found and joined.figures["join_s"] >= 0
    wrong = await check_livekit(LiveKitAddress(real.url, real.api_key, "x" * 32), NEVER_S)
    assert wrong.verdict == "todo" and "LIVEKIT_API_SECRET" in wrong.cure and "eyJ" not in wrong.found
    keyless = await check_livekit(LiveKitAddress(real.url))
    assert keyless.verdict == "note" and "no room was joined" in keyless.found


@asynccontextmanager
async def _server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[asyncio.Server, str]]:
    """A server on loopback whose connections `answer` takes, and its address for LiveKit."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_livekit_that_is_not_there_or_says_nothing() -> None:
    away = await check_livekit(LiveKitAddress(f"ws://127.0.0.1:{free_port()}", "key", "secret"))
    assert away.verdict == "todo" and "does not answer" in away.found
    assert (await check_livekit(LiveKitAddress(""))).verdict == "note"
    assert "ws://" in (await check_livekit(LiveKitAddress("localhost:7880"))).cure

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with _server(broken) as (_, url):
        answered = await check_livekit(LiveKitAddress(url, "key", "secret"))
    assert answered.verdict == "todo" and "answers 502" in answered.found


async def test_a_livekit_that_never_lets_media_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers HTTP, and its signalling never does."""
    held: list[asyncio.StreamWriter] = []

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readuntil(b"\r\n\r\n")
        if b"/rtc" in first.splitlines()[0]:
            held.append(writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK")
        await writer.drain()
        writer.close()

    async with _server(half) as (server, url):
        stuck = await check_livekit(LiveKitAddress(url, "key", "s" * 32), within_s=0.3)
        assert stuck.verdict == "todo" and "7881" in stuck.cure
        server.close()
        for writer in held:
            writer.transport.abort()
        await asyncio.wait(set(detached_connect._tasks), timeout=NEVER_S)


def test_the_command_prints_a_line_each_and_the_next_thing_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENT_ENGINE", "pattern")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("AVATAR_CACHE_DIR", str(tmp_path / "avatars"))
    assert run(doctor) == 1
    reported = capsys.readouterr().out
    assert "todo  face models: " in reported and reported.rstrip().endswith("Next: musetalk-agent fetch-models")
    assert "ok    engine: pattern on cpu" in reported
    assert run(doctor, "--json", "--quick") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["next"] == "musetalk-agent fetch-models"
    verdicts = {check["what"]: check["verdict"] for check in answer["checks"]}
    assert verdicts == {"settings": "ok", "face models": "todo", "avatars": "ok", "engine": "note", "LiveKit": "note"}


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MUSETALK_PROFILE", "best")
    assert run(doctor) == 2
    assert "MUSETALK_PROFILE 'best': " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "AVATAR_CACHE_DIR" in doctor._folder(tmp_path / "file" / "avatars").cure
