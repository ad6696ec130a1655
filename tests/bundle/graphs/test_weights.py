"""Weights are in the graph or in files that the manifest lists, and are numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.graphs import weights
from convmae_deploy.bundle.graphs.weights import holds_nan
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, write_manifest


def stored(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def bundle_with_weights_outside(folder: Path, *, listed: bool = True, fields: Mapping[str, str] | None = None) -> Path:
    """A bundle whose `head` is in a file of its own; `fields` are what the graph says otherwise of where it is."""
    make_bundle(folder)
    model = onnx.load(folder / "model.onnx")
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    (folder / "weights.bin").write_bytes(b"\x00" * 16 + head.raw_data)
    entries = {"location": "weights.bin", "offset": "16", "length": str(len(head.raw_data)), **(fields or {})}
    head.ClearField("raw_data")
    head.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        head.external_data.add(key=key, value=value)
    describe(folder, model, {"weights.bin": stored(folder / "weights.bin")} if listed else {})
    return folder


def describe(folder: Path, model: onnx.ModelProto, files: dict[str, Any]) -> None:
    """Writes a graph, and what the manifest says of it."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"].update(stored(folder / "model.onnx"), weights=files)
    write_manifest(folder, manifest)


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        checked_path(load_bundle(folder), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_in_a_listed_file_give_the_numbers_of_those_in_the_graph(tmp_path: Path) -> None:
    inside, outside = make_bundle(tmp_path / "inside"), bundle_with_weights_outside(tmp_path / "outside")
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    expected, found = (
        OnnxRuntimeBackend(load_bundle(folder), device="cpu", threads=1).run(image, ["logits"])["logits"]
        for folder in (inside, outside)
    )
    assert np.array_equal(found, expected)


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    message = refusal(bundle_with_weights_outside(tmp_path / "bundle", listed=False))
    assert "its weight 'head' is in the file 'weights.bin', which the manifest does not list for it" in message


def test_a_listed_file_is_hashed(tmp_path: Path) -> None:
    folder = bundle_with_weights_outside(tmp_path / "bundle")
    content = bytearray((folder / "weights.bin").read_bytes())
    content[20] ^= 1
    (folder / "weights.bin").write_bytes(content)
    assert "weights.bin must have the SHA-256" in refusal(folder)
    (folder / "weights.bin").unlink()
    assert "lacks weights.bin, which its manifest lists" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"location": "../weights.bin"}, "is in the file '../weights.bin', which the manifest does not list"),
        ({"location": "/etc/passwd"}, "is in the file '/etc/passwd', which the manifest does not list"),
        ({"offset": "17"}, "ends behind the end of 'weights.bin'"),
        ({"offset": "-1"}, "says unclearly where its values are"),
        ({"offset": "9" * 30}, "says unclearly where its values are"),
        ({"length": "90"}, "has 90 bytes, its shape takes 96"),
    ],
)
def test_a_place_outside_that_is_none_is_refused(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    assert reason in refusal(bundle_with_weights_outside(tmp_path / "bundle", fields=fields))


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/passwd", "a/b"])
def test_names_of_weights_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = bundle_with_weights_outside(tmp_path / "bundle", fields={"location": name})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"]["weights"] = {name: stored(folder / "weights.bin")}
    write_manifest(folder, manifest)
    assert "only plain file names are allowed" in refusal(folder)


def test_nan_in_a_weight_is_said_with_its_name(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "weight2":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 1] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, "weight2"))
    describe(tmp_path, model, {})
    assert "its weight 'weight2' holds NaN, which is no number" in refusal(tmp_path)


def test_nan_in_a_file_of_weights_is_said_too(tmp_path: Path) -> None:
    folder = bundle_with_weights_outside(tmp_path)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[20:24] = np.float32(np.nan).tobytes()
    (folder / "weights.bin").write_bytes(content)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    describe(folder, model, {"weights.bin": stored(folder / "weights.bin")})
    assert "its weight 'head' holds NaN" in refusal(folder)


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_nan_is_found_in_every_type_and_infinity_is_a_number(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CHUNK", 3)
    number = getattr(TensorProto, kind)
    values = np.array([0, -1, np.inf, -np.inf, 1, 2, 3, 4], helper.tensor_dtype_to_np_dtype(number))
    assert not holds_nan(number, memoryview(values.tobytes()))
    for place in (0, 4, 7):
        spoiled = values.copy()
        spoiled[place] = -np.nan if place else np.nan
        assert holds_nan(number, memoryview(spoiled.tobytes()))
    assert not holds_nan(TensorProto.INT64, memoryview(b"\xff" * 8))
