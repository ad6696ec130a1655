import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints.native import CheckpointRecord, read_checkpoint, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from export import __main__ as program
from export import reproduce
from export.graphs.to_onnx import ExportedGraph
from export.packaging import find_licence
from export.precisions import GRAPHS
from export.verification.inputs import Batch, verification_batches
from export.verification.samples import Samples, made_photos
from tests.bundle_factory import open_as
from tests.export.conftest import CLASSES, MAX_BATCH, SIZE, copy_of, with_batch
from tests.export.verification.test_divergence import transpose_weight

UseGraph = Callable[[ExportedGraph], None]


def export(checkpoint: Path, out: Path, *more: str, batch: tuple[str, int] = ("--max-batch", MAX_BATCH)) -> int:
    """Runs the program and returns its exit status."""
    with pytest.raises(SystemExit) as exit_info:
        run_program(lambda: program.main([str(checkpoint), "--out", str(out), batch[0], str(batch[1]), *more]))
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.fixture
def licence(tmp_path: Path) -> Path:
    path = tmp_path / "terms.txt"
    path.write_text("\nFor research only\n\nAll of the terms.\n", encoding="utf-8")
    return path


@pytest.fixture
def bundle(checkpoint: Path, graph: ExportedGraph, export_gives: UseGraph, tmp_path: Path, licence: Path) -> Path:
    export_gives(graph)
    assert export(checkpoint, tmp_path / "bundles" / "mine", "--licence", str(licence)) == 0
    return tmp_path / "bundles" / "mine"


def test_a_verified_bundle_appears_with_its_report_in_the_manifest(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == [
        "LICENSE-WEIGHTS",
        "conformance.zip",
        "manifest.json",
        "model.onnx",
    ]
    assert [path.name for path in bundle.parent.iterdir()] == ["mine"]
    manifest = load_bundle(bundle).manifest
    numerics = manifest.files["model.onnx"].numerics
    assert numerics is not None and numerics.passed
    assert list(numerics.outputs) == ["logits", "pooled", "e1", "e2", "e3", "e4"]
    assert all(row.passed and row.cosine >= 0.99999 and row.max_abs < 1e-4 for row in numerics.outputs.values())
    assert {"made pictures batch 1", "random batch 4", "constants batch 4", "random batch 3 singly"} <= set(
        numerics.inputs
    )
    assert manifest.files["model.onnx"].sha256 == sha256_of(bundle / "model.onnx")
    printed = capsys.readouterr().out
    assert "passed" in printed and "Verified and written" in printed


def test_the_manifest_says_what_the_model_is_and_where_it_came_from(bundle: Path, checkpoint: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.name, manifest.variant, manifest.classes) == ("mine", "custom", CLASSES)
    assert (manifest.input.shape, manifest.input.max_batch) == ((3, *SIZE), MAX_BATCH)
    assert isinstance(manifest.preprocessing, Preprocessing)
    assert (manifest.preprocessing.crop, manifest.preprocessing.resize) == ((64, 96), (73, 109))
    assert {name: spec.stride for name, spec in manifest.outputs.items()} == {
        "logits": None, "pooled": None, "e1": 4, "e2": 8, "e3": 16, "e4": 32,
    }  # fmt: skip
    assert manifest.tools["torch"] == torch.__version__
    assert (manifest.licence.name, manifest.licence.file) == ("For research only", "LICENSE-WEIGHTS")
    assert manifest.provenance["data"] == "none"
    assert manifest.provenance["checkpoint"] == f"{checkpoint.name}/best"
    assert str(checkpoint) not in (bundle / "manifest.json").read_text(encoding="utf-8")


def test_the_predictor_gives_the_models_numbers_for_a_photo(bundle: Path, classifier: ConvMAEClassifier) -> None:
    predictor = open_as(Classifier, bundle, device="cpu")
    pixels = np.stack([predictor.preprocess(photo) for photo in made_photos(MAX_BATCH + 1)])
    found = predictor.run(pixels, ("logits", "e4"))
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(pixels)).numpy()
        e4 = classifier.encoder(torch.from_numpy(pixels))[3].numpy()
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(found["e4"], e4, atol=1e-4)


@pytest.mark.slow
def test_a_manifest_that_would_be_invalid_is_a_sentence_before_anything_is_exported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(GRAPHS, "fp32", lambda request: pytest.fail("it exports"))
    record, state = read_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "checkpoint", state, record.model_copy(update={"category_ids": (1,)}))
    assert export(tmp_path / "checkpoint", tmp_path / "mine") == 2
    error = capsys.readouterr().err
    assert "manifest would not be valid: category_ids must be one for each of" in error and error.count("\n") == 1
    assert not (tmp_path / "mine").exists()


@pytest.fixture
def broken(graph: ExportedGraph) -> ExportedGraph:
    """The graph with one wrong weight."""
    copy = copy_of(graph)
    transpose_weight(copy.model)
    return copy


def test_a_broken_graph_fails_names_output_and_layer_and_leaves_only_the_reproducer(
    checkpoint: Path, broken: ExportedGraph, export_gives: UseGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_gives(broken)
    status = export(checkpoint, tmp_path / "mine")
    assert status != 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.failed"]
    message = capsys.readouterr().err
    assert "worst output e2" in message
    assert "first diverging layer: encoder.blocks2.0.conv1 (ONNX value linear_6)" in message

    failed = tmp_path / "mine.failed"
    content = json.loads((failed / "report.json").read_text(encoding="utf-8"))
    assert not content["report"]["passed"] and content["report"]["outputs"]["e1"]["passed"]
    assert [layer["module"] for layer in content["layers"] if layer["problem"]] == ["encoder.blocks2.0.conv1"]
    assert (failed / "command.txt").read_text().startswith("python -m export ")
    onnx.checker.check_model(onnx.load(failed / "model.onnx"))
    with np.load(failed / "inputs.npz") as arrays:
        assert arrays["image"].shape == (1, 3, *SIZE)
        assert np.abs(arrays["expected_e2"] - arrays["found_e2"]).max() > 1e-3


def test_what_reproduces_a_failure_of_a_static_batch_is_such_a_batch(
    checkpoint: Path, broken: ExportedGraph, export_gives: UseGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_batch(broken.model, 2)
    export_gives(broken)
    assert export(checkpoint, tmp_path / "mine", batch=("--static-batch", 2)) != 0
    assert "first diverging layer: encoder.blocks2.0.conv1 (ONNX value linear_6)" in capsys.readouterr().err
    with np.load(tmp_path / "mine.failed" / "inputs.npz") as arrays:
        assert arrays["image"].shape == (2, 3, *SIZE)
    assert reproduce.main(tmp_path / "mine.failed") == 1
    printed = capsys.readouterr().out
    assert "The failure shows." in printed and "within the gate (as recorded)" in printed


def test_a_graph_that_does_not_run_fails_with_a_reproducer_too(
    checkpoint: Path,
    graph: ExportedGraph,
    export_gives: UseGraph,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = copy_of(graph)
    next(node for node in broken.model.graph.node if node.op_type == "MaxPool").op_type = "NoSuchOperator"
    export_gives(broken)
    assert export(checkpoint, tmp_path / "mine") != 0
    assert "the graph does not run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.failed"]


def test_photos_of_a_folder_take_part_in_the_verification(
    checkpoint: Path, graph: ExportedGraph, export_gives: UseGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gives(graph)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (120, 80), (9, 8, 7)).save(tmp_path / "photos" / "a.png")
    seen: list[int] = []

    def spy(task: type[Predictor], spec: Preprocessing, photos: Samples, limits: InputSpec) -> list[Batch]:
        seen.append(np.asarray(photos.images[0])[0, 0, 0])
        return verification_batches(task, spec, photos, limits)

    monkeypatch.setattr(program, "verification_batches", spy)
    assert export(checkpoint, tmp_path / "mine", "--data", str(tmp_path / "photos")) == 0
    assert set(seen) == {9}


@pytest.mark.slow
def test_another_image_size_for_single_images_is_exported_and_verified(checkpoint: Path, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "wide", "--image-size", "32", "128", "--max-batch", "1") == 0
    manifest = load_bundle(tmp_path / "wide").manifest
    assert manifest.input.shape == (3, 32, 128) and manifest.input.max_batch == 1
    assert manifest.preprocessing.input_size == (32, 128)
    assert manifest.outputs["e4"].shape == (32, 1, 4)
    numerics = manifest.files["model.onnx"].numerics
    assert numerics is not None and numerics.passed


def test_without_memory_to_verify_the_default_batch_the_bundle_takes_a_smaller_one(
    checkpoint: Path,
    graph: ExportedGraph,
    export_gives: UseGraph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_gives(graph)
    monkeypatch.setattr(program, "MEMORY_BUDGET", 1)
    with pytest.raises(SystemExit) as exit_info:
        run_program(lambda: program.main([str(checkpoint), "--out", str(tmp_path / "mine")]))
    assert exit_info.value.code == 0
    assert "The largest batch is 2: to verify one of 32" in capsys.readouterr().out
    manifest = load_bundle(tmp_path / "mine").manifest
    numerics = manifest.files["model.onnx"].numerics
    assert manifest.input.max_batch == 2
    assert numerics is not None and not any("batch 4" in name for name in numerics.inputs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--image-size", "100", "64"), "multiples of 32, at most 4096; got 100 x 64"),
        (("--name", "a/b"), "a bundle's name must be"),
        (("--opset", "17"), "--opset must be from 18 to 22; got 17"),
        (("--opset", "20", "--precision", "bf16"), "bf16 needs --opset 22"),
        (("--without-fp32",), "--without-fp32 goes with --precision fp16, bf16 or both; got fp32"),
        (("--max-batch", "0"), "--max-batch must be between 1 and 4096; got 0"),
        (("--licence", "missing.txt"), "--licence must be a text file"),
        (("--data", "missing"), "must be a folder of photos"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert export(checkpoint, tmp_path / "mine", *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_left_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(checkpoint, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_output_below_a_file_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert export(checkpoint, tmp_path / "file" / "mine") == 2
    assert "not a folder that can be written to" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, tmp_path / "mine") == 2
    assert "must be a run folder or a checkpoint" in capsys.readouterr().err


def test_a_classifier_without_a_head_is_refused_and_told_of_its_features(
    classifier: ConvMAEClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ConvMAEConfig(
        embed_dims=(16, 24, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE
    )
    record = CheckpointRecord(kind="classification", variant="custom", model=config)
    state = {name: value for name, value in classifier.state_dict().items() if not name.startswith("head")}
    save_checkpoint(tmp_path / "headless", state, record)
    assert export(tmp_path / "headless", tmp_path / "mine") == 2
    assert "has no classes" in (error := capsys.readouterr().err) and "--task features" in error


def test_a_licence_that_the_checkpoint_lacks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    record = CheckpointRecord.model_validate_json((checkpoint / "best" / "config.json").read_bytes())
    named = record.model_copy(update={"licence": record.licence.model_copy(update={"file": "TERMS"})})
    with pytest.raises(ConvMAEError, match="names the licence TERMS"):
        find_licence(named, checkpoint, None)
