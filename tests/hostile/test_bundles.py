"""Bundles that somebody else made: each ends with one sentence, in little time and memory, whatever runs its graph."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.backends.runtimes import RuntimeName, RuntimeOptions
from convmae_deploy.tasks import open_predictor
from tests.bundle_factory import make_bundle, make_graph, write_manifest
from tests.hostile.bounds import MEGABYTE, Ending, bounded

pytestmark = pytest.mark.slow  # together

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Change = Callable[[onnx.ModelProto], None]


def run(folder: str, runtime: RuntimeName) -> list[str]:
    """Opens a model and runs it on one picture, as the server does before it listens."""
    predictor = open_predictor(Path(folder), device="cpu", threads=1, options=RuntimeOptions(runtime=runtime))
    shape = (1, *predictor.manifest.input.shape)
    return list(predictor.run(np.zeros(shape, np.float32), list(predictor.manifest.outputs)))


def ending_of(folder: Path, runtime: RuntimeName = "onnxruntime") -> Ending:
    """How opening and running a bundle ends that must be refused."""
    ending = bounded(run, str(folder), runtime, memory=1500 * MEGABYTE, processor_seconds=30)
    assert ending.how == "refused", ending
    assert "\n" not in ending.sentence and ending.grown < 300 * MEGABYTE
    assert not ending.started and not ending.connected and not ending.opened_outside(folder)
    return ending


def changed(folder: Path, change: Change) -> Path:
    """A bundle whose graph was changed, with a manifest that fits."""
    make_bundle(folder)
    model = make_graph(3, (64, 64))
    change(model)
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    write_manifest(folder, manifest)
    return folder


def weight(model: onnx.ModelProto, values: Any) -> str:
    name = f"hostile{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def put(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Nodes in front of the graph, the last of which gives `hostile`; what it holds is added to the logits."""
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    for node in model.graph.node:
        node.output[:] = ["harmless" if name == "logits" else name for name in node.output]
    zero = weight(model, np.float32(0))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["hostile"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", zero], ["none"]),
            helper.make_node("Add", ["harmless", "none"], ["logits"]),
        ]
    )


def endless_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["went_on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("i", INT64), ("goes_on", BOOL), ("v", FLOAT))
        ],
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("went_on", BOOL), ("w", FLOAT))],
    )
    put(
        model, helper.make_node("Loop", ["", weight(model, True), weight(model, np.float32(0))], ["hostile"], body=body)
    )


def nested_branches(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["o"])], "g", [], [helper.make_empty_tensor_value_info("o")]
    )
    condition = weight(model, True)
    for _ in range(20):
        node = helper.make_node("If", [condition], ["o"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("o")])
        if inner.ByteSize() > MEGABYTE:
            break
    put(model, helper.make_node("If", [condition], ["hostile"], then_branch=inner, else_branch=inner))


def functions_of_functions(model: onnx.ModelProto) -> None:
    """Each calls the one before it twice: 2^30 nodes once they are put in."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model.opset_import.append(opsets[1])
    model.functions.append(
        helper.make_function("own", "f0", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    )
    for index in range(1, 31):
        calls = [
            helper.make_node(f"f{index - 1}", ["x"], ["z"], domain="own"),
            helper.make_node(f"f{index - 1}", ["z"], ["y"], domain="own"),
        ]
        model.functions.append(helper.make_function("own", f"f{index}", ["x"], ["y"], calls, opsets))
    put(model, helper.make_node("f30", ["image"], ["hostile"], domain="own"))


def eighty_gigabytes(model: onnx.ModelProto) -> None:
    put(model, helper.make_node("ConstantOfShape", [weight(model, [200, 10**8])], ["hostile"]))


def five_gigabytes(model: onnx.ModelProto) -> None:
    put(model, helper.make_node("Expand", [weight(model, np.float32(1)), weight(model, [125, 10**7])], ["hostile"]))


def giant_resize(model: onnx.ModelProto) -> None:
    sizes = weight(model, np.array([1, 1, 2000, 2000], np.float32))
    put(model, helper.make_node("Resize", ["image", "", sizes], ["hostile"]))


def doubled_again_and_again(model: onnx.ModelProto) -> None:
    names = ["image", *(f"twice{place}" for place in range(30)), "hostile"]
    pairs = zip(names, names[1:], strict=False)
    put(model, *[helper.make_node("Concat", [name, name], [after], axis=2) for name, after in pairs])


def as_large_as_a_picture_says(model: onnx.ModelProto) -> None:
    put(
        model,
        helper.make_node("ReduceMax", ["image"], ["brightest"]),
        helper.make_node("Cast", ["brightest"], ["size"], to=INT64),
        helper.make_node("ConstantOfShape", ["size"], ["hostile"]),
    )


def hours_of_products(model: onnx.ModelProto) -> None:
    """In little memory, from a small file."""
    column, row = weight(model, np.ones((4096, 1), np.float32)), weight(model, np.ones((1, 4096), np.float32))
    names = ["large", *(f"p{place}" for place in range(200)), "hostile"]
    put(
        model,
        helper.make_node("MatMul", [column, row], ["square"]),
        helper.make_node("ReduceMean", ["image", weight(model, [1, 2, 3])], ["mean"]),
        helper.make_node("Expand", ["mean", weight(model, [1, 1, 4096, 4096])], ["large"]),
        *[helper.make_node("MatMul", [name, "square"], [after]) for name, after in zip(names, names[1:], strict=False)],
    )


def division_that_stops_the_processor(model: onnx.ModelProto) -> None:
    divided = helper.make_node("Div", [weight(model, [-(2**63)]), weight(model, [-1])], ["quotient"])
    put(model, divided, helper.make_node("Cast", ["quotient"], ["hostile"], to=FLOAT))


def very_many_nodes(model: onnx.ModelProto) -> None:
    names = ["image", *(f"n{place}" for place in range(50_000)), "hostile"]
    for name, after in zip(names, names[1:], strict=False):
        model.graph.node.add(op_type="Relu", input=[name], output=[after])


def node_of_very_many_inputs(model: onnx.ModelProto) -> None:
    put(model, helper.make_node("Sum", ["image"] * 100_000, ["hostile"]))


def very_many_properties(model: onnx.ModelProto) -> None:
    model.MergeFromString(b"\x72\x00" * 300_000)  # empty ones, which take two bytes each


def sparse_claim(model: onnx.ModelProto) -> None:
    values, places = helper.make_tensor("hostile", FLOAT, [1], [1.0]), helper.make_tensor("i", INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2 * 10**10]))
    put(model)


def lying_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="hostile", data_type=FLOAT, dims=[10**12], raw_data=b"abcd")
    put(model)


def nan_weight(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            tensor.CopyFrom(numpy_helper.from_array(np.full((8, 3), np.nan, np.float32), "head"))


def weight_from_another_file(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="LICENSE-WEIGHTS")


def operator_of_another_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    put(model, helper.make_node("Gelu", ["image"], ["hostile"], domain="com.microsoft"))


HOSTILE: dict[str, tuple[Change, str]] = {
    change.__name__: (change, reason)
    for change, reason in (
        (endless_loop, "a graph inside it, as a loop or a branch has"),
        (nested_branches, "a graph inside it, as a loop or a branch has"),
        (functions_of_functions, "the model has a function"),
        (eighty_gigabytes, "takes 74.5 GiB"),
        (five_gigabytes, "takes 4.66 GiB"),
        (giant_resize, "for an image, at most 4 are allowed"),
        (doubled_again_and_again, "for an image, at most 4 are allowed"),
        (as_large_as_a_picture_says, "on which the size of its output depends, is computed"),
        (hours_of_products, "at most 1e+13 are allowed"),
        (division_that_stops_the_processor, "it divides whole numbers by what is not a constant above 0"),
        (very_many_nodes, "nodes or weights, at most"),
        (node_of_very_many_inputs, "inputs and outputs"),
        (very_many_properties, "it has more than 200000 fields"),
        (sparse_claim, "the graph has a sparse tensor"),
        (lying_weight, "has 4 bytes, its shape takes 4000000000000"),
        (nan_weight, "its weight 'head' holds NaN"),
        (weight_from_another_file, "in the file 'LICENSE-WEIGHTS', which the manifest does not list"),
        (operator_of_another_domain, "of the domain 'com.microsoft', not of ONNX's"),
    )
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_before_anything_of_it_runs(tmp_path: Path, name: str) -> None:
    change, reason = HOSTILE[name]
    ending = ending_of(changed(tmp_path / "bundle", change))
    assert reason in ending.sentence and ending.sentence.startswith(("convmae_deploy cannot load", str(tmp_path)))


@pytest.mark.parametrize("name", ["endless_loop", "eighty_gigabytes", "division_that_stops_the_processor"])
def test_it_is_refused_for_openvino_too(tmp_path: Path, name: str) -> None:
    pytest.importorskip("openvino")
    change, reason = HOSTILE[name]
    assert reason in ending_of(changed(tmp_path / "bundle", change), "openvino").sentence


def test_a_model_whose_answers_are_no_numbers_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are numbers; what comes of them is not."""
    from convmae_deploy.cli import main
    from tests.media.photo_files import photo

    def overflow(model: onnx.ModelProto) -> None:
        put(model, helper.make_node("Div", ["image", weight(model, np.float32(0))], ["hostile"]))

    bundle = changed(tmp_path / "bundle", overflow)
    photo(seed=1).save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(bundle), str(tmp_path / "photo.png"), "--device", "cpu"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error == "error: output 'logits' holds values that are not finite\n"


def test_a_graph_that_its_runtime_cannot_run_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from convmae_deploy.cli import main
    from tests.media.photo_files import photo

    def out_of_range(model: onnx.ModelProto) -> None:
        put(model, helper.make_node("Gather", ["image", weight(model, [10**9])], ["hostile"], axis=3))

    bundle = changed(tmp_path / "bundle", out_of_range)
    photo(seed=1).save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(bundle), str(tmp_path / "photo.png"), "--device", "cpu"])
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "could not run" in error and "on a batch of 1" in error


def pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def link_to_a_device(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/dev/zero")


def nested_without_end(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 10**6, encoding="utf-8")


def very_many_lists(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" + "[]," * 10**6 + "[]]", encoding="utf-8")


def number_of_a_million_digits(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema_version": ' + "9" * 10**6 + "}", encoding="utf-8")


def sparse_terabytes(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 10**13)


@pytest.mark.parametrize(
    "damage",
    [pipe, link_to_a_device, nested_without_end, very_many_lists, number_of_a_million_digits, sparse_terabytes],
    ids=lambda damage: damage.__name__,
)
def test_a_hostile_manifest_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = make_bundle(tmp_path / "bundle")
    damage(folder)
    ending = bounded(run, str(folder), "onnxruntime", memory=1500 * MEGABYTE)
    assert ending.how == "refused" and "manifest.json" in ending.sentence
    assert "\n" not in ending.sentence and len(ending.sentence) < 1000
