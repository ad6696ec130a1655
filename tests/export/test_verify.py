"""A finished bundle held against its checkpoint: a damaged weight, swapped channels, a wrong mean are each found."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from convmae_deploy import cli
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle
from export import __main__ as exporting
from export import precisions, reproduce
from export import verify as program
from export.graphs.to_onnx import ExportedGraph
from export.tasks import open_task
from tests.bundle_factory import make_segmentation_bundle, write_manifest
from tests.export.conftest import CLASSES, MAX_BATCH, with_batch
from tests.export.verification.test_divergence import perturb_one_number, store, transpose_weight, weight_of
from tests.photo_folders import make_photo_folder

Damage = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def good(checkpoint: Path, graph: ExportedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "export_graph", lambda *_, **__: graph)
        config = exporting.ExportConfig(checkpoint=checkpoint, out=out, max_batch=MAX_BATCH)
        exporting.export_bundle(config, Console(quiet=True), ["test"])
    return out


@pytest.fixture
def bundle(good: Path, graph: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that a test may damage; its checkpoint need not be traced again."""
    monkeypatch.setattr(program, "export_graph", lambda *_, **__: graph)
    return Path(shutil.copytree(good, tmp_path / "mine"))


def verify(bundle: Path, checkpoint: Path | None, *more: str, runtimes: tuple[str, ...] = ("onnxruntime",)) -> int:
    """Runs the program, in one runtime unless told otherwise, and returns its exit status."""
    arguments = [str(bundle), *(("--runtime", *runtimes) if runtimes else ())]
    if checkpoint is not None:
        arguments += ["--checkpoint", str(checkpoint)]
    arguments += more  # the last of two wins
    with pytest.raises(SystemExit) as exit_info:
        run_program(lambda: program.main(arguments))
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def add_rounded(bundle: Path, precision: str, damage: Damage = lambda model: None) -> str:
    """Adds a file whose weights are rounded to float16, or to eight bits; it computes in float32."""
    model = onnx.load(bundle / "model.onnx")
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim:
            step = np.abs(values).max() / 127 or 1
            rounded = np.round(values / step) * step if precision == "int8" else values.astype(np.float16)
            store(weight, rounded.astype(np.float32))
    damage(model)
    name, content = f"model.{precision}.onnx", model.SerializeToString()
    (bundle / name).write_bytes(content)

    def add(manifest: dict[str, Any]) -> None:
        about = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "precision": precision}
        manifest["files"][name] = manifest["files"]["model.onnx"] | about | {"numerics": None}

    edit_manifest(bundle, add)
    return name


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    edit(content)
    write_manifest(bundle, content)


def damage_graph(bundle: Path, damage: Damage) -> None:
    """Changes the graph, and writes a hash that fits: only the numbers can tell."""
    model = onnx.load(bundle / "model.onnx")
    damage(model)
    content = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(content)
    fits = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"]["model.onnx"].update(fits))


def swap_red_and_blue(model: onnx.ModelProto) -> None:
    weight = weight_of(model, "encoder.patch_embed1", "MatMul")  # (4 * 4 * 3, C), channels last
    values = numpy_helper.to_array(weight)
    store(weight, values.reshape(16, 3, -1)[:, ::-1].reshape(values.shape))


def stop_on_every_batch(model: onnx.ModelProto) -> None:
    """The last layer takes a class that is not there, which only a run can find out."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "all_logits"
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    model.graph.initializer.append(numpy_helper.from_array(np.full(classes, 10_000), "beyond"))
    model.graph.node.append(helper.make_node("Gather", ["all_logits", "beyond"], ["logits"], axis=1))


def test_a_good_bundle_passes_with_the_table_and_leaves_nothing(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(bundle, checkpoint) == 0
    printed = capsys.readouterr().out
    for output in ("logits", "pooled", "e1", "e2", "e3", "e4"):
        assert output in printed
    assert "random batch 4" in printed and "made pictures batch 4" in printed and "Verified:" in printed
    assert "failed" not in printed and "Note" not in printed
    assert [path.name for path in bundle.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("damage", "module"),
    [
        (perturb_one_number, "encoder.blocks1.0.mlp.fc2"),
        (transpose_weight, "encoder.blocks2.0.conv1"),
        (swap_red_and_blue, "encoder.patch_embed1"),
    ],
    ids=["weight", "transposed", "channels"],
)
def test_a_damaged_graph_fails_and_the_layer_is_named(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], damage: Damage, module: str
) -> None:
    damage_graph(bundle, damage)
    assert verify(bundle, checkpoint) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: model.onnx in ONNX Runtime: worst output")
    assert f"first diverging layer: {module} (" in error and "\n" not in error
    failed = bundle.with_name("mine.failed") / "model"
    assert str(failed) in error
    assert sorted(path.name for path in failed.iterdir()) == [
        *("command.txt", "evaluator.py", "inputs.npz", "model.onnx", "report.json", "reproduce.py")
    ]
    assert (failed / "command.txt").read_text().startswith(f"python -m export.verify {bundle} --runtime")
    with np.load(failed / "inputs.npz") as arrays:
        assert len(arrays["image"]) == 1 and "found_logits" in arrays


def test_the_reproducer_goes_where_it_is_told(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    damage_graph(bundle, transpose_weight)
    assert verify(bundle, checkpoint, "--out", str(tmp_path / "evidence" / "first")) == 1
    assert (tmp_path / "evidence" / "first" / "model" / "report.json").is_file()
    assert not bundle.with_name("mine.failed").exists()


def test_a_folder_that_takes_no_reproducer_is_a_sentence_that_names_the_flag(
    bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert verify(bundle, checkpoint) == 2
    error = capsys.readouterr().err
    assert "mine.failed cannot be made" in error and error.endswith("with --out FOLDER\n")


def test_a_graph_that_does_not_run_fails_with_that_reason(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_graph(bundle, stop_on_every_batch)
    data = make_photo_folder(tmp_path / "photos", classes=("ant", "bee"), per_class=1)
    assert verify(bundle, checkpoint, "--data", str(data)) == 1
    assert "the graph does not run" in capsys.readouterr().err


def test_a_changed_file_is_one_sentence_before_anything_is_run(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    assert verify(bundle, checkpoint) == 1
    captured = capsys.readouterr()
    assert "it was changed" in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_wrong_mean_is_found_without_any_photo(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(bundle, lambda manifest: manifest["preprocessing"].update(mean=[0.406, 0.456, 0.485]))
    assert verify(bundle, checkpoint) == 1
    assert capsys.readouterr().err.strip() == (
        "error: the manifest's preprocessing.mean must be (0.485, 0.456, 0.406) as in the checkpoint, "
        "found (0.406, 0.456, 0.485)"
    )
    assert not bundle.with_name("mine.failed").exists()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("std", [0.225, 0.224, 0.229], "preprocessing.std must be (0.229, 0.224, 0.225)"),
        ("interpolation", "bilinear", "interpolation must be bicubic as in the checkpoint, found bilinear"),
        ("resize", [64, 96], "preprocessing.resize must be (73, 109)"),
    ],
)
def test_every_figure_of_the_preprocessing_must_be_the_checkpoints(
    bundle: Path, checkpoint: Path, field: str, value: Any, sentence: str
) -> None:
    edit_manifest(bundle, lambda manifest: manifest["preprocessing"].update({field: value}))
    (problem,) = program.manifest_problems(load_bundle(bundle).manifest, open_task(checkpoint, None))
    assert sentence in problem


def test_classes_in_another_order_are_found(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update(classes=["bee", "ant", *CLASSES[2:]]))
    assert verify(bundle, checkpoint) == 1
    assert "the manifest's class 0 must be 'ant' as in the checkpoint, found 'bee'" in capsys.readouterr().err


def test_labelled_photos_give_the_same_top1_of_both(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photo_folder(tmp_path / "photos", classes=("bee", "eel"), per_class=9)
    (data / "val" / "eel" / "broken.png").write_bytes(b"no photo")
    assert verify(bundle, checkpoint, "--data", str(data)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "+0.00" in printed and "on 18 photos" in printed
    assert "photos batch 4" in printed


def test_a_wrong_mean_is_told_with_the_metric_that_the_bundle_has_with_it(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"mean": [0.1, 0.9, 0.5], "std": [0.05, 2.0, 0.3]}
    edit_manifest(bundle, lambda manifest: manifest["preprocessing"].update(wrong))
    data = make_photo_folder(tmp_path / "photos", classes=("ant", "bee"), per_class=6)
    assert verify(bundle, checkpoint, "--data", str(data)) == 1
    captured = capsys.readouterr()
    assert "the manifest's preprocessing.mean must be" in captured.err and "\n" not in captured.err.strip()
    assert "The manifest is wrong" in captured.out or "and the manifest is wrong" in captured.out
    assert "change" in captured.out and "on 12 photos" in captured.out


def test_photos_without_labels_tell_how_often_the_files_agree(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photo_folder(tmp_path / "photos", per_class=2) / "train"
    assert verify(bundle, checkpoint, "--data", str(data)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the 4 photos of --data have no labels that are known here" in printed and "on 4 photos" in printed


def test_without_a_checkpoint_the_fp32_graph_is_the_reference_and_that_is_said(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rounded(bundle, "fp16")
    assert verify(bundle, None) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "without a checkpoint the reference is model.onnx in ONNX Runtime" in printed
    assert "All holds: 1 file on 1 runtime, 1 run, against model.onnx in ONNX Runtime." in printed
    assert "model.fp16.onnx" in printed


def half_alone(bundle: Path, damage: Damage = lambda model: None) -> None:
    """Leaves a file of half precision in a bundle and no other."""
    add_rounded(bundle, "fp16", damage)
    (bundle / "model.onnx").unlink()
    edit_manifest(bundle, lambda manifest: manifest["files"].pop("model.onnx"))


def test_a_bundle_without_fp32_is_held_against_its_checkpoint(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_alone(bundle)
    assert verify(bundle, checkpoint) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "All holds: 1 file on 1 runtime, 1 run, against PyTorch." in printed


def test_a_damaged_file_in_a_bundle_without_fp32_is_found_with_its_layer(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_alone(bundle, perturb_one_number)
    assert verify(bundle, checkpoint) == 1
    assert "first diverging layer: encoder.blocks1.0.mlp.fc2" in capsys.readouterr().err


def test_a_bundle_without_fp32_and_without_a_checkpoint_ends_with_2_and_says_what_else_there_is(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_alone(bundle)
    assert verify(bundle, None) == 2
    error = capsys.readouterr().err
    assert "has no fp32 file, which the others could be held against; give --checkpoint RUN, or hold it" in error
    (command,) = re.findall(r"with convmae (conform .*)\n", error)
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command))
    assert not ended.value.code


def test_the_layer_and_the_reproducer_of_a_static_batch_are_of_such_a_batch(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_graph(bundle, lambda model: with_batch(model, MAX_BATCH))
    edit_manifest(bundle, lambda manifest: manifest["input"].update(min_batch=MAX_BATCH))
    add_rounded(bundle, "fp16", perturb_one_number)
    assert verify(bundle, None) == 1
    assert "first diverging layer: encoder.blocks1.0.mlp.fc2" in capsys.readouterr().err
    assert reproduce.main(bundle.with_name("mine.failed") / "model.fp16") == 1
    assert "The failure shows." in capsys.readouterr().out


def test_a_reference_that_was_never_verified_is_pointed_out(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(bundle, lambda manifest: manifest["files"]["model.onnx"].update(numerics=None))
    add_rounded(bundle, "fp16")
    assert verify(bundle, None) == 0
    assert "which was never verified against PyTorch; give --checkpoint" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("damage", "module"),
    [(perturb_one_number, "encoder.blocks1.0.mlp.fc2"), (swap_red_and_blue, "encoder.patch_embed1")],
    ids=["weight", "channels"],
)
def test_a_damaged_file_of_reduced_precision_is_found_with_its_layer_while_the_others_hold(
    bundle: Path, capsys: pytest.CaptureFixture[str], damage: Damage, module: str
) -> None:
    add_rounded(bundle, "int8")
    add_rounded(bundle, "fp16", damage)
    assert verify(bundle, None) == 1
    captured = capsys.readouterr()
    assert captured.err.strip().startswith("error: model.fp16.onnx in ONNX Runtime: worst output")
    assert f"first diverging layer: {module}" in captured.err and "int8" not in captured.err
    assert (bundle.with_name("mine.failed") / "model.fp16" / "reproduce.py").is_file()
    assert "1 of 2 runs does not hold." in captured.out


def test_an_int8_file_is_held_to_the_drop_that_its_maker_allowed(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = add_rounded(bundle, "int8", swap_red_and_blue)
    photos = make_photo_folder(tmp_path / "photos", classes=CLASSES, per_class=6)
    about = {"calibrated_on": "none", "method": "none", "layers": 1, "returned": [], "metric": "top-1", "samples": 30}

    def allow(points: float) -> int:
        record = about | {"fp32": 50.0, "int8": 50.0, "max_drop": points}
        edit_manifest(bundle, lambda manifest: manifest["files"][name].update(quantisation=record))
        return verify(bundle, checkpoint, "--data", str(photos), "--file", name)

    assert allow(100.0) == 0
    capsys.readouterr()
    assert allow(-100.0) == 1
    assert f"{name} in ONNX Runtime: top-1 changes from" in capsys.readouterr().err


def test_every_runtime_here_is_tried_and_the_others_are_listed_with_their_reason(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "report.html"
    assert verify(bundle, checkpoint, "--report", str(page), runtimes=()) == 0
    printed = "".join(capsys.readouterr().out.split())  # lines end wherever they are full
    assert "Notrun:ONNXRuntimeCUDA:devicecudaneeds" in printed and f"Report:{page}" in printed
    text = page.read_text(encoding="utf-8")
    assert "All holds" in text and "ONNX Runtime CUDA" in text


def test_a_failure_is_in_the_report_too(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    damage_graph(bundle, transpose_weight)
    assert verify(bundle, checkpoint, "--report", str(tmp_path / "report.html")) == 1
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 1 run does not hold." in text and "encoder.blocks2.0.conv1" in text


def test_other_weights_than_the_stated_ones_are_pointed_out(
    bundle: Path,
    checkpoint: Path,
    classifier: ConvMAEClassifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = CheckpointRecord.model_validate_json((checkpoint / "best" / "config.json").read_bytes())
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    state["head.bias"] += 1
    save_checkpoint(tmp_path / "other", state, record)
    assert verify(bundle, tmp_path / "other") == 1
    error = capsys.readouterr().err
    assert "worst output logits" in error and "it was exported from other weights" in error
    assert "\n" not in error.strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "missing"), "--data must be a folder; found nothing at missing"),
        (("--file", "model.int4.onnx"), "has no file 'model.int4.onnx'; choose from model.onnx"),
        (("--report", "page.pdf"), "--report must be the name of a page, FILE.html; got page.pdf"),
        (("--checkpoint", "missing"), "must be a run folder or a checkpoint"),
    ],
)
def test_a_request_that_cannot_be_carried_out_ends_with_2(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert verify(bundle, checkpoint, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and "\n" not in error


def test_what_is_no_bundle_ends_with_2(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, checkpoint) == 2
    assert "a bundle is a folder with a manifest.json; found none" in capsys.readouterr().err


def test_a_bundle_of_another_task_ends_with_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_segmentation_bundle(tmp_path / "areas")
    assert verify(bundle, checkpoint) == 2
    assert "exported for classification or features, not for segmentation" in capsys.readouterr().err


def test_classes_that_the_model_does_not_know_end_with_2(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photo_folder(tmp_path / "photos", classes=("ant", "zebra"), per_class=1)
    assert verify(bundle, checkpoint, "--data", str(data)) == 2
    assert "has classes that the model does not know, for instance 'zebra'" in capsys.readouterr().err


def test_a_runtime_that_can_run_none_of_the_files_ends_with_2_and_its_reason(
    bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(bundle, checkpoint, runtimes=("tensorrt",)) == 2
    error = capsys.readouterr().err
    assert "runtime tensorrt cannot run model.onnx here: TensorRT runs engines, which" in error


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "export.verify", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--checkpoint" in done.stdout and done.stderr == ""
