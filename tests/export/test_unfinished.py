"""Exports that are interrupted, and that go on."""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from export import __main__ as program
from export import steps
from export.__main__ import ExportConfig, Written, export_bundle
from export.graphs.to_onnx import ExportedGraph
from export.precisions import GRAPHS, GraphRequest


def export(checkpoint: Path, out: Path, max_batch: int = 2) -> dict[str, Written]:
    config = ExportConfig(checkpoint=checkpoint, out=out, max_batch=max_batch, precision=("fp16",))
    return export_bundle(config, Console(quiet=True), ["test"])


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch, graph: ExportedGraph) -> list[str]:
    """The files that are verified; fp16 ends with Ctrl-C the first time, and is the fp32 graph after that."""
    files: list[str] = []
    verify = steps.run_verification

    def verify_and_note(task: Any, graph: Any, path: Path, *more: Any) -> Any:
        files.append(path.name)
        return verify(task, graph, path, *more)

    def half(request: GraphRequest) -> ExportedGraph:
        assert request.path is not None and Path(tempfile.gettempdir()).parent == request.path.parent
        if "interrupted" not in files:
            files.append("interrupted")
            raise KeyboardInterrupt
        return graph

    monkeypatch.setattr(program, "run_verification", verify_and_note)
    monkeypatch.setitem(GRAPHS, "fp32", lambda _: graph)
    monkeypatch.setitem(GRAPHS, "fp16", half)
    return files


def test_an_interrupted_export_leaves_no_bundle_and_goes_on_behind_the_files_that_were_finished(
    checkpoint: Path, tmp_path: Path, verified: list[str]
) -> None:
    out = tmp_path / "mine"
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.unfinished"]
    kept = tmp_path / "mine.unfinished"
    assert sorted(path.name for path in kept.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert kept.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) == 0
    written = export(checkpoint, out)
    assert verified == ["model.onnx", "interrupted", "model.fp16.onnx"]
    assert written["model.onnx"].verification.report.passed
    assert list(load_bundle(out).manifest.files) == ["model.onnx", "model.fp16.onnx"]
    assert not any(path.is_dir() for path in out.iterdir()) and tmp_path not in Path(tempfile.gettempdir()).parents
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("change", ["another batch", "a damaged file", "a folder that others may write to"])
def test_what_is_not_known_to_be_the_same_is_made_anew(
    checkpoint: Path, tmp_path: Path, verified: list[str], change: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "mine")
    kept = tmp_path / "mine.unfinished"
    if change == "a damaged file":
        os.truncate(kept / "model.onnx", 1000)
    elif change == "a folder that others may write to":
        kept.chmod(0o777)
    export(checkpoint, tmp_path / "mine", max_batch=3 if change == "another batch" else 2)
    assert verified == ["model.onnx", "interrupted", "model.onnx", "model.fp16.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_is_refused_keeps_nothing(
    checkpoint: Path, tmp_path: Path, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: GraphRequest) -> ExportedGraph:
        raise ConvMAEError("no")

    monkeypatch.setitem(GRAPHS, "fp16", refuse)
    with pytest.raises(ConvMAEError, match="^no$"):
        export(checkpoint, tmp_path / "mine")
    assert verified == ["model.onnx"] and list(tmp_path.iterdir()) == []
