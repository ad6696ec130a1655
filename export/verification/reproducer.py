"""The folder that reproduces a failed verification."""

import json
import math
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.files import atomic_directory
from export import reproduce
from export.graph_files import read_model, write_graph
from export.runtimes import evaluator
from export.verification.divergence import Divergence, LayerError
from export.verification.elementwise import Verification
from export.verification.gates import FP32, Tolerance
from export.verification.layer_errors import LayerErrors

FAILED_SUFFIX = ".failed"


def write_failure(
    folder: Path,
    *,
    model: onnx.ModelProto | Path,
    verification: Verification,
    divergence: Divergence | LayerErrors | None,
    arrays: dict[str, FloatArray],
    command: Sequence[str],
    runs_in: str = "onnxruntime",
    tolerance: Tolerance = FP32,
) -> None:
    """Writes the reproducer: model.onnx, inputs.npz, report.json, command.txt and two scripts. Replaces an older one.

    Args:
        folder: where to.
        model: the graph that failed, or its file.
        verification: its report and failures.
        divergence: where it leaves the reference; None where the graph does not even run.
        arrays: the failing images by the name of the graph's input, with what was expected and found.
        command: the arguments that led here.
        runs_in: the runtime, by the name that reproduce.py knows.
        tolerance: the gate.
    """
    failures = [
        {"input": failure.batch.name, "output": failure.output, "problem": failure.comparison.problem}
        for failure in verification.failures
    ]
    worst = verification.worst
    gate = {name: limit if math.isfinite(limit) else None for name, limit in asdict(tolerance).items()}
    content = {
        "runs_in": runs_in,
        "gate": gate,
        "failure": f"worst output {worst.output} on {worst.batch.name}: {worst.comparison.problem}",
        "report": verification.report.model_dump(mode="python"),
        "failures": failures,
        "first_diverging_layer": None if divergence is None else divergence.explanation,
        "layers": _layer_rows(divergence),
    }
    with atomic_directory(folder, replace=True) as directory:
        if isinstance(model, Path) and model.suffix != ".onnx":
            shutil.copyfile(model, directory / "model.onnx")
        else:
            write_graph(read_model(model) if isinstance(model, Path) else model, directory / "model.onnx")
        np.savez(directory / "inputs.npz", **arrays)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
        report = json.dumps(_finite(content), indent=2, allow_nan=False)
        (directory / "report.json").write_text(report + "\n", encoding="utf-8")
        (directory / "command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
        for script in (reproduce.__file__, evaluator.__file__):
            shutil.copy(script, directory)


def _layer_rows(divergence: Divergence | LayerErrors | None) -> list[dict[str, Any]]:
    if divergence is None:
        return []
    if isinstance(divergence, LayerErrors):
        return [asdict(module) for module in divergence.modules]
    return [_layer_row(layer) for layer in divergence.layers]


def _layer_row(layer: LayerError) -> dict[str, Any]:
    comparison = layer.comparison
    return {
        "module": layer.module,
        "value": layer.value,
        "operator": layer.operator,
        "max_abs": comparison.max_abs,
        "cosine": comparison.cosine,
        "excess": comparison.excess,
        "problem": comparison.problem,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: those numbers become strings."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
