"""What runs a graph for a comparison: PyTorch, ONNX Runtime, OpenVINO, and onnx's own reference implementation.

Each computes in the types that the graph says. Nobody should serve with these: see `convmae_deploy.backends` for that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from convmae_deploy.backends import openvino_backend
from convmae_deploy.backends.openvino_backend import import_openvino, openvino_core
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from export.verification.gates import FloatArray
from export.verification.reference_evaluator import reference_evaluator

Outputs = dict[str, FloatArray]
Runner = Callable[[FloatArray], Outputs]  # images (B, 3, H, W) or clips (B, 3, T, H, W) -> name -> (B, ...)
RunnerName = Literal["onnxruntime", "openvino", "onnx reference"]
Feeds = Mapping[str, NDArray[Any]]  # name of an input -> its values
GraphSource = Path | bytes  # an ONNX file, or what is in one


@dataclass(frozen=True)
class Session:
    """A graph that was loaded."""

    inputs: tuple[str, ...]
    run: Callable[[Sequence[str], Feeds], Outputs]  # names of outputs and values of all inputs -> those outputs


AS_IN_GRAPH = "dynamic"  # OpenVINO's precision hint; with "f32" it computes float16 graphs in float32


def torch_runner(model: nn.Module, outputs: Sequence[str]) -> Runner:
    """A module that gives a tuple of tensors, run eagerly in its own precision on the CPU."""

    @torch.inference_mode()
    def run(images: FloatArray) -> Outputs:
        return {name: tensor.numpy() for name, tensor in zip(outputs, model(torch.from_numpy(images)), strict=True)}

    return run


def onnx_session(model: GraphSource, *, threads: int | None = None) -> Session:
    """A graph on ONNX Runtime's CPU provider, with the graph optimisations that the runtime also uses."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the exception says it all
    options.enable_cpu_mem_arena = False  # it would keep the memory of the largest batch
    options.intra_op_num_threads = threads or 0
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))

    return Session(tuple(entry.name for entry in session.get_inputs()), run)


def openvino_session(model: GraphSource, *, threads: int | None = None) -> Session:
    """A graph in OpenVINO on the CPU, computed in its own types.

    Raises:
        ConvMAEError: OpenVINO is not installed.
    """
    import_openvino()  # the core of earlier sessions would hide that it is missing
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": AS_IN_GRAPH, "ENABLE_CPU_PINNING": False}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino_core().compile_model(openvino_core().read_model(model), "CPU", settings)

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        results = compiled(dict(feeds))
        return {name: np.array(results[name]) for name in outputs}

    return Session(tuple(port.any_name for port in compiled.inputs), run)


def reference_evaluator_session(model: GraphSource, *, threads: int | None = None) -> Session:
    """A graph in onnx's reference implementation, which is written in NumPy, slow, and has no number of threads."""
    evaluator = reference_evaluator(onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model))

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        (batch,) = {len(values) for values in feeds.values()}
        rows = [
            evaluator.run(list(outputs), {name: values[image : image + 1] for name, values in feeds.items()})
            for image in range(batch)  # one by one: some of its operators take no batch
        ]
        return {output: np.concatenate(parts) for output, parts in zip(outputs, zip(*rows, strict=True), strict=True)}

    return Session(tuple(evaluator.input_names), run)


SESSIONS: dict[RunnerName, Callable[..., Session]] = {
    "onnxruntime": onnx_session,
    "openvino": openvino_session,
    "onnx reference": reference_evaluator_session,
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


def file_runner(name: RunnerName, path: Path, outputs: Sequence[str], *, threads: int | None = None) -> Runner:
    """An ONNX file as a function of its one input.

    The session is started by the first run, so that a graph which does not load fails like one that does not run.
    """
    sessions: list[Session] = []

    def run(images: FloatArray) -> Outputs:
        if not sessions:
            sessions.append(SESSIONS[name](path, threads=threads))
        (image,) = sessions[0].inputs
        return sessions[0].run(outputs, {image: images})

    return run


onnx_runner = partial(file_runner, "onnxruntime")
openvino_runner = partial(file_runner, "openvino")
reference_evaluator_runner = partial(file_runner, "onnx reference")


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
        if CAPABILITIES.get(precision, "FP32") not in openvino_backend.openvino_capabilities():
            return f"OpenVINO computes {precision} in fp32 on this CPU"
    return None


def runners_for(precision: Precision) -> tuple[RunnerName, ...]:
    """What can run files of a precision here, the one that verifies exports first."""
    return tuple(name for name in ORDER[precision] if runner_problem(name, precision) is None)
