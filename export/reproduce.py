"""Shows again what a verification found: python reproduce.py

Runs model.onnx beside this file on the inputs of inputs.npz and holds its outputs against those that were expected. It
needs NumPy and the runtime that report.json names (onnx's reference evaluator needs torch besides, for the operators in
evaluator.py), and nothing of the project that wrote it. Exit status: 1 where the failure shows, 0 where it does not.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

EXPECTED, FOUND = "expected_", "found_"  # prefixes of arrays in inputs.npz


def main(folder: Path) -> int:
    """Prints a line for each output; returns the exit status."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    runtime, gate = report["runs_in"], report["gate"]
    with np.load(folder / "inputs.npz") as arrays:
        expected = {name.removeprefix(EXPECTED): arrays[name] for name in arrays if name.startswith(EXPECTED)}
        recorded = {name.removeprefix(FOUND): arrays[name] for name in arrays if name.startswith(FOUND)}
        inputs = {name: arrays[name] for name in arrays if not name.startswith((EXPECTED, FOUND))}
    print(f"{folder / 'model.onnx'} in {runtime}; {report['failure']}")
    try:
        found = run(folder / "model.onnx", inputs, list(recorded or expected), runtime)
    except ImportError:
        raise
    except Exception as error:  # no runtime's exceptions have a common base
        print(f"the graph does not run: {' '.join(str(error).split())}")
        return 1
    problems = 0
    for name, values in found.items():
        if name not in expected:
            continue
        problem = problem_of(expected[name], values, gate)
        problems += problem is not None
        same = (
            "as recorded"
            if name in recorded and np.array_equal(values, recorded[name])
            else "not bit for bit the recorded"
        )
        print(f"{name:16} {problem or 'within the gate'} ({same})")
    print("The failure shows." if problems else "The failure does not show here.")
    return 1 if problems else 0


def problem_of(expected: "np.ndarray[Any, Any]", found: "np.ndarray[Any, Any]", gate: dict[str, Any]) -> str | None:
    """What is wrong with an output, image by image; None: nothing. A limit that is null is not held."""
    if expected.shape != found.shape:
        return f"has the shape {found.shape} instead of {expected.shape}"
    if not np.isfinite(found).all():
        return "holds NaN or infinity"
    difference = np.abs(expected.astype(np.float64) - found)
    ratios = []
    for before, error in zip(expected.astype(np.float64), difference, strict=True):
        signal, noise = float(np.linalg.norm(before)), float(np.linalg.norm(error))
        ratios.append(np.inf if noise == 0 else 20 * np.log10(max(signal, 1e-30) / noise))
    summary = f"is off by up to {difference.max(initial=0.0):.3g}, signal-to-noise ratio {min(ratios):.1f} dB"
    allowed = None if gate["absolute"] is None else gate["absolute"] + gate["relative"] * np.abs(expected)
    if allowed is not None and (difference > allowed).any():
        return f"{summary}; an entry is off by {(difference / allowed).max():.3g} times the allowed difference"
    if gate["snr_db"] is not None and min(ratios) < gate["snr_db"]:
        return f"{summary}; the gate is {gate['snr_db']:g} dB"
    return None


def run(path: Path, inputs: dict[str, Any], outputs: list[str], runtime: str) -> dict[str, Any]:
    """The named outputs of a graph."""
    # OpenVINO and ONNX Runtime report their use to their makers unless they find these when they are imported.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if runtime.startswith("openvino"):
        import openvino

        core = openvino.Core()
        hint = {"openvino-bf16": "bf16", "openvino-fp32": "f32"}.get(runtime, "dynamic")
        results = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})(inputs)
        return {name: np.array(results[name]) for name in outputs}
    if runtime == "onnx-reference":
        import onnx

        model = onnx.load(path)
        evaluator = runpy.run_path(str(path.with_name("evaluator.py")))["reference_evaluator"](model)
        images = len(next(iter(inputs.values())))
        step = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
        with np.errstate(all="ignore"):  # what overflows shows as infinity
            rows = [  # one by one, unless batches have one size: some of its operators take no batch
                evaluator.run(outputs, {name: values[start : start + step] for name, values in inputs.items()})
                for start in range(0, images, step)
            ]
        return {name: np.concatenate(parts) for name, *parts in zip(outputs, *rows, strict=True)}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the exception says it all
    providers = {
        "onnxruntime-cuda": ["CUDAExecutionProvider"],
        "onnxruntime-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    }
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[*providers.get(runtime, []), "CPUExecutionProvider"]
    )
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
