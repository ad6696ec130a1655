"""The reference evaluator's own operators give ONNX Runtime's numbers."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.runtimes.evaluator import reference_evaluator

MAPS = np.random.default_rng(0).standard_normal((2, 3, 7, 9)).astype(np.float32)
PLACES = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 4, 5, 2)).astype(np.float32)
MANY = np.arange(2 * 100 * 3, dtype=np.float32).reshape(2, 100, 3)


def model(operator: str, inputs: dict[str, NDArray[Any]], **attributes: Any) -> onnx.ModelProto:
    """A graph of one node; it gives `found`."""
    node = helper.make_node(operator, list(inputs), ["found"], **attributes)
    entries = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", entries, [found])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("GatherElements", {"data": MANY, "indices": np.array([[[99, 0], [-1, 64]]] * 2)}, {"axis": 1}),
        ("GatherElements", {"data": MANY, "indices": np.array([[[2, -3, 1]] * 70])}, {"axis": -1}),
        ("GridSample", {"X": MAPS, "grid": PLACES}, {}),
        ("GridSample", {"X": MAPS, "grid": PLACES}, {"align_corners": 1, "padding_mode": "border"}),
        ("GridSample", {"X": MAPS, "grid": PLACES}, {"mode": "cubic", "padding_mode": "reflection"}),
    ],
)
def test_an_operator_gives_what_onnx_runtime_gives(
    operator: str, inputs: dict[str, NDArray[Any]], attributes: dict[str, Any]
) -> None:
    graph = model(operator, inputs, **attributes)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["found"], inputs)
    (found,) = reference_evaluator(graph).run(["found"], inputs)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
