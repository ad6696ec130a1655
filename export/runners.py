"""What runs a graph for a comparison: PyTorch, ONNX Runtime, OpenVINO, and onnx's own reference implementation.

Each computes in the types that the graph says. Nobody should serve with these: see `convmae_deploy.runtime` for that.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.manifest import Precision
from convmae_deploy.runtime.openvino_backend import import_openvino, openvino_core
from export.gates import FloatArray

Outputs = dict[str, FloatArray]
Runner = Callable[[FloatArray], Outputs]  # images (B, 3, H, W) or clips (B, 3, T, H, W) -> name -> (B, ...)
RunnerName = Literal["onnxruntime", "openvino", "onnx reference"]

AS_IN_GRAPH = "dynamic"  # OpenVINO's precision hint; with "f32" it computes float16 graphs in float32


def torch_runner(model: nn.Module, outputs: Sequence[str]) -> Runner:
    """A module that gives a tuple of tensors, run eagerly in its own precision on the CPU."""

    @torch.inference_mode()
    def run(images: FloatArray) -> Outputs:
        return {name: tensor.numpy() for name, tensor in zip(outputs, model(torch.from_numpy(images)), strict=True)}

    return run


def onnx_runner(path: Path, outputs: Sequence[str], *, threads: int | None = None) -> Runner:
    """An ONNX file on ONNX Runtime's CPU provider, with the graph optimisations that the runtime also uses.

    The session is started by the first run, so that a graph which does not load fails like one that does not run. The
    same holds for all runners of files.
    """
    sessions: list[onnxruntime.InferenceSession] = []

    def run(images: FloatArray) -> Outputs:
        if not sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # the exception says it all
            options.enable_cpu_mem_arena = False  # it would keep the memory of the largest batch
            options.intra_op_num_threads = threads or 0
            sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        (image,) = sessions[0].get_inputs()
        return dict(zip(outputs, sessions[0].run(list(outputs), {image.name: images}), strict=True))

    return run


def openvino_runner(path: Path, outputs: Sequence[str], *, threads: int | None = None) -> Runner:
    """An ONNX file in OpenVINO on the CPU, computed in the graph's own types.

    Raises:
        ConvMAEError: by the first run, OpenVINO is not installed.
    """
    compiled: list[Any] = []

    def run(images: FloatArray) -> Outputs:
        if not compiled:
            settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": AS_IN_GRAPH, "ENABLE_CPU_PINNING": False}
            if threads is not None:
                settings["INFERENCE_NUM_THREADS"] = threads
            import_openvino()  # the core of earlier runs would hide that it is missing
            compiled.append(openvino_core().compile_model(path, "CPU", settings))
        results = compiled[0]([images])
        return {name: np.array(results[name]) for name in outputs}

    return run


def reference_evaluator_runner(path: Path, outputs: Sequence[str]) -> Runner:
    """An ONNX file in onnx's reference implementation, image by image: it is written in NumPy and slow."""
    evaluators: list[ReferenceEvaluator] = []

    def run(images: FloatArray) -> Outputs:
        if not evaluators:
            evaluators.append(ReferenceEvaluator(onnx.load(path)))
        (name,) = evaluators[0].input_names
        rows = [evaluators[0].run(list(outputs), {name: images[i : i + 1]}) for i in range(len(images))]
        return {output: np.concatenate(parts) for output, parts in zip(outputs, zip(*rows, strict=True), strict=True)}

    return run


FILE_RUNNERS: dict[RunnerName, Callable[[Path, Sequence[str]], Runner]] = {
    "onnxruntime": onnx_runner,
    "openvino": openvino_runner,
    "onnx reference": reference_evaluator_runner,
}
# The first that can run a file verifies it. ONNX Runtime's CPU provider takes float16 graphs and computes most of them
# in float32 (x86-64, 1.31), where nothing overflows; so half precision goes to OpenVINO first, where the CPU has it.
ORDER: dict[Precision, tuple[RunnerName, ...]] = {
    "fp32": ("onnxruntime", "openvino"),
    "fp16": ("openvino", "onnxruntime"),
    "bf16": ("openvino", "onnx reference"),
    "int8": ("onnxruntime", "openvino"),
}
CAPABILITIES: dict[Precision, str] = {"fp16": "FP16", "bf16": "BF16"}  # as OpenVINO calls them


def describe_runner(name: RunnerName, precision: Precision) -> str:
    """A runner with its version, for reports."""
    if name == "onnxruntime":  # the package is called onnxruntime or onnxruntime-gpu
        where = "CPUExecutionProvider" + (", which computes most of fp16 in fp32" if precision == "fp16" else "")
        return f"onnxruntime {onnxruntime.__version__} ({where})"
    if name == "openvino":
        return f"openvino {import_openvino().__version__.split('-')[0]} (CPU, in the graph's types)"
    return f"onnx {onnx.__version__} reference evaluator"


def runner_problem(name: RunnerName, precision: Precision) -> str | None:
    """Why a runner is not to run files of a precision here, as a clause; None: it can."""
    if name not in ORDER[precision]:
        if name == "onnxruntime":
            return f"ONNX Runtime's CPU provider has no {precision}"
        return "onnx's reference evaluator is slow, and ONNX Runtime runs the file"
    if name == "openvino":
        try:
            import_openvino()
        except ConvMAEError as error:
            return str(error)
        if CAPABILITIES.get(precision, "FP32") not in openvino_capabilities():
            return f"OpenVINO computes {precision} in fp32 on this CPU"
    return None


def runners_for(precision: Precision) -> tuple[RunnerName, ...]:
    """What can run files of a precision here, the one that verifies exports first."""
    return tuple(name for name in ORDER[precision] if runner_problem(name, precision) is None)


def openvino_capabilities() -> tuple[str, ...]:
    """What OpenVINO can compute in on this CPU, by its own names."""
    return tuple(openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
