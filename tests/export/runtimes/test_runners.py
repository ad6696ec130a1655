import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.backends import openvino_backend
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from export.runtimes.combinations import GRAPH_RUNTIMES
from export.runtimes.runners import describe, file_runner, runtimes_for
from tests.conftest import GiveOpenVino

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 2, 2), dtype=np.float32)
TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
LARGE = 256.0  # what is added to it loses its last digits in half precision


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """x + LARGE in each half precision: what it gives tells the type that it was computed in."""
    paths = {}
    for name, (onnx_type, numpy_type) in TYPES.items():
        nodes = [
            helper.make_node("Cast", ["image"], ["half"], to=onnx_type),
            helper.make_node("Add", ["half", "large"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
        ]
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 2, 2])],
            [numpy_helper.from_array(np.array([LARGE], dtype=numpy_type), "large")],
        )
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), paths[name])
    return paths


def rounded(precision: str) -> NDArray[np.float32]:
    half = TYPES[precision][1]
    return np.asarray((IMAGES.astype(half) + np.array(LARGE, dtype=half)).astype(np.float32))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_reference_computes_in_the_types_of_the_graph(files: dict[str, Path], precision: Precision) -> None:
    found = file_runner("onnx-reference", files[precision], ["logits"])(IMAGES)["logits"]
    assert np.abs(rounded(precision) - (IMAGES + LARGE)).max() > 0.05
    np.testing.assert_array_equal(found, rounded(precision))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_openvino_computes_in_the_types_of_the_graph_or_in_fp32(files: dict[str, Path], precision: Precision) -> None:
    """Which of the two hangs on the CPU."""
    found = file_runner("openvino", files[precision], ["logits"])(IMAGES)["logits"]
    assert np.array_equal(found, rounded(precision)) or np.array_equal(found, IMAGES + np.float32(LARGE))


def test_onnx_runtime_takes_float16_and_may_compute_it_in_float32(files: dict[str, Path]) -> None:
    found = file_runner("onnxruntime", files["fp16"], ["logits"])(IMAGES)["logits"]
    np.testing.assert_allclose(found, IMAGES + LARGE, atol=0.13)


def test_onnx_runtime_has_no_bf16_on_the_cpu(files: dict[str, Path]) -> None:
    with pytest.raises(Exception, match="NOT_IMPLEMENTED|bfloat16"):
        file_runner("onnxruntime", files["bf16"], ["logits"])(IMAGES)
    assert GRAPH_RUNTIMES["onnxruntime"].problem("cpu", "bf16") == "ONNX Runtime's CPU provider has no bf16"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_runtime_comes_first_for_what_it_computes_as_written(precision: Precision) -> None:
    assert runtimes_for(precision)[0] == "onnxruntime"


def test_half_precision_goes_to_openvino_where_the_cpu_has_it(give_openvino: GiveOpenVino) -> None:
    give_openvino("FP32", "FP16", "BF16")
    assert runtimes_for("fp16") == ("openvino", "onnxruntime")
    assert runtimes_for("bf16") == ("openvino", "onnx-reference")


def test_half_precision_goes_elsewhere_where_the_cpu_has_none(give_openvino: GiveOpenVino) -> None:
    give_openvino("FP32")
    assert runtimes_for("fp16") == ("onnxruntime",)
    assert runtimes_for("bf16") == ("onnx-reference",)
    assert GRAPH_RUNTIMES["openvino"].problem("cpu", "fp16") == "OpenVINO computes fp16 in fp32 on this CPU"


def test_without_openvino_bf16_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert (runtimes_for("fp16"), runtimes_for("bf16")) == (("onnxruntime",), ("onnx-reference",))
    assert "pip install '.[openvino]'" in str(GRAPH_RUNTIMES["openvino"].problem("cpu", "fp32"))


def test_a_missing_openvino_is_one_sentence(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_backend, "openvino_core", lambda: pytest.fail("no core without the package"))
    runner = file_runner("openvino", files["fp16"], ["logits"])
    with pytest.raises(ConvMAEError, match="needs OpenVINO"):
        runner(IMAGES)


def test_the_reference_runs_image_by_image(files: dict[str, Path]) -> None:
    runner = file_runner("onnx-reference", files["bf16"], ["logits"])
    np.testing.assert_array_equal(runner(IMAGES[:1])["logits"], runner(IMAGES)["logits"][:1])


def test_reports_name_a_runner_with_its_version() -> None:
    assert describe("onnxruntime", "fp32").startswith("onnxruntime 1.")
    assert describe("onnx-reference", "bf16").startswith("onnx 1.")
