"""Networks of restoration that are known: as ONNX they take an aligned face and give it back with a tint, or something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from musetalk_agent.avatars.face_restorer import RESTORER


def write_restorer(
    models: Path, tint: tuple[float, float, float] = (0, 0, 0), *, side: int = 512, out: int = 3
) -> Path:
    """Writes the network into a models folder under the manifest's name; returns its path.

    Args:
        tint: levels that are added, RGB.
        side: of the face that it takes.
        out: channels that it answers.
    """
    added = np.array([level / 127.5 for level in tint], np.float32).reshape(1, 3, 1, 1)
    nodes = [helper.make_node("Add", ["input", "tint"], ["tinted"])]
    kept = "tinted"
    if out != 3:
        nodes.append(helper.make_node("Slice", ["tinted", "from", "to", "axis"], ["cut"]))
        kept = "cut"
    nodes.append(helper.make_node("Identity", [kept], ["output"]))
    constants = {"tint": added, "from": np.array([0]), "to": np.array([out]), "axis": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "restorer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, out, side, side])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    path = models / RESTORER
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
