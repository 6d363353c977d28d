"""Which engine `auto` means, and what is said where it is not MuseTalk."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engine_pool import EnginePool
from musetalk_agent.engines.musetalk import card_facts
from musetalk_agent.engines.musetalk.card_facts import CardFacts, Driver
from musetalk_agent.errors import EngineUnavailable, EngineUnknown, WeightsMissing
from musetalk_agent.weights import Manifest, ModelStore


def pool(models: Path, **settings: object) -> EnginePool:
    made = AgentSettings.model_validate({"agent_api_key": "k", "models_dir": models, **settings})
    return EnginePool(made, ModelStore(models, Manifest.load()))


def test_auto_without_weights_is_warp_and_says_why(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    engines = pool(tmp_path)
    assert engines.default == "warp" and engines.resolve("auto") == "warp"
    note = engines.note(None)
    assert note is not None and "musetalkV15/unet.pth" in note and "fetch-models musetalk" in note
    assert engines.note("warp") is None


def test_musetalk_without_weights_is_an_error_at_start(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(WeightsMissing, match=r"musetalkV15/unet\.pth"):
        pool(tmp_path, engine="musetalk")
    with pytest.raises(WeightsMissing, match="fetch-models musetalk"):
        pool(tmp_path).resolve("musetalk")


def test_without_the_extra_its_name_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert pool(tmp_path).default == "warp"
    with pytest.raises(EngineUnavailable, match=r"torch is not installed: install the extra \[musetalk\]"):
        pool(tmp_path, engine="musetalk")


def test_an_agent_started_with_warp_does_not_load_musetalk(tmp_path: Path) -> None:
    engines = pool(tmp_path, engine="warp")
    assert engines.note(None) is None
    with pytest.raises((EngineUnavailable, WeightsMissing)):
        engines.resolve("musetalk")
    with pytest.raises(EngineUnknown, match="'wrap'; this agent knows auto, warp, pattern, musetalk"):
        engines.resolve("wrap")


def test_weights_without_a_card_are_not_enough_for_auto(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    weights = pytest.importorskip("tests.fakes.weights")
    weights.write_models(tmp_path, scale="tiny")
    engines = pool(tmp_path)
    assert engines.default == "warp" and "no CUDA device" in (engines.note("auto") or "")
    assert pool(tmp_path, musetalk_device="cpu").default == "musetalk"


def test_the_reason_of_auto_names_the_driver_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = pytest.importorskip("tests.fakes.weights")
    weights.write_models(tmp_path, scale="tiny")
    old = CardFacts("cuda:0", "2.15.0+cu132", "13.2", Driver("550.54", (12, 4)), "The NVIDIA driver is too old.", 0)
    monkeypatch.setattr(card_facts, "look", lambda device: replace(old, device=device))
    engines = pool(tmp_path)
    note = engines.note(None) or ""
    assert engines.default == "warp"
    assert "550.54" in note and "13.2" in note and "+cu126" in note and "The NVIDIA driver is too old." in note
    with pytest.raises(EngineUnavailable, match="580 or newer"):
        pool(tmp_path, engine="musetalk")
