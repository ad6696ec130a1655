from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS as OUTPUTS
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.runners import Runner, onnx_runner, torch_runner
from export.tasks.classification import ClassifierGraph
from export.verification.elementwise import Verification, smallest_failing_images, verify
from export.verification.gates import EXACT_DB, FP32, GATES
from export.verification.inputs import Batch
from tests.export.conftest import SIZE


def batches(*sizes: int) -> list[Batch]:
    random = np.random.default_rng(0)
    return [Batch(f"random batch {size}", random.standard_normal((size, 3, 2, 2), dtype=np.float32)) for size in sizes]


def doubled(images: FloatArray) -> Outputs:
    return {"logits": images.reshape(len(images), -1) * 2, "map": images * 2}


def check(candidate: Runner, *sizes: int) -> Verification:
    return verify(doubled, candidate, batches(*sizes), FP32, outputs=("logits", "map"), between=("A", "B"))


def test_equal_runners_pass_and_the_report_says_what_was_compared() -> None:
    verification = check(doubled, 1, 3)
    report = verification.report
    assert report.passed and verification.failures == ()
    assert report.inputs == ("random batch 1", "random batch 3", "random batch 3 singly")
    assert (report.reference, report.runtime) == ("A", "B")
    assert report.outputs["logits"].top1_agreement == 1
    assert report.outputs["map"].top1_agreement is None
    assert "0.0001 + 0.001" in report.tolerance


def test_one_output_that_differs_fails_alone_and_is_the_worst() -> None:
    def candidate(images: FloatArray) -> Outputs:
        return doubled(images) | {"map": images * np.float32(2.1)}

    verification = check(candidate, 1, 2)
    assert not verification.report.passed
    assert verification.report.outputs["logits"].passed
    assert not verification.report.outputs["map"].passed
    assert verification.worst.output == "map"


def test_a_graph_whose_images_leak_into_each_other_fails() -> None:
    def candidate(images: FloatArray) -> Outputs:
        return doubled(images - images.mean(axis=0) + images[:1] if len(images) > 1 else images)

    verification = check(candidate, 1, 2)
    assert {failure.batch.name for failure in verification.failures} == {"random batch 2"}


def test_a_graph_that_only_holds_for_batches_fails_when_they_are_run_image_by_image() -> None:
    def candidate(images: FloatArray) -> Outputs:
        return doubled(images * np.float32(1.1 if len(images) == 1 else 1))

    verification = check(candidate, 2, 5)
    assert {failure.batch.name for failure in verification.failures} == {"random batch 2 singly"}


def test_a_graph_that_stops_on_a_batch_size_fails_with_its_reason() -> None:
    def candidate(images: FloatArray) -> Outputs:
        if len(images) == 3:
            raise RuntimeError("cannot\nreshape")
        return doubled(images)

    verification = check(candidate, 2, 3)
    assert {failure.batch.name for failure in verification.failures} == {"random batch 3"}
    assert verification.worst.comparison.problem == "the graph does not run: cannot reshape"


def test_a_failure_is_reduced_to_the_one_image_that_shows_it() -> None:
    def wrong_where_negative(images: FloatArray) -> Outputs:
        return {name: np.where(value < -3, 0, value) for name, value in doubled(images).items()}

    verification = check(wrong_where_negative, 4)
    failure = verification.worst
    images = smallest_failing_images(doubled, wrong_where_negative, failure, FP32)
    assert len(images) == 1 and images.min() < -1.5


def test_a_graph_for_batches_of_one_size_is_shown_the_failing_image_as_often() -> None:
    def wrong_where_negative(images: FloatArray) -> Outputs:
        assert len(images) == 3
        return {name: np.where(value < -3, 0, value) for name, value in doubled(images).items()}

    failure = check(wrong_where_negative, 3).worst
    images = smallest_failing_images(doubled, wrong_where_negative, failure, FP32, least=3)
    assert len(images) == 3 and (images == images[:1]).all() and images.min() < -1.5


def test_a_failure_of_the_whole_batch_keeps_the_whole_batch() -> None:
    def wrong_in_batches(images: FloatArray) -> Outputs:
        return doubled(images * np.float32(len(images)))

    verification = check(wrong_in_batches, 4)
    assert len(smallest_failing_images(doubled, wrong_in_batches, verification.worst, FP32)) == 4


def test_the_exported_graph_equals_pytorch_at_every_batch_size(
    graph: ExportedGraph, classifier: ConvMAEClassifier, tmp_path: Path
) -> None:
    onnx.save(graph.model, tmp_path / "model.onnx")
    reference, candidate = (
        torch_runner(ClassifierGraph(classifier), OUTPUTS),
        onnx_runner(tmp_path / "model.onnx", OUTPUTS),
    )
    images = np.random.default_rng(0).standard_normal((7, 3, *SIZE), dtype=np.float32)
    tried = [Batch(str(size), images[:size]) for size in (1, 2, 3, 7)]
    verification = verify(reference, candidate, tried, FP32, outputs=OUTPUTS, between=("torch", "onnxruntime"))
    assert verification.report.passed
    assert max(row.excess for row in verification.report.outputs.values()) < 0.1


def test_a_file_that_is_no_graph_fails_at_its_first_run(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    runner = onnx_runner(tmp_path / "model.onnx", OUTPUTS)
    with pytest.raises(Exception, match="model.onnx"):
        runner(np.zeros((1, 3, *SIZE), dtype=np.float32))


def test_blank_images_are_held_to_being_finite_in_half_precision_and_to_the_gate_in_fp32() -> None:
    plain, blank = batches(2, 2)
    tried = [plain, replace(blank, blank=True)]

    def candidate(images: FloatArray) -> Outputs:
        return {name: value * (1.5 if images is blank.images else 1) for name, value in doubled(images).items()}

    def spoiled(images: FloatArray) -> Outputs:
        return {name: value * (np.nan if images is blank.images else 1) for name, value in doubled(images).items()}

    outputs, between = ("logits", "map"), ("A", "B")
    half = verify(doubled, candidate, tried, GATES["fp16"], outputs=outputs, between=between)
    assert half.report.passed and half.report.outputs["map"].snr_db == EXACT_DB
    assert "blank images are held to being finite alone" in half.report.tolerance
    for runner, gate in ((candidate, FP32), (spoiled, GATES["fp16"])):
        failed = verify(doubled, runner, tried, gate, outputs=outputs, between=between)
        assert {failure.batch.blank for failure in failed.failures} == {True}
        assert not failed.report.outputs["map"].passed
