"""What can run a bundle on this machine: every runtime with every file, and why some are left out.

Never imports torch: a process that measures ONNX Runtime must not hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import onnxruntime

from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, read_record
from convmae_deploy.backends.gpu import find_gpu
from convmae_deploy.backends.openvino_backend import (
    ComputePrecision,
    PerformanceHint,
    import_openvino,
    openvino_precisions,
)
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import TASKS

Way = Literal["eager", "compiled", "onnxruntime", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
WAYS: tuple[Way, ...] = get_args(Way)
TORCH_WAYS: tuple[Way, ...] = ("eager", "compiled")
WAY_NAMES: dict[Way, str] = {
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
    "onnxruntime-tensorrt": "ONNX Runtime TensorRT",
    "tensorrt": "TensorRT",
}
GPU_WAYS: tuple[Way, ...] = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")  # whose fp32 may be TF32
PROVIDERS: dict[Way, str] = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
EXACT: Precision = "fp32"  # whose answers must be the reference's


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to run one file."""

    way: Way
    precision: Precision  # of the file, or of the PyTorch model
    file: str | None = None  # of the bundle; None: PyTorch
    computes_in: ComputePrecision | None = None  # OpenVINO's precision
    hint: PerformanceHint | None = None  # OpenVINO's

    @property
    def name(self) -> str:
        """What tables call it."""
        parts = [WAY_NAMES[self.way], self.precision]
        if self.way == "tensorrt" and self.file is not None:  # there may be several engines of a precision
            parts[1] = self.file.removesuffix(ENGINE_SUFFIX)
        if self.computes_in not in (None, self.precision):
            parts.append(f"in {self.computes_in}")
        if self.hint == "throughput":
            parts.append("throughput")
        return " ".join(parts)

    @property
    def exact(self) -> bool:
        """Whether its answers must be the reference's but for rounding."""
        return self.precision == EXACT and self.computes_in in (None, EXACT) and self.way not in GPU_WAYS


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What is not measured, and why."""

    name: str
    reason: str  # a clause


def find_contenders(
    bundle: Bundle, *, checkpoint: bool, ways: Sequence[Way] = WAYS, files: Sequence[str] | None = None
) -> tuple[list[Contender], list[LeftOut]]:
    """Everything that can be measured, PyTorch first, and what cannot.

    Args:
        bundle: whose files are run.
        checkpoint: whether there is one for PyTorch.
        ways: to look at.
        files: of the bundle; None: all.

    Raises:
        ConvMAEError: the bundle has no such file.
    """
    chosen = list(bundle.manifest.files) if files is None else list(files)
    precisions = {file: bundle.graph(file)[1].precision for file in chosen}
    found: list[Contender] = []
    left_out: list[LeftOut] = []
    for way in (way for way in WAYS if way in ways):
        reason = _missing(way, checkpoint)
        if reason is not None:
            left_out.append(LeftOut(name=WAY_NAMES[way], reason=reason))
        elif way in TORCH_WAYS:
            found += _torch_contenders(way, bundle.manifest.task)
        elif way == "tensorrt":
            engines, unusable = _engines(bundle, chosen)
            found += engines
            left_out += unusable
        else:
            candidates = [one for file, precision in precisions.items() for one in _of_file(way, file, precision)]
            reasons = [_unable(candidate) for candidate in candidates]
            found += [one for one, reason in zip(candidates, reasons, strict=True) if reason is None]
            left_out += [
                LeftOut(name=one.name, reason=reason)
                for one, reason in zip(candidates, reasons, strict=True)
                if reason is not None
            ]
    return found, left_out


def _missing(way: Way, checkpoint: bool) -> str | None:
    """Why a way is closed on this machine, for all files."""
    if way in TORCH_WAYS:
        return None if checkpoint else "it needs --checkpoint, the run that the bundle was exported from"
    provider = PROVIDERS.get(way)
    if provider is not None and provider not in onnxruntime.get_available_providers():
        return f"it needs ONNX Runtime with {provider}, found {onnxruntime.__version__} without; see onnxruntime-gpu"
    if way in GPU_WAYS and find_gpu() is None:
        return "it needs an NVIDIA GPU with its driver, found none"
    if way == "openvino":
        try:
            import_openvino()
        except ConvMAEError as error:
            return str(error)
    return None


def _engines(bundle: Bundle, files: Sequence[str]) -> tuple[list[Contender], list[LeftOut]]:
    """The engines in the bundle's folder that were built from some of its files."""
    found: list[Contender] = []
    left_out: list[LeftOut] = []
    for path in sorted(bundle.path.glob(f"*{ENGINE_SUFFIX}")):
        try:
            record = read_record(path)
        except ConvMAEError as error:
            left_out.append(LeftOut(name=f"{WAY_NAMES['tensorrt']} {path.name}", reason=str(error)))
            continue
        if record.graph in files:
            found.append(Contender(way="tensorrt", precision=record.precision, file=path.name))
    if not found and not left_out:
        reason = f"the bundle has no engine of its files; python -m export.to_tensorrt {bundle.path} builds one"
        left_out.append(LeftOut(name=WAY_NAMES["tensorrt"], reason=reason))
    return found, left_out


def _unable(contender: Contender) -> str | None:
    """Why a file cannot be run in a way that is open."""
    if contender.way != "onnxruntime":  # OpenVINO runs every file, in full precision where the CPU has no other
        return None
    from export.verification.runners import runner_problem  # it imports torch

    return runner_problem(contender.way, contender.precision)


def _torch_contenders(way: Way, task: str) -> list[Contender]:
    if TASKS[task].GIVES_LISTS:
        return [Contender(way="eager", precision="fp32")] if way == "eager" else []
    return [Contender(way=way, precision=precision) for precision in ("fp32", "bf16")]


def _of_file(way: Way, file: str, precision: Precision) -> list[Contender]:
    """The ways to run a file; OpenVINO has several."""
    if way != "openvino":
        return [Contender(way=way, precision=precision, file=file)]
    capable = openvino_precisions()
    # half a file computed in full precision would only be a slower file in full precision
    half = precision in ("fp16", "bf16") and "bf16" in capable
    hints: tuple[PerformanceHint, ...] = ("latency", "throughput")
    return [
        Contender(way=way, precision=precision, file=file, computes_in=computes_in, hint=hint)
        for computes_in in (("bf16",) if half else capable)
        for hint in hints
    ]
