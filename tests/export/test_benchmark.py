"""The command on a tiny bundle with real backends, its inputs, its pinning, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle, task_of
from export import benchmark as program
from export.benchmark import (
    BenchmarkConfig,
    batch_sizes,
    free_memory,
    main,
    opener,
    pick_cores,
    pinned,
)
from export.benchmarking.process import WorkerError
from export.benchmarking.report import BenchmarkRecord
from export.runtimes.combinations import Combination
from export.verification.samples import Samples, verification_samples
from tests.bundle_factory import make_bundle, make_detection_bundle, make_video_bundle, write_manifest
from tests.photo_folders import make_photo_folder

FAST = ("--rounds", "2", "--warm-up", "1", "--threads", "1", "--batch-sizes", "1", "2")
ONNX = Combination(runtime="onnxruntime", precision="fp32", file="model.onnx")


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on quiet."""
    monkeypatch.setattr("export.benchmarking.timing.REST_SECONDS", 0.0)
    monkeypatch.setattr("export.benchmarking.rounds.LEAST_TURN_SECONDS", 0.0)


def add_file(bundle: Path, name: str, content: bytes, **changes: Any) -> None:
    """One more graph of the bundle, with a hash that fits."""
    import hashlib

    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    fits = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][name] = manifest["files"]["model.onnx"] | fits | changes
    write_manifest(bundle, manifest)


def read(out: Path) -> BenchmarkRecord:
    return BenchmarkRecord.model_validate_json((out / "benchmark.json").read_text())


@pytest.mark.slow
def test_the_command_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = make_bundle(tmp_path / "tiny"), tmp_path / "figures"
    data = make_photo_folder(tmp_path / "photos", classes=("a", "b"), per_class=2)
    assert main([str(bundle), *FAST, "--runtimes", "onnxruntime", "eager", "--data", str(data), "--out", str(out)]) == 0
    record = read(out)
    assert [(row.combination, row.batch_size) for row in record.rows] == [
        ("ONNX Runtime fp32", 1),
        ("ONNX Runtime fp32", 2),
    ]
    for row in record.rows:
        assert row.timing is not None and row.timing.runs == 2 == len(row.timing.round_ms)
        assert row.timing.p50_ms <= row.timing.p90_ms <= row.timing.p99_ms
        assert row.peak_gb is not None and 0.02 < row.peak_gb < 1
    (combination,) = record.combinations
    assert combination.description == "onnxruntime (CPUExecutionProvider)" and combination.agreement == 1
    assert set(combination.metrics) == {"top-1"}
    assert record.inputs == "photos" and record.machine["pinned"].startswith("to cores ")
    assert [entry.name for entry in record.left_out] == ["PyTorch"]
    printed = capsys.readouterr().out
    assert record.advice.latency.startswith("For latency pick ONNX Runtime fp32: ")
    for sentence in (record.advice.latency, record.advice.throughput):
        assert sentence in " ".join(printed.split())
    with Image.open(out / "benchmark.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.slow
def test_a_file_that_no_runtime_loads_fails_alone_and_the_exit_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    good = (bundle / "model.onnx").read_bytes()
    add_file(bundle, "model.int8.onnx", good.replace(b"GlobalAveragePool", b"GlobalAveragePoem"), precision="int8")
    assert main([str(bundle), *FAST, "--runtimes", "onnxruntime"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "Failed: ONNX Runtime int8: " in printed and "cannot load" in printed
    assert "For latency pick ONNX Runtime fp32" in printed


@pytest.mark.slow
def test_a_checkpoint_brings_pytorch(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is another model's: that must show before anything is timed."""
    bundle = make_bundle(tmp_path / "tiny", size=(64, 96), classes=("ant", "bee", "cat", "dog", "eel"))
    arguments = [str(bundle), *FAST, "--runtimes", "eager", "onnxruntime", "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    record = read(tmp_path / "out")
    assert {row.combination for row in record.rows} == {"PyTorch fp32", "PyTorch bf16"}
    problems = {entry.name: entry.problem for entry in record.combinations}
    assert problems["PyTorch fp32"] is None and problems["PyTorch bf16"] is None
    problem = problems["ONNX Runtime fp32"]
    assert problem is not None and "its speed means nothing" in problem
    bf16 = next(entry for entry in record.combinations if entry.name == "PyTorch bf16")
    assert bf16.difference is not None and 0 < bf16.difference < 0.1


def test_batch_sizes_are_the_usual_ones_that_the_bundle_takes_and_others_are_refused(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "tiny", max_batch=16))
    assert batch_sizes(BenchmarkConfig(bundle=bundle.path), bundle) == (1, 8)
    assert batch_sizes(BenchmarkConfig(bundle=bundle.path, batch_sizes=(4, 2, 4)), bundle) == (2, 4)
    with pytest.raises(ConvMAEError, match="--batch-sizes must be from 1 to 16.*got 1 17"):
        batch_sizes(BenchmarkConfig(bundle=bundle.path, batch_sizes=(1, 17)), bundle)


def samples_of(bundle: Bundle, data: Path | None, count: int) -> Samples:
    return verification_samples(task_of(bundle.manifest), bundle.manifest.preprocessing, data, None, count)


def test_inputs_are_photos_of_the_folder_or_made_of_the_task_s_kind(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", per_class=2)
    tiny = load_bundle(make_bundle(tmp_path / "tiny"))
    assert samples_of(tiny, None, 3).name == "made pictures"
    found = samples_of(tiny, photos, 3)
    assert (found.name, len(found.images)) == ("photos", 3)
    video = load_bundle(make_video_bundle(tmp_path / "video"))
    clips = samples_of(video, None, 2)
    assert clips.name == "made clips"
    assert all(isinstance(clip, np.ndarray) and clip.shape == video.manifest.input.shape for clip in clips.images)


@pytest.mark.slow
@pytest.mark.parametrize("maker", [make_detection_bundle, make_video_bundle])
def test_detectors_and_video_models_are_measured_too(
    tmp_path: Path, maker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = maker(tmp_path / "tiny")
    assert main([str(bundle), *FAST, "--runtimes", "onnxruntime"]) == 0
    unit = "clips/s" if maker is make_video_bundle else "images/s"
    assert unit in capsys.readouterr().out


def test_this_process_and_its_children_are_pinned_and_let_go_again() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert cores is not None and len(cores) == 1 and os.sched_getaffinity(0) == set(cores)
    assert os.sched_getaffinity(0) == before


def test_whole_cores_are_picked_before_second_halves(tmp_path: Path) -> None:
    for core, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert pick_cores({0, 1, 4, 5}, 2, tmp_path) == [0, 1]
    assert pick_cores({0, 4, 5}, 2, tmp_path) == [0, 5]  # 1 is not allowed, so 5 is the first half of its core
    assert pick_cores({0, 1, 4, 5}, 3, tmp_path) == [0, 1, 4]
    assert pick_cores({0, 1}, 2, tmp_path / "none") == [0, 1]


def test_neighbours_given_as_a_range_are_halves_of_one_core(tmp_path: Path) -> None:
    for core, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}.items():
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert pick_cores(range(4), 2, tmp_path) == [0, 2]


def test_no_more_processes_are_started_than_there_is_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "free_memory", lambda: 1)
    bundle = load_bundle(make_bundle(tmp_path / "tiny"))
    with pytest.raises(WorkerError, match="GB of memory are free.*--runtimes or --files"):
        opener(BenchmarkConfig(bundle=bundle.path), bundle, tmp_path)(ONNX)


def test_free_memory_is_that_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MEMORY_INFO", tmp_path / "meminfo")
    assert free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:  5 kB\n")
    assert free_memory() == 5 * 1024


@pytest.mark.parametrize(
    "changes",
    [{"rounds": 0}, {"batch_sizes": (1, 0)}, {"threads": 0}, {"warm_up": 0}, {"samples": 0}, {"runtimes": ()}],
)
def test_settings_below_one_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConvMAEError, match="at least (1|one)"):
        BenchmarkConfig(bundle=tmp_path, **changes)


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="--threads must be at most"):
        BenchmarkConfig(bundle=tmp_path, threads=4096)


def test_an_output_that_is_there_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="exists already"):
        main([str(make_bundle(tmp_path / "tiny")), "--out", str(tmp_path)])
