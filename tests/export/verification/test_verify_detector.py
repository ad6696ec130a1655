"""A detector from checkpoint to bundle, and the tiers that hold its numbers against PyTorch's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.backends.openvino_backend import openvino_core
from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.detection import DETECTOR_OUTPUTS, Detector
from export import precisions
from export import verify as verify_bundle
from export.__main__ import ExportConfig, export_bundle
from export.graph_files import without_outputs
from export.graphs.static_detector import DENSE, HEADS, OUTPUTS, PROBES, StaticDetector
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.runners import Runner, onnx_runner
from export.tasks import open_task
from export.tasks.base import ExportTask
from export.verification.detection_matching import decided, match_image
from export.verification.detection_sets import compare_detections
from export.verification.elementwise import TracedFile, VerificationError
from export.verification.inputs import verification_batches
from export.verification.samples import Samples, made_photos
from tests.export.conftest import CLASSES, copy_of
from tests.export.graphs.test_static_detector import IMAGES, static
from tests.export.tiny_detectors import SIZE, little_suppression


@pytest.fixture(scope="module", autouse=True)
def reference_of_little_suppression() -> Iterator[None]:
    """PyTorch sorts out as much as the graph, in as many rounds: most of what it does for a tiny detector."""
    with little_suppression():
        yield


@pytest.fixture(scope="module")
def checkpoint(detector_checkpoint: Path) -> Path:
    return detector_checkpoint


@pytest.fixture(scope="module")
def task(checkpoint: Path) -> ExportTask:
    return open_task(checkpoint, None)


@pytest.fixture(scope="module")
def graph(detector_graph: ExportedGraph) -> ExportedGraph:
    return detector_graph


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, graph: ExportedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "export_graph", lambda *_: graph)
        export_bundle(ExportConfig(checkpoint=checkpoint, out=out), Console(quiet=True), ["test"])
    return out


def test_the_graph_has_an_open_batch_and_standard_operators_of_opset_20(graph: ExportedGraph) -> None:
    assert [(entry.domain, entry.version) for entry in graph.model.opset_import] == [("", 20)]
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in graph.model.graph.output] == [*OUTPUTS, *PROBES]


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_gives_what_pytorch_gives(
    task: ExportTask, graph: ExportedGraph, tmp_path: Path, batch: int
) -> None:
    onnx.save(without_outputs(graph.model, PROBES), tmp_path / "model.onnx")
    found = onnx_runner(tmp_path / "model.onnx", OUTPUTS)(IMAGES[:batch].numpy())
    assert isinstance(task.wrapper, StaticDetector)
    expected = static(task.wrapper.model, IMAGES[:batch])
    assert (found["num"] > 20).all()
    for name, spec in DETECTOR_OUTPUTS.items():
        assert found[name].dtype == spec.dtype and found[name].shape == (batch, *spec.shape)
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=2e-4)


@pytest.fixture(scope="module")
def openvino_runner(graph: ExportedGraph, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    onnx.save(without_outputs(graph.model, PROBES), path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}  # else bf16 where the CPU has it
    compiled = openvino_core().compile_model(path, "CPU", settings)

    def run(images: FloatArray) -> Outputs:
        found = compiled([images])
        return {name: found[name] for name in OUTPUTS}

    return run


@pytest.mark.parametrize("batch", [1, 3])
def test_openvino_gives_what_pytorch_and_onnx_runtime_give(
    task: ExportTask, graph: ExportedGraph, openvino_runner: Runner, tmp_path: Path, batch: int
) -> None:
    images = IMAGES[:batch].numpy()
    onnx.save(without_outputs(graph.model, PROBES), tmp_path / "model.onnx")
    found = openvino_runner(images)
    assert (found["num"] > 20).all() and found["converged"].tolist() == [1] * batch
    for expected in (task.reference(images), onnx_runner(tmp_path / "model.onnx", OUTPUTS)(images)):
        np.testing.assert_array_equal(found["num"], expected["num"])
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        for name in ("boxes", "scores", "masks"):
            np.testing.assert_allclose(found[name], expected[name], atol=2e-4, rtol=2e-4)


def test_a_bundle_carries_all_three_tiers_and_detects_what_the_model_detects(bundle: Path, task: ExportTask) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.task, manifest.input.max_batch, manifest.classes) == ("detection", 2, CLASSES)
    assert manifest.preprocessing == Letterbox(size=SIZE) and manifest.outputs == DETECTOR_OUTPUTS
    numerics = manifest.files["model.onnx"].numerics
    assert numerics is not None and numerics.passed
    assert list(numerics.outputs) == [*DENSE, *HEADS, "masks", "detections"]
    assert numerics.outputs["detections"].top1_agreement == 1.0
    predictor = open_predictor(bundle, device="cpu")
    assert isinstance(predictor, Detector)
    photo = made_photos(1)[0]
    expected = task.reference(predictor.preprocess(photo)[None])
    (found,) = predictor([photo], threshold=0.0)
    assert 20 < len(found) <= expected["num"][0]  # boxes in the padding are left out
    scores = np.array([detection.score for detection in found])
    assert np.abs(scores[:, None] - expected["scores"]).min(axis=1).max() < 1e-4


@pytest.mark.parametrize(
    ("module", "output"),
    [
        ("rpn.head.cls_logits", "objectness_"),
        ("roi_heads.box_predictor.bbox_pred", "box_deltas"),
        ("roi_heads.mask_predictor.mask_fcn_logits", "masks"),
    ],
)
def test_a_broken_layer_fails_in_its_own_tier(
    task: ExportTask, graph: ExportedGraph, tmp_path: Path, module: str, output: str
) -> None:
    broken = copy_of(graph)
    name = f"model.{module}.bias"
    (bias,) = [tensor for tensor in broken.model.graph.initializer if tensor.name == name]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.5, name))
    onnx.save(without_outputs(broken.model, PROBES), tmp_path / "model.onnx")
    batches = verification_batches(
        Detector, task.preprocessing, Samples("photos", made_photos(1)), InputSpec(shape=(3, *SIZE), max_batch=1)
    )[:2]
    candidate = TracedFile(graph=broken, path=tmp_path / "model.onnx", precision="fp32", runtime="onnxruntime")
    verification = task.verify(candidate, batches)
    elementwise = {failure.output for failure in verification.failures} - {"detections"}
    assert elementwise and all(name.startswith(output) for name in elementwise)
    assert not verification.report.passed and len(verification.report.outputs) == len(DENSE) + len(HEADS) + 2


def detections(*rows: tuple[float, int, float]) -> Outputs:
    """An image's detections from (left edge, label, score): boxes of 40 x 40 pixels."""
    boxes = np.array([(left, 0, left + 40, 40) for left, _, _ in rows], np.float32).reshape(-1, 4)
    labels, scores = np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], np.float32)
    counts = {"num": np.array(len(rows)), "converged": np.array(1)}
    return {"boxes": boxes, "labels": labels, "scores": scores} | counts  # type: ignore[return-value]


def test_detections_pair_by_class_place_and_score_in_any_order() -> None:
    one = detections((0, 1, 0.9), (100, 1, 0.6), (200, 0, 0.5995))
    same = match_image(one, detections((1, 1, 0.9005), (200, 0, 0.6), (100, 1, 0.5996)), 0.05)
    assert (same.decided, same.unmatched) == (6, 0) and same.score_difference == pytest.approx(5e-4, abs=1e-6)
    for other in ((0, 2, 0.9), (10, 1, 0.9), (0, 1, 0.902)):
        matching = match_image(one, detections(other, (100, 1, 0.6), (200, 0, 0.5995)), 0.05)
        assert (matching.decided, matching.unmatched) == (6, 2)


def test_each_detection_has_one_partner() -> None:
    matching = match_image(detections((0, 1, 0.9)), detections((0, 1, 0.9), (0, 1, 0.9)), 0.05)
    assert (matching.decided, matching.unmatched) == (3, 1)


def test_rows_at_the_threshold_and_at_the_end_of_a_full_list_do_not_count() -> None:
    nothing = detections()
    assert match_image(detections((0, 1, 0.0505)), nothing, 0.05).decided == 0
    assert match_image(detections((0, 1, 0.0515)), nothing, 0.05).unmatched == 1
    scores = np.linspace(0.9, 0.8, 100, dtype=np.float32)
    assert decided(scores[:99], 0.05).sum() == 99
    assert decided(scores, 0.05).sum() == 99  # all but the last, whose neighbour is 0.00101 better


def test_more_than_two_percent_without_a_partner_is_a_problem() -> None:
    def side(count: int) -> Outputs:
        rows = detections(*((50.0 * index, 0, 0.9) for index in range(count)))
        return {name: np.asarray(values)[None] for name, values in rows.items()}

    assert compare_detections([side(50)], [side(49)], "fp32", 0.05).problem is None  # 1 of 99
    assert (
        compare_detections([side(50)], [side(47)], "fp32", 0.05).problem
        == "3 of 97 detections have no partner, more than 2%"
    )


def test_a_graph_that_does_not_settle_is_a_problem() -> None:
    one = {name: np.asarray(values)[None] for name, values in detections((0, 1, 0.9)).items()}
    problem = compare_detections([one], [one | {"converged": np.array([0])}], "fp32", 0.05).problem
    assert problem == "on 1 of 1 images suppression needs more rounds than the graph has"


def test_a_finished_bundle_is_held_against_its_checkpoint_in_all_three_tiers(
    checkpoint: Path, graph: ExportedGraph, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_bundle, "export_graph", lambda *_, **__: graph)
    config = verify_bundle.VerifyConfig(bundle=bundle, checkpoint=checkpoint, out=tmp_path / "failed")
    results = verify_bundle.verify_bundle(config, Console(quiet=True), ["test"])
    report = results.run[0].report
    assert results.problems == [] and report is not None and report.passed
    assert {*DENSE, *HEADS, "masks", "detections"} == set(report.outputs)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_graph_without_the_values_that_are_looked_at_is_refused(graph: ExportedGraph) -> None:
    renamed = copy_of(graph).model
    for node in renamed.graph.node:
        node.output[:] = ["elsewhere" if name == "proposals" else name for name in node.output]
    with pytest.raises(VerificationError, match="the graph lacks the values proposals"):
        verify_bundle.with_outputs(renamed, graph.model, PROBES)
