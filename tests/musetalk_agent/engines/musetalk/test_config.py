from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.engines.musetalk.config import (
    TaesdConfig,
    UnetConfig,
    VaeConfig,
    WhisperEncoderConfig,
    read_config,
    unet_config,
)
from musetalk_agent.errors import WeightsInvalid, WeightsMissing
from musetalk_agent.weights import Manifest, sha256_of
from tests.fakes import weights


def written(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "musetalkV15" / "musetalk.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_upstreams_file(tmp_path: Path) -> None:
    config = read_config(UnetConfig, written(tmp_path, weights.unet_config("full")))
    assert config.block_out_channels == (320, 640, 1280, 1280) and config.norm_eps == 1e-5
    assert "_class_name" not in config.arguments() and len(config.arguments()) == 17


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("musetalkV15/musetalk.json", weights.unet_config("full")),
        ("sd-vae/config.json", weights.vae_config("full")),
        ("taesd/config.json", weights.taesd_config("full")),
    ],
)
def test_the_fakes_fields_are_those_of_the_published_files(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    assert sha256_of(path) == Manifest.load().entries[name].sha256


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, weights.unet_config("full") | {"use_linear_projection": True, "_note": 1})
    with pytest.raises(
        WeightsInvalid, match=r"musetalkV15/musetalk\.json.*the field 'use_linear_projection' is unknown"
    ) as reported:
        read_config(UnetConfig, path)
    assert reported.value.field == "use_linear_projection" and "_note" not in str(reported.value)


def test_every_missing_field_is_named(tmp_path: Path) -> None:
    content = weights.unet_config("full")
    del content["norm_eps"], content["freq_shift"]
    with pytest.raises(WeightsInvalid, match="the field 'freq_shift' is missing; the field 'norm_eps' is missing"):
        read_config(UnetConfig, written(tmp_path, content))


@pytest.mark.parametrize(
    ("field", "value"), [("in_channels", 4), ("cross_attention_dim", 768), ("block_out_channels", 320)]
)
def test_a_value_of_another_model_is_reported(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(WeightsInvalid, match=f"the field '{field}' is {value}"):
        read_config(UnetConfig, written(tmp_path, weights.unet_config("full") | {field: value}))


@pytest.mark.parametrize("text", ["", "[1]", "{", '"a"'])
def test_what_is_not_an_object(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, {})
    path.write_text(text)
    with pytest.raises(WeightsInvalid, match=r"musetalk\.json"):
        read_config(UnetConfig, path)


def test_the_vaes_scale_has_upstreams_default(tmp_path: Path) -> None:
    content = weights.vae_config("full")
    assert "scaling_factor" not in content
    assert read_config(VaeConfig, written(tmp_path, content)).scaling_factor == 0.18215
    assert read_config(VaeConfig, written(tmp_path, content | {"scaling_factor": 0.5})).scaling_factor == 0.5
    assert "mid_block_add_attention" not in read_config(VaeConfig, written(tmp_path, content)).arguments()
    with pytest.raises(WeightsInvalid, match="use_quant_conv"):
        read_config(VaeConfig, written(tmp_path, content | {"use_quant_conv": False}))


def test_whispers_file_may_say_more(tmp_path: Path) -> None:
    config = read_config(
        WhisperEncoderConfig, written(tmp_path, weights.whisper_config("full") | {"suppress_tokens": [1]})
    )
    assert (config.encoder_attention_heads, config.encoder_ffn_dim) == (6, 1536)
    with pytest.raises(WeightsInvalid, match="'d_model' is 512"):
        read_config(WhisperEncoderConfig, written(tmp_path, weights.whisper_config("full") | {"d_model": 512}))


def test_taesds_file(tmp_path: Path) -> None:
    assert read_config(TaesdConfig, written(tmp_path, weights.taesd_config("full"))).latent_shift == 0.5


def test_the_configuration_in_force(tmp_path: Path) -> None:
    assert unet_config(tmp_path) is None
    written(tmp_path, weights.unet_config("full"))
    shown = unet_config(tmp_path)
    assert shown is not None and shown["block_out_channels"] == [320, 640, 1280, 1280] and json.dumps(shown)
    with pytest.raises(WeightsMissing, match=r"whisper/config\.json is missing"):
        read_config(WhisperEncoderConfig, tmp_path / "whisper" / "config.json")
