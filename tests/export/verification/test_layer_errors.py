"""Two graphs of one model, module by module: the damaged one is named, whatever precision the graph is in."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.to_onnx import MODULE_KEY
from export.verification.gates import EXACT_DB
from export.verification.layer_errors import LayerErrors, ModuleError, fed_with, layer_errors, module_ends, snr_db
from tests.export.verification.test_divergence import store

IMAGES = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
MODULES = ("first", "second", "third")


def three_layers(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Three 1x1 convolutions with a skip connection at the end, computed in some type, float32 outside."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((4, channels, 1, 1)).astype(np.float32), f"weight_{module}")
        for module, channels in zip(MODULES, (3, 4, 4), strict=True)
    ]
    nodes = [helper.make_node("Cast", ["image"], ["cast"], to=kind)]
    previous = "cast"
    for module in MODULES:
        nodes.append(helper.make_node("Cast", [f"weight_{module}"], [f"typed_{module}"], to=kind))
        nodes.append(helper.make_node("Conv", [previous, f"typed_{module}"], [f"value_{module}"]))
        nodes[-1].metadata_props.add(key=MODULE_KEY, value=module)
        previous = f"value_{module}"
    nodes.append(helper.make_node("Add", ["value_first", "value_third"], ["sum"]))
    nodes[-1].metadata_props.add(key=MODULE_KEY, value="whole")
    nodes.append(helper.make_node("Cast", ["sum"], ["output"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        initializer=weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def damage(model: onnx.ModelProto, module: str) -> None:
    (weight,) = (entry for entry in model.graph.initializer if entry.name == f"weight_{module}")
    values = numpy_helper.to_array(weight).copy()
    values[1, 2] += 3
    store(weight, values)


def test_modules_end_with_their_last_float_value() -> None:
    assert module_ends(three_layers()) == {
        "first": "value_first",
        "second": "value_second",
        "third": "value_third",
        "whole": "sum",
    }


def test_what_a_selection_of_rows_decides_on_is_left_out() -> None:
    model = three_layers()
    constant = numpy_helper.from_array(np.array([2]), "two")
    model.graph.initializer.append(constant)
    model.graph.node.insert(3, helper.make_node("TopK", ["value_first", "two"], ["best", "places"], axis=1))
    next(node for node in model.graph.node if node.output[0] == "value_second").input[0] = "best"
    assert list(module_ends(model)) == ["first"]


def test_equal_graphs_have_no_error_anywhere() -> None:
    errors = layer_errors(three_layers(), three_layers(), IMAGES, precision="fp32", runtime="onnxruntime")
    assert [module.module for module in errors.modules] == [*MODULES, "whole"]
    assert all(module.own_db == module.built_up_db == EXACT_DB for module in errors.modules)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["float32", "float16"])
def test_a_damaged_module_stands_out_by_its_own_error_and_the_ones_behind_it_inherit_it(kind: int) -> None:
    broken = three_layers(kind)
    damage(broken, "second")
    errors = layer_errors(three_layers(), broken, IMAGES, precision="fp16", runtime="onnxruntime")
    by_name = {module.module: module for module in errors.modules}
    assert errors.first is not None and errors.first.module == "second"
    assert errors.explanation.startswith("second, whose own signal-to-noise ratio is ")
    assert by_name["second"].own_db < 20 and by_name["third"].built_up_db < 20
    assert min(by_name[module].own_db for module in ("first", "third", "whole")) > 50
    assert by_name["first"].built_up_db > 50


def test_half_precision_loses_what_ten_bits_lose() -> None:
    errors = layer_errors(  # ONNX Runtime would compute it in float32
        three_layers(), three_layers(TensorProto.FLOAT16), IMAGES[:1], precision="fp16", runtime="onnx-reference"
    )
    assert all(55 < module.own_db < 90 for module in errors.modules if module.module != "whole")
    assert "though none stands out" in errors.explanation


def test_bf16_graphs_are_followed_in_the_reference_evaluator() -> None:
    errors = layer_errors(
        three_layers(), three_layers(TensorProto.BFLOAT16), IMAGES[:1], precision="bf16", runtime="onnx-reference"
    )
    assert all(30 < module.own_db < 65 for module in errors.modules)


def test_fed_values_are_cast_to_the_type_that_the_graph_reads() -> None:
    fed = fed_with(three_layers(TensorProto.FLOAT16), {"value_first": np.zeros((2, 4, 8, 8), np.float32)})
    assert {entry.name for entry in fed.graph.input} == {"image", "float32/reference/value_first"}
    onnx.checker.check_model(fed, full_check=True)


def test_what_is_not_finite_is_the_worst_there_is() -> None:
    assert snr_db(np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32)) == -EXACT_DB


def test_the_first_beyond_the_gate_is_blamed_though_a_later_one_is_worse() -> None:
    modules = tuple(
        ModuleError(module=name, built_up_db=50.0, own_db=own) for name, own in (("a", 70.0), ("b", 30.0), ("c", 9.0))
    )
    errors = LayerErrors(precision="fp16", modules=modules)
    assert errors.first == modules[1]
    assert LayerErrors(precision="fp16", modules=()).explanation.startswith("unknown")
