"""Why torch cannot compute on a card, with torch's boundary faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from musetalk_agent.engines.musetalk import card_facts
from musetalk_agent.engines.musetalk.card_facts import CardFacts, Driver, look, runs_on

OLD = "The NVIDIA driver on your system is too old (found version 12020)."
KERNELS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def faked(monkeypatch: pytest.MonkeyPatch, *, driver: Driver, build: str = "2.15.0+cu132", **cuda: Any) -> None:
    """torch of this build with a `torch.cuda` of these answers, and this driver."""

    def init() -> None:
        if error := cuda.get("error"):
            raise RuntimeError(error)

    def memory(_: int) -> tuple[int, int]:
        return cuda.get("free", 20 << 30), 24 << 30

    def properties(_: int) -> SimpleNamespace:
        if error := cuda.get("broken"):
            raise RuntimeError(error)
        major, minor = cuda.get("capability", (8, 9))
        return SimpleNamespace(name=cuda.get("name", "a card"), major=major, minor=minor, total_memory=24 << 30)

    count = cuda.get("count", 0)
    module = SimpleNamespace(
        __version__=build,
        version=SimpleNamespace(cuda=cuda.get("cuda", "13.2")),
        cuda=SimpleNamespace(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            init=init,
            get_device_properties=properties,
            get_arch_list=lambda: cuda.get("kernels", KERNELS),
            mem_get_info=memory,
        ),
    )
    monkeypatch.setattr(card_facts, "import_module", {"torch": module}.__getitem__)
    monkeypatch.setattr(card_facts, "find_driver", lambda: driver)


def test_an_old_driver_is_reported_with_both_versions_and_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver("535.183.01", (12, 2)), error=OLD + "\nmore")
    fault = look("cuda:0").fault
    assert fault == (
        "torch sees no CUDA device: the driver 535.183.01 runs CUDA 12.2 at most, and torch 2.15.0+cu132 is built for CUDA 13.2. "
        "Install a driver 580 or newer, or torch 2.15.0+cu126 (docs/how-to/operations.md, A card). "
        f'CUDA says: "{OLD}"'
    )


def test_a_driver_too_old_for_cuda_12_has_one_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver("470.82", (11, 4)), error=OLD)
    fault = look("cuda:0").fault or ""
    assert "Install a driver 580 or newer." in fault and "cu126" not in fault


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver(), error="Found no NVIDIA driver on your system.")
    fault = look("cuda:0").fault or ""
    assert "no driver of NVIDIA answers" in fault and "580 or newer" in fault and "--gpus all" in fault
    assert 'CUDA says: "Found no NVIDIA driver on your system."' in fault


def test_a_hidden_card(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver("580.95.05", (13, 0)), error="No CUDA GPUs are available")
    assert "CUDA_VISIBLE_DEVICES" in (look("cuda:0").fault or "")


def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver("580.95.05", (13, 0)), build="2.15.0+cpu", cuda=None, error="not compiled")
    assert (look("cuda").fault or "").startswith("torch 2.15.0+cpu is built without CUDA")


@pytest.mark.parametrize(
    ("name", "capability", "cure"),
    [
        ("Tesla V100-SXM2-16GB", (7, 0), "torch 2.15.0+cu126"),
        ("GeForce GTX 1080", (6, 1), "torch 2.15.0+cu126"),
        ("a Kepler", (3, 5), "a torch that has them"),
    ],
)
def test_no_kernels_for_the_card(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], cure: str
) -> None:
    faked(monkeypatch, driver=Driver("580.95.05", (13, 0)), count=1, name=name, capability=capability)
    fault = look("cuda:0").fault or ""
    assert name in fault and f"{capability[0]}.{capability[1]}" in fault and "sm_75" in fault and cure in fault


def test_a_card_that_is_well_has_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("580.95.05", (13, 0))
    faked(monkeypatch, driver=driver, count=2, name="NVIDIA L4", free=5 << 30)
    found = look("cuda:1")
    assert found.fault is None and found.message is None
    assert (found.name, found.capability, found.driver) == ("NVIDIA L4", (8, 9), driver)
    assert (found.memory_free, found.memory_total, found.count) == (5 << 30, 24 << 30, 2)


def test_a_card_that_is_not_there_and_one_that_fell_off_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, driver=Driver("580.95.05", (13, 0)), count=1)
    assert look("cuda:3").fault == "There is no cuda:3: torch sees 1 of them, from cuda:0 on."
    faked(monkeypatch, driver=Driver("580.95.05", (13, 0)), count=1, broken="CUDA error: unknown error\nCUDA kernel …")
    assert look("cuda:0").fault == "cuda:0 does not answer (CUDA error: unknown error)."


@pytest.mark.parametrize(
    ("capability", "kernels", "suits"),
    [
        ((8, 9), ("sm_86",), True),
        ((9, 0), ("sm_90a",), True),
        ((9, 1), ("sm_90a",), False),
        ((12, 1), ("sm_120",), True),
        ((10, 3), ("sm_100f",), True),
        ((8, 0), ("sm_86",), False),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((12, 0), ("sm_75", "compute_90"), True),
        ((9, 0), ("gfx90a",), False),
    ],
)
def test_which_kernels_run_where(capability: tuple[int, int], kernels: tuple[str, ...], suits: bool) -> None:
    assert runs_on(capability, kernels) is suits


def test_looking_at_this_machine_raises_nothing() -> None:
    pytest.importorskip("torch")
    found = look("cuda:0")
    assert isinstance(found, CardFacts) and (found.fault is None or found.fault.endswith((".", '"')))


def test_the_drivers_version_is_read_from_the_kernel(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "version"
    monkeypatch.setattr(card_facts, "_PROC", said)
    monkeypatch.setattr(card_facts, "_by_nvml", lambda: None)
    assert card_facts.find_driver().version is None
    said.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\nGCC\n"
    )
    assert card_facts.find_driver().version == "580.95.05"
    said.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n")
    assert card_facts.find_driver().version == "535.183.01"
