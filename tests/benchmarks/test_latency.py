"""The latency benchmark: its arithmetic, its check of the contenders, and the random bundle it measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import latency, random_bundle, session
from benchmarks.latency import (
    BF16,
    COMPILED,
    EAGER,
    ONNX,
    OPENVINO,
    LatencyConfig,
    check_detections,
    check_logits,
    figures_of,
)
from benchmarks.random_bundle import RANDOM_MODELS, random_task, write_random_bundle
from convmae_deploy.backends.openvino_backend import openvino_precisions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import Classifier
from export.verification.gates import FloatArray

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)


def logits(images: FloatArray) -> FloatArray:
    return images.reshape(len(images), -1)


def without_compiler(contenders: Callable[..., dict[str, latency.Contender]]) -> Callable[..., Any]:
    """All contenders but the compiled one, which takes a minute."""
    return lambda *arguments: {name: run for name, run in contenders(*arguments).items() if name != COMPILED}


def test_percentiles_and_ratios_are_those_of_the_runs() -> None:
    taken = {EAGER: [[0.4], [0.2], [0.3]], ONNX: [[0.1], [0.1], [0.2]]}
    eager, onnx = figures_of(taken, {EAGER: 0.0, ONNX: 1e-6}, 8)
    assert eager.p50_ms == pytest.approx(300)
    assert eager.speed_against_eager == 1
    assert eager.p90_ms == pytest.approx(380)
    assert onnx.images_per_second == pytest.approx(80)
    assert onnx.speed_against_eager == pytest.approx(3)
    assert onnx.max_abs_difference == 1e-6


def test_a_fast_contender_with_wrong_logits_is_refused() -> None:
    entries = {EAGER: logits, ONNX: lambda images: logits(images) * np.float32(1.1)}
    with pytest.raises(ConvMAEError, match="ONNX Runtime fp32 must give eager PyTorch's logits"):
        check_logits(entries, IMAGES)


def test_reduced_precision_may_differ_and_the_difference_is_told() -> None:
    for name in (BF16, OPENVINO["bf16"]):
        entries = {EAGER: logits, name: lambda images: logits(images) + np.float32(0.01)}
        assert check_logits(entries, IMAGES)[name] == pytest.approx(0.01, rel=1e-3)


def test_a_detector_with_fewer_detections_is_refused() -> None:
    scores = np.linspace(1, 0.5, 8, dtype=np.float32).reshape(2, 4)
    entries: dict[str, latency.Contender] = {
        EAGER: lambda images: scores,
        ONNX: lambda images: scores + np.float32(0.1),
    }
    assert check_detections(entries, IMAGES) == {EAGER: 0, ONNX: pytest.approx(0.1, rel=1e-3)}
    with pytest.raises(ConvMAEError, match="ONNX Runtime fp32 must give 4 detections"):
        check_detections(entries | {ONNX: lambda images: scores * np.array([1, 1, 1, 0], np.float32)}, IMAGES)


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"batch_sizes": ()}, {"batch_sizes": (1, 0)}, {"threads": 0}])
def test_settings_below_one_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConvMAEError, match="at least 1"):
        LatencyConfig(**arguments)  # type: ignore[arg-type]


def test_an_unknown_variant_is_refused() -> None:
    for task in RANDOM_MODELS:
        with pytest.raises(ConvMAEError, match="--variant must be one of nano.*got 'giant'"):
            random_task(task, "giant")


@pytest.mark.slow
def test_a_random_bundle_runs_and_says_that_nobody_verified_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = random_task("classification", "nano")
    write_random_bundle(tmp_path / "bundle", task, 2)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.files["model.onnx"].numerics is None
    assert "never verified" in caplog.text
    predictor = Classifier.open(tmp_path / "bundle", device="cpu")
    images = np.zeros((1, *manifest.input.shape), dtype=np.float32)
    with torch.inference_mode():
        expected = task.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(predictor.run(images, ["logits"])["logits"], expected, atol=1e-5)


def test_int8_without_photos_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="--precision int8 and --calibrate FOLDER.*need each other"):
        random_bundle.main(["--variant", "nano", "--precision", "int8", "--out", str(tmp_path / "bundle")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_tells_speed_and_what_a_process_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(latency, "contenders", without_compiler(latency.contenders))
    arguments = [
        "--variant",
        "nano",
        "--batch-sizes",
        "1",
        "--rounds",
        "1",
        "--warm-up",
        "1",
        "--threads",
        str(threads),
    ]
    latency.main([*arguments, "--out", str(tmp_path / "figures.json")])
    record = json.loads((tmp_path / "figures.json").read_text())
    openvino = [OPENVINO[precision] for precision in openvino_precisions()]
    assert [figure["contender"] for figure in record["figures"]] == [EAGER, ONNX, BF16, *openvino]
    assert ("openvino" in record) == bool(openvino)
    eager, onnx = record["processes"][EAGER], record["processes"][ONNX]
    assert eager["start_seconds"] is None and 0 < onnx["start_seconds"] < 60
    for cost in (eager, onnx):
        assert 0.01 < cost["started_gb"] <= cost["peak_gb"] < 4
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "eager fp32" in line]
    assert rows[-1] == ["eager", "fp32", f"{eager['started_gb']:.2f}", f"{eager['peak_gb']:.2f}"]


@pytest.mark.slow
def test_a_random_segmenter_s_bundle_is_one(tmp_path: Path) -> None:
    task = random_task("segmentation", "nano")
    write_random_bundle(tmp_path / "bundle", task, 1)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.task == "segmentation" and manifest.outputs["logits"].shape == (150, 128, 128)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = random_task("classification", "nano").model, random_task("classification", "nano").model
    assert torch.equal(torch.rand(1), expected)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.slow
def test_a_random_video_model_takes_clips_and_is_verified_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    random_bundle.main(
        ["--task", "video-classification", "--variant", "nano", "--max-batch", "1", "--verify", "--out", str(out)]
    )
    manifest = load_bundle(out).manifest
    numerics = manifest.files["model.onnx"].numerics
    assert numerics is not None and numerics.passed and "random batch 1" in numerics.inputs
    assert (manifest.task, manifest.input.shape, len(manifest.classes)) == (
        "video-classification",
        (3, 16, 128, 128),
        400,
    )
    task = random_task("video-classification", "nano")
    clips = np.random.default_rng(0).standard_normal((1, *manifest.input.shape), dtype=np.float32)
    entries = latency.contenders(task, out, torch.get_num_threads())
    del entries[COMPILED]
    differences = check_logits(entries, clips)
    assert differences[EAGER] == 0 < differences[BF16] and differences[ONNX] < 1e-4
    for bundle in (out, None):
        config = session.SessionConfig(
            task="video-classification", variant="nano", bundle=bundle, threads=torch.get_num_threads()
        )
        run, shape = session.start(config)
        assert shape == manifest.input.shape
        run(clips)
