"""Which forward is taken: the fastest that works, what was found before, and nothing that ended a process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.engines.musetalk.profiles import Options
from musetalk_agent.errors import EngineFailed
from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch

    from musetalk_agent.engines.musetalk import forwards
    from musetalk_agent.engines.musetalk.device import CudaCard
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.forwards import Findings, Forward, chosen
    from musetalk_agent.engines.musetalk.fused_network import FusedDecoder, FusedUNet
    from musetalk_agent.engines.musetalk.network import Network
    from tests.musetalk_agent.engines.musetalk.models import difference


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


class Card:
    """Seconds and faces of each forward, which may be an error instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: Any) -> None:
        self.seconds_of, self.timed = seconds, list[str]()
        self.faces_of: dict[str, Any] = {}
        self.network = Network(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity(), torch.float32)
        monkeypatch.setattr(forwards, "forward_of", lambda kind, network: Forward(kind, network))

    def choose(self, findings: Findings, asked: Any = "auto") -> str:
        return chosen(asked, self.network, self.seconds, self.faces, findings).kind

    def seconds(self, forward: Forward) -> float:
        self.timed.append(forward.kind)
        return self._or_raise(self.seconds_of[forward.kind])

    def faces(self, forward: Forward) -> Any:
        return self._or_raise(self.faces_of.get(forward.kind, np.zeros((2, 4, 4, 3), np.uint8)))

    @staticmethod
    def _or_raise(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value


@pytest.mark.parametrize(("off", "triton", "best"), [(0.002, 0.001, "triton"), (0.001, 0.002, "off")])
def test_the_faster_one_is_taken_and_what_was_found_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, off: float, triton: float, best: str
) -> None:
    findings = Findings(tmp_path / "kernels", "a card")
    assert Card(monkeypatch, off=off, triton=triton).choose(findings) == best
    assert findings.read() == {"off": 1000 * off, "triton": 1000 * triton}
    assert Findings(tmp_path / "kernels", "another card").read() == {}


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), ImportError("triton"), MemoryError()])
def test_one_that_does_not_work_here_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    findings = Findings(tmp_path, "a card")
    with caplog.at_level(logging.WARNING):
        assert Card(monkeypatch, off=0.002, triton=error).choose(findings) == "off"
    assert type(error).__name__ in str(findings.read()["triton"])
    assert "a forward does not work here" in caplog.messages
    # and it is tried again at the next start: a compiler may have been installed
    assert Card(monkeypatch, off=0.002, triton=0.001).choose(findings) == "triton"


@pytest.mark.parametrize("asked", ["triton", "compile"])
def test_one_that_was_asked_for_and_does_not_work_leaves_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    findings = Findings(tmp_path, "a card")
    broken = {asked: RuntimeError("Failed to find C compiler")}
    with caplog.at_level(logging.WARNING):
        assert Card(monkeypatch, off=0.002, **broken).choose(findings, asked) == "off"
    assert findings.read()[asked] == "RuntimeError: Failed to find C compiler"
    assert "the forward that was asked for does not work here" in caplog.messages
    with pytest.raises(EngineFailed):
        Card(monkeypatch, off=0.002, **{asked: EngineFailed("Xid 79")}).choose(findings, asked)


def test_one_whose_faces_are_others_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings, card = Findings(tmp_path, "a card"), Card(monkeypatch, off=0.002, triton=0.001)
    card.faces_of["triton"] = np.full((2, 4, 4, 3), 4, np.uint8)
    assert card.choose(findings) == "off"
    assert "4 steps" in str(findings.read()["triton"])
    card.faces_of["triton"] = np.full((2, 4, 4, 3), 3, np.uint8)
    assert card.choose(findings) == "triton"


def test_kernels_that_broke_the_card_are_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings = Findings(tmp_path, "a card")
    card = Card(monkeypatch, off=0.002, triton=EngineFailed("The card failed: an illegal memory access"))
    with pytest.raises(EngineFailed):
        card.choose(findings)
    again = Card(monkeypatch, off=0.002, triton=0.001)
    assert again.choose(findings) == "off"
    assert again.timed == ["off"]


def test_what_takes_minutes_is_tried_only_where_it_was_asked_for_and_won(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    findings = Findings(tmp_path, "a card")
    card = Card(monkeypatch, off=0.003, triton=0.002, compile=0.001)
    assert card.choose(findings) == "triton" and card.timed == ["off", "triton"]
    assert card.choose(findings, "compile") == "compile"
    assert card.choose(findings) == "compile"
    card.seconds_of["compile"] = 0.0025
    assert card.choose(findings, "compile") == "compile"  # as asked
    card.timed.clear()
    assert card.choose(findings) == "triton" and "compile" not in card.timed


def test_off_times_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = Card(monkeypatch)
    assert card.choose(Findings(None, "a card"), "off") == "off"
    assert not card.timed


def test_findings_that_are_damaged_or_cannot_be_kept_count_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "forwards.json").write_text("[")
    assert Findings(tmp_path, "a card").read() == {}
    (tmp_path / "forwards.json").write_text(json.dumps({"a card": 7}))
    assert Findings(tmp_path, "a card").read() == {}
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    Findings(in_the_way, "a card").note("off", 1.0)
    assert "how fast the network's forwards are is not kept" in caplog.messages
    Findings(None, "a card").note("off", 1.0)


def test_an_engine_takes_the_forward_that_is_asked_for_and_makes_the_same_faces(models: Path) -> None:
    engine = MuseTalkEngine(models, Options(buckets=(1,), fuse="triton"))
    plain = engine._some_faces(Forward("off", engine.network))
    engine.warmup()
    assert isinstance(engine.network.unet, FusedUNet) and isinstance(engine.network.decoder, FusedDecoder)
    assert engine.stats()["fused"] == "triton"
    fused = engine._some_faces(Forward("triton", engine.network))
    assert plain.std() > 5
    assert difference(fused, plain) <= 1
    network = engine.network
    engine.warmup()
    assert engine.network is network  # fused once
    engine.close()


def test_the_processor_is_left_plain(models: Path) -> None:
    engine = MuseTalkEngine(models, Options(buckets=(1,)))
    engine.warmup()
    assert engine.stats()["fused"] == "off"
    engine.close()


def test_compiling_leaves_the_plain_network_plain(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Network] = []
    monkeypatch.setattr(Network, "compile", lambda self, **_: compiled.append(self))
    engine = MuseTalkEngine(models, Options(buckets=(1,)))
    made = forwards.forward_of("compile", engine.network)
    assert made is not None and compiled == [made.network] and made.network is not engine.network
    assert made.network.unet is engine.network.unet
    engine.close()


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_searches_in_the_warm_runs_only(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    searching: list[bool] = []

    def call() -> tuple[torch.Tensor, ...]:
        searching.append(torch.backends.cudnn.benchmark)
        if len(searching) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return ()

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    card = object.__new__(CudaCard)
    card._graphs = False
    monkeypatch.setattr(CudaCard, "synchronize", lambda _: None)
    card.capture(call)()
    assert searching == [True, True, before]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        card.capture(call)
    assert torch.backends.cudnn.benchmark is before
