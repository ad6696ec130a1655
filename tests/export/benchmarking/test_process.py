"""A combination in a process of its own: what it answers, what it holds, and how its end is told."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.tasks import load_bundle
from export.benchmarking.process import ROOT, WorkerError, WorkerProcess
from export.benchmarking.worker import Job
from export.runtimes.combinations import Combination
from tests.bundle_factory import make_bundle
from tests.photo_folders import make_photo_folder

Starter = Callable[..., WorkerProcess]
ONNX = Combination(runtime="onnxruntime", precision="fp32", file="model.onnx")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    inputs = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Starter]:
    processes: list[WorkerProcess] = []

    def starter(combination: Combination = ONNX) -> WorkerProcess:
        job = Job(combination=combination, bundle=bundle, checkpoint=None, threads=1, inputs=tmp_path / "inputs.npy")
        processes.append(WorkerProcess(job, tmp_path / f"process-{len(processes)}"))
        return processes[-1]

    yield starter
    for process in processes:
        process.close()


@pytest.mark.slow
def test_a_combination_starts_gives_its_outputs_and_takes_turns(start: Starter, bundle: Path, tmp_path: Path) -> None:
    process = start()
    started = process.start()
    assert started.description == "onnxruntime (CPUExecutionProvider)"
    assert 0 < started.seconds < 60 and 0.02 < started.peak_gb < 1
    inputs = np.load(tmp_path / "inputs.npy")
    backend = OnnxRuntimeBackend(load_bundle(bundle), device="cpu", threads=1)
    for batch_size in (2, 5):  # more than there are: they are taken again
        images = inputs[np.arange(batch_size) % 3]
        expected = backend.run(images, ["logits"])["logits"]
        found = process.outputs(batch_size)
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)
    process.warm_up(2, 2)
    seconds, peak_gb = process.turn(2, 0.0)
    assert len(seconds) == 1 and 0 < seconds[0] < 10 and peak_gb >= started.peak_gb
    assert len(process.turn(1, 0.05)[0]) > 1


@pytest.mark.slow
def test_it_answers_a_user_s_photos_as_they_are_served(start: Starter, tmp_path: Path) -> None:
    data = make_photo_folder(tmp_path / "photos", classes=("a", "b"), per_class=2)
    predictions = pickle.loads(start().predictions(data, 3).read_bytes())
    assert [logits.shape for logits in predictions] == [(3,)] * 3


@pytest.mark.slow
def test_an_error_is_a_sentence_and_the_process_goes_on(start: Starter) -> None:
    process = start()
    with pytest.raises(WorkerError, match="no_such_batch"):
        process._request("turn", no_such_batch=1)
    assert process.turn(1, 0.0)[0]


@pytest.mark.slow
def test_one_that_cannot_start_says_why_every_time(start: Starter) -> None:
    process = start(Combination(runtime="onnxruntime", precision="int8", file="model.int8.onnx"))
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"has no graph 'model.int8.onnx'"):
            process.start()


@pytest.mark.slow
def test_the_end_of_a_process_is_told_with_its_signal_and_from_then_on(start: Starter) -> None:
    process = start()
    process.start()
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    for _ in range(2):
        with pytest.raises(WorkerError, match="ended by SIGKILL, as where memory runs out"):
            process.turn(1, 0.0)


@pytest.mark.slow
def test_closing_ends_the_process(start: Starter) -> None:
    process = start()
    process.start()
    process.close()
    assert process._process.returncode == 0
    process.close()


@pytest.mark.slow
def test_what_runs_onnx_runtime_holds_no_torch() -> None:
    program = "import sys, export.benchmarking.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
