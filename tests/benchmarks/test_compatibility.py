"""The table of runtimes and versions, with environments that stand in for those of the package index."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compatibility
from benchmarks.compatibility import decibels, main, merged, note_number
from convmae_deploy.errors import ConvMAEError
from tests.bundle_factory import make_bundle


def stand_in(folder: Path, runtime: str) -> None:
    """An environment that is there already: this one."""
    place = folder / runtime.replace("==", "-") / "venv" / "bin"
    place.mkdir(parents=True)
    (place / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (place / "python").chmod(0o755)
    (place.parents[1] / "ready").touch()


def test_every_cell_is_run_and_a_refusal_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    stand_in(tmp_path / "environments", "onnxruntime==1.99")
    monkeypatch.setattr(compatibility, "call", no_index(compatibility.call))
    arguments = ["--folder", str(tmp_path / "environments"), "--runtime", "onnxruntime==1.99", "openvino==0.1"]
    main([str(bundle), *arguments])
    header, _, *rows, _, note = capsys.readouterr().out.splitlines()
    assert header == "| runtime | `model.onnx` |"
    assert rows == ["| onnxruntime 1.99 | 200 dB |", "| openvino 0.1 | no (1) |"]
    assert note == "1. openvino==0.1: it cannot be installed here: no index"


@pytest.mark.parametrize(
    ("cells", "one"),
    [
        ({"a": "120 dB", "b": "63 dB"}, "63 dB"),
        ({"a": "built", "b": "no (1)", "c": "no (1)"}, "built; b, c: no (1)"),
        ({"a": "no (2)", "b": "no (2)"}, "no (2)"),
        ({"a": "no (2)", "b": "no (1)"}, "a: no (2); b: no (1)"),
    ],
)
def test_the_tasks_of_a_cell_are_one_figure_and_those_that_are_refused(cells: dict[str, str], one: str) -> None:
    assert merged(cells) == one


def test_the_same_refusal_of_another_node_is_one_note() -> None:
    notes: list[str] = []
    assert [note_number(notes, f"x==1: no {what}") for what in ("node_conv2d_1", "node_conv2d", "matmul")] == [1, 1, 2]
    assert notes == ["x==1: no node_conv2d_1", "x==1: no matmul"]


def no_index(call: Any) -> Any:
    def run(command: list[str], folder: Path | None = None) -> None:
        if Path(command[0]).name == "uv":
            raise ConvMAEError("no index")
        call(command, folder)

    return run


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({}, "a: it gives nothing"),
        ({"a": np.zeros((2, 2))}, r"a: it gives the shape \(2, 2\), not \(2,\)"),
        ({"a": np.array([1, np.nan])}, "a: it gives NaN"),
    ],
)
def test_what_is_no_answer_is_said(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        decibels({"a": np.ones(2)}, found)
    assert decibels({"a": np.ones(2)}, {"a": np.ones(2) * 1.01}) == pytest.approx(40)


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="--runtime must be one of onnxruntime, .* got tflite"):
        main(["bundle", "--folder", str(tmp_path), "--runtime", "tflite"])
