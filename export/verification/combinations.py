"""Which files of a bundle run on which runtimes here, and why the others do not.

CPUs are verified with ONNX Runtime and OpenVINO, bf16 graphs without OpenVINO with onnx's own reference evaluator, and
GPUs with ONNX Runtime's CUDA and TensorRT providers and with TensorRT itself, which runs the engines in the bundle's
folder. Runs on a GPU are as the runtime's backends do them; nobody has run them here yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from convmae_deploy.backends.base import Backend
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, read_record
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.backends.openvino_backend import OpenVinoBackend, openvino_precisions
from convmae_deploy.backends.runtimes import RuntimeOptions, start_backend
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from export.verification.gates import FloatArray
from export.verification.runners import (
    Outputs,
    Runner,
    describe_runner,
    openvino_runner,
    reference_evaluator_runner,
    runner_problem,
)

RuntimeChoice = Literal[
    "onnxruntime", "openvino", "openvino-bf16", "onnx-reference", "cuda", "onnxruntime-tensorrt", "tensorrt"
]
RUNTIMES: tuple[RuntimeChoice, ...] = get_args(RuntimeChoice)
TITLES: dict[RuntimeChoice, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO, bf16",
    "onnx-reference": "ONNX reference",
    "cuda": "ONNX Runtime, CUDA",
    "onnxruntime-tensorrt": "ONNX Runtime, TensorRT",
    "tensorrt": "TensorRT",
}


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A file on a runtime."""

    file: str
    runtime: RuntimeChoice
    precision: Precision  # of the gates: what it computes in
    reason: str | None = None  # why it cannot be run here, as a clause; None: it can
    evident: bool = False  # whether it could not be run anywhere: then nobody is told unless they asked
    trusted: bool = False  # whether the program inside an engine may run

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.file} in {TITLES[self.runtime]}"


def files_of(bundle: Bundle) -> dict[str, Precision]:
    """The graphs of the manifest and the engines in the folder, with their precision.

    Raises:
        BundleError: an engine has no record.
    """
    engines = sorted(bundle.path.glob(f"*{ENGINE_SUFFIX}"))
    graphs = {name: file.precision for name, file in bundle.manifest.files.items()}
    return graphs | {engine.name: read_record(engine).precision for engine in engines}


def combinations_of(
    bundle: Bundle, files: Sequence[str] = (), runtimes: Sequence[RuntimeChoice] = (), *, trusted: bool = False
) -> list[Combination]:
    """Every file on every runtime, those with a reason that it cannot be run included.

    Args:
        bundle: whose files.
        files: names; none: all.
        runtimes: none: all.
        trusted: whether the programs inside engines may run.

    Raises:
        ConvMAEError: there is no such file, or one of `runtimes` can run none of the files.
    """
    known = files_of(bundle)
    unknown = [file for file in files if file not in known]
    if unknown:
        raise ConvMAEError(f"bundle {bundle.path} has no file {unknown[0]!r}; choose from {', '.join(known)}")
    found = [
        _combination(bundle, file, known[file], runtime, trusted)
        for file in files or known
        for runtime in runtimes or RUNTIMES
    ]
    for runtime in runtimes:
        reasons = [entry.reason for entry in found if entry.runtime == runtime]
        if all(reason is not None for reason in reasons):
            raise ConvMAEError(f"runtime {runtime} cannot run {', '.join(files or known)} here: {reasons[0]}")
    return found if runtimes else [entry for entry in found if not entry.evident]


def start(combination: Combination, bundle: Bundle) -> tuple[Runner, str]:
    """What runs a combination, and its description with versions.

    Raises:
        ConvMAEError: it does not start.
    """
    outputs = tuple(bundle.manifest.outputs)
    path = bundle.path / combination.file
    if not combination.file.endswith(ENGINE_SUFFIX):
        checked_path(bundle, combination.file)
    if combination.runtime == "onnx-reference":
        description = describe_runner("onnx reference", combination.precision)
        return reference_evaluator_runner(path, outputs), description
    if combination.runtime == "openvino" and combination.precision in ("fp16", "bf16"):
        return openvino_runner(path, outputs), describe_runner("openvino", combination.precision)
    backend = _backend(combination, bundle)

    def run(images: FloatArray) -> Outputs:
        return backend.run(images, outputs)

    return run, _described(combination, backend)


def _combination(bundle: Bundle, file: str, precision: Precision, runtime: RuntimeChoice, trusted: bool) -> Combination:
    computes: Precision = "bf16" if runtime == "openvino-bf16" and precision == "fp32" else precision
    reason, evident = _problem(bundle, file, precision, runtime, trusted)
    return Combination(file=file, runtime=runtime, precision=computes, reason=reason, evident=evident, trusted=trusted)


def _problem(
    bundle: Bundle, file: str, precision: Precision, runtime: RuntimeChoice, trusted: bool
) -> tuple[str | None, bool]:
    """Why a file cannot be run, and whether that is so everywhere."""
    if file.endswith(ENGINE_SUFFIX) != (runtime == "tensorrt"):
        if runtime == "tensorrt":
            return "TensorRT runs engines, which python -m export.to_tensorrt builds", file in bundle.manifest.files
        return "only TensorRT runs an engine", True
    if runtime == "onnxruntime":
        return runner_problem("onnxruntime", precision), False
    if runtime == "openvino":
        return runner_problem("openvino", precision), False
    if runtime == "openvino-bf16":
        if precision in ("fp16", "bf16"):
            return f"the file is {precision} itself; use runtime openvino", True
        missing = runner_problem("openvino", precision)
        return missing or (None if "bf16" in openvino_precisions() else "this CPU has no bf16"), False
    if runtime == "onnx-reference":
        if precision == "bf16" and runner_problem("openvino", precision) is None:
            return "it is slow, and OpenVINO runs the file", True
        return runner_problem("onnx reference", precision), precision != "bf16"
    try:
        _backend(Combination(file=file, runtime=runtime, precision=precision, trusted=trusted), bundle)
    except ConvMAEError as error:
        return str(error), False
    return None, False


def _backend(combination: Combination, bundle: Bundle) -> Backend:
    """The runtime's own backend, as it is served."""
    file = combination.file
    if combination.runtime == "onnxruntime":
        return OnnxRuntimeBackend(bundle, file=file, device="cpu")
    if combination.runtime == "cuda":
        return OnnxRuntimeBackend(bundle, file=file, device="cuda")
    if combination.runtime in ("openvino", "openvino-bf16"):
        return OpenVinoBackend(
            bundle, file=file, precision="bf16" if combination.runtime == "openvino-bf16" else "fp32"
        )
    assert combination.runtime in ("onnxruntime-tensorrt", "tensorrt")
    trusted = combination.trusted and combination.runtime == "tensorrt"
    options = RuntimeOptions(runtime=combination.runtime, file=file, trust_engine_code=trusted)
    return start_backend(bundle, options=options)


def _described(combination: Combination, backend: Backend) -> str:
    """A backend with its version."""
    if combination.runtime == "onnxruntime":
        return describe_runner("onnxruntime", combination.precision)
    if combination.runtime in ("openvino", "openvino-bf16"):
        version = describe_runner("openvino", combination.precision).partition(" (")[0]
        return f"{version} (CPU, in {'bf16' if combination.runtime == 'openvino-bf16' else 'fp32'})"
    return f"{backend.name} ({', '.join(backend.providers)})"
