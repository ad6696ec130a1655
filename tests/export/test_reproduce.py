"""The folder that a failure leaves shows it again, by itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import reproduce
from export.runtimes.runners import onnx_runner
from export.verification.elementwise import Failure, Verification, verify
from export.verification.gates import FP32, Comparison
from export.verification.inputs import Batch
from export.verification.reproducer import write_failure
from tests.bundle_factory import make_bundle

OUTPUTS = ("logits", "e1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a graph that gives what it gives, where other logits were expected."""
    bundle = make_bundle(tmp_path / "bundle")
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    found = onnx_runner(bundle / "model.onnx", OUTPUTS)(images)
    expected = found | {"logits": found["logits"] + np.float32(0.5)}
    comparison = Comparison(max_abs=0.5, max_rel=0.1, cosine=0.9, excess=50.0, worst_image=0, problem="off by much")
    failure = Failure(batch=Batch("photos batch 1", images), output="logits", comparison=comparison)
    verification = verify(
        lambda _: expected, lambda _: found, [failure.batch], FP32, outputs=OUTPUTS, between=("made", "onnxruntime")
    )
    write_failure(
        tmp_path / "failed",
        model=bundle / "model.onnx",
        verification=Verification(report=verification.report, failures=(failure,)),
        divergence=None,
        arrays={"image": images}
        | {f"expected_{name}": values for name, values in expected.items()}
        | {f"found_{name}": values for name, values in found.items()},
        command=["python", "-m", "export.verify", "bundle"],
    )
    return tmp_path / "failed"


def test_one_command_shows_the_failure_without_this_project(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    done = subprocess.run(
        [sys.executable, "-I", str(moved / "reproduce.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "worst output logits on photos batch 1: off by much" in done.stdout
    assert "logits" in done.stdout and "is off by up to 0.5" in done.stdout and "The failure shows." in done.stdout


@pytest.mark.slow
def test_a_failure_in_onnx_s_evaluator_shows_with_its_own_operators(folder: Path) -> None:
    indices = np.full((3, 80, 64), 70)  # of an axis that onnx's own operator does not take
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["image", "image"], ["wide"], axis=2),
            helper.make_node("Unsqueeze", ["indices", "zero"], ["places"]),
            helper.make_node("GatherElements", ["wide", "places"], ["e1"], axis=2),
        ],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("B", 3, 64, 64))],
        [helper.make_tensor_value_info("e1", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(indices, "indices"), numpy_helper.from_array(np.array([0]), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    found = np.broadcast_to(images[:, :, 6:7], (2, 3, 80, 64))
    np.savez(folder / "inputs.npz", image=images, expected_e1=found + 1, found_e1=found)
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | {"runs_in": "onnx-reference"}))
    done = subprocess.run([sys.executable, "-I", str(folder / "reproduce.py")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    assert "is off by up to 1" in done.stdout and "(as recorded)" in done.stdout


def test_where_the_numbers_hold_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(folder / "inputs.npz") as arrays:
        mended = {name: arrays[name] for name in arrays}
    mended["expected_logits"] = mended["found_logits"]
    np.savez(folder / "inputs.npz", **mended)
    assert reproduce.main(folder) == 0
    printed = capsys.readouterr().out
    assert "The failure does not show here." in printed and "within the gate (as recorded)" in printed


def test_a_graph_that_does_not_run_shows_that(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    assert reproduce.main(folder) == 1
    assert "the graph does not run" in capsys.readouterr().out


ANY: dict[str, Any] = {"absolute": None, "relative": 0.0, "snr_db": None}


@pytest.mark.parametrize(
    ("gate", "found", "problem"),
    [
        ({"absolute": 0.1, "relative": 0.0}, [1.0, 2.05], None),
        ({"absolute": 0.1, "relative": 0.0}, [1.0, 2.2], "an entry is off by 2 times the allowed difference"),
        ({"snr_db": 30.0}, [1.0, 2.01], None),
        ({"snr_db": 50.0}, [1.0, 2.01], "the gate is 50 dB"),
        ({}, [1.0, np.nan], "holds NaN or infinity"),
        ({}, [1.0, 9.0], None),
    ],
)
def test_the_gate_of_the_report_is_held(gate: dict[str, Any], found: list[float], problem: str | None) -> None:
    expected = np.array([[1.0, 2.0]], np.float32)
    told = reproduce.problem_of(expected, np.array([found], np.float32), ANY | gate)
    assert (told is None) if problem is None else (told is not None and problem in told)
    assert "instead of" in str(reproduce.problem_of(expected, np.zeros((1, 3)), ANY))


def test_the_report_names_the_gate_and_the_runtime(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["runs_in"] == "onnxruntime"
    assert report["gate"]["absolute"] == 1e-4 and report["gate"]["snr_db"] is None
