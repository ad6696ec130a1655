"""Which files of a bundle run on which runtimes here, in which ways, and why the others do not.

What is verified and what is measured are walks over the same combinations: of the library's runtimes on their devices,
of PyTorch for the one, and for the other of onnx's own reference evaluator, which runs bf16 graphs that nothing else
here computes. Runs on a GPU are as the runtime's backends do them; nobody has run them here yet.

Never imports torch: a process that measures ONNX Runtime must not hold it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from convmae_deploy.backends.base import Backend, ComputePrecision, Device, PerformanceHint, Runtime
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, engines_of, read_record
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeName, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import TASKS
from export.runtimes.reference_evaluator import ONNX_REFERENCE

HALF: tuple[Precision, ...] = ("fp16", "bf16", "int8-fp16")
HINTS: tuple[PerformanceHint, ...] = ("latency", "throughput")
EXACT: Precision = "fp32"  # whose answers must be the reference's
TORCH: Mapping[str, str] = {"eager": "PyTorch", "compiled": "torch.compile"}
REFERENCE = "onnx-reference"
GRAPH_RUNTIMES: Mapping[str, Runtime] = {  # those that run graphs which are in no bundle
    **{name: runtime for name, runtime in RUNTIMES.items() if runtime.open_graph is not None},
    REFERENCE: ONNX_REFERENCE,
}


class Place(NamedTuple):
    """A runtime on one of its devices."""

    name: RuntimeName
    device: Device

    @property
    def runtime(self) -> Runtime:
        """What runs there."""
        return RUNTIMES[self.name]


def _places() -> dict[str, Place]:
    """Every runtime by its name, on a further device with that behind it; CPUs first."""
    found = {
        name if device == runtime.devices[0] else f"{name}-{device}": Place(name, device)
        for name, runtime in RUNTIMES.items()
        for device in runtime.devices
    }
    return dict(sorted(found.items(), key=lambda item: item[1].device))  # "cpu" before "cuda"


PLACES = _places()
HINTED = tuple(name for name, place in PLACES.items() if "precision" in place.runtime.options)
TITLES: Mapping[str, str] = {
    **TORCH,
    **{
        name: RUNTIMES[place.name].title + (f" {place.device.upper()}" if name != place.name else "")
        for name, place in PLACES.items()
    },
    REFERENCE: ONNX_REFERENCE.title,
}
# What is measured, PyTorch first; what is verified, where a runtime that can compute in bf16 is one more.
MEASURED = (*TORCH, *PLACES)
VERIFIED = (*(choice for name in PLACES for choice in (name, *([f"{name}-bf16"] if name in HINTED else []))), REFERENCE)

if TYPE_CHECKING:
    Measured: TypeAlias = str
    Verified: TypeAlias = str
else:  # what programs take for a flag
    Measured = Literal[MEASURED]
    Verified = Literal[VERIFIED]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A file on a runtime of this machine."""

    runtime: str  # one of TITLES
    precision: Precision  # the file's, or the PyTorch model's
    file: str = ""  # its name in the bundle; none: PyTorch
    computes_in: ComputePrecision | None = None  # the hint to a runtime of HINTED; None: as the graph is written
    hint: PerformanceHint | None = None  # for a runtime of HINTED
    trusted: bool = False  # whether the program inside an engine may run
    reason: str | None = None  # why it cannot be run here, as a clause; None: it can
    evident: bool = False  # whether it could not be run anywhere: then nobody is told unless they asked

    @property
    def where(self) -> str:
        """What runs it, for people."""
        return TITLES[self.runtime] + (", bf16" if self.computes_in == "bf16" else "")

    @property
    def title(self) -> str:
        """For people, where all files are on all runtimes."""
        return f"{self.file} in {self.where}"

    @property
    def name(self) -> str:
        """For people, where files are known by their precision."""
        parts = [TITLES[self.runtime], self.precision]
        if self.file.endswith(ENGINE_SUFFIX):  # there may be several of a precision
            parts[1] = self.file.removesuffix(ENGINE_SUFFIX)
        if self.computes_in not in (None, self.precision):
            parts.append(f"in {self.computes_in}")
        if self.hint == "throughput":
            parts.append("throughput")
        return " ".join(parts)

    @property
    def gate(self) -> Precision:
        """The precision whose gate holds: what it computes in."""
        return "bf16" if self.computes_in == "bf16" and self.precision == "fp32" else self.precision

    @property
    def exact(self) -> bool:
        """Whether its answers must be the reference's but for rounding; a GPU's fp32 may be TF32."""
        place = PLACES.get(self.runtime)
        return self.gate == EXACT and (place is None or place.device == "cpu")


def open_backend(combination: Combination, bundle: Bundle, *, threads: int | None = None) -> Backend:
    """What runs a combination, as it is served.

    Raises:
        ConvMAEError: it does not start.
    """
    place = PLACES[combination.runtime]
    options = RuntimeOptions(
        runtime=place.name,
        file=combination.file,
        precision=combination.computes_in,
        hint=combination.hint,
        trust_engine_code=combination.trusted and place.runtime.takes_engines,
    )
    return start_backend(bundle, device=place.device, threads=threads, options=options)


def files_of(bundle: Bundle) -> dict[str, Precision]:
    """The graphs of the manifest and the engines in the folder and its sets, with their precision.

    Raises:
        BundleError: an engine has no record.
    """
    graphs = {name: file.precision for name, file in bundle.manifest.files.items()}
    return graphs | {name: read_record(bundle.path / name).precision for name in engines_of(bundle)}


def to_verify(
    bundle: Bundle, files: Sequence[str] = (), runtimes: Sequence[Verified] = (), *, trusted: bool = False
) -> list[Combination]:
    """Every file on every runtime, those with a reason that it cannot be run included.

    Args:
        bundle: whose files.
        files: names; none: all.
        runtimes: of VERIFIED; none: all.
        trusted: whether the programs inside engines may run.

    Raises:
        ConvMAEError: there is no such file, or one of `runtimes` can run none of the files.
    """
    known = files_of(bundle)
    unknown = [file for file in files if file not in known]
    if unknown:
        raise ConvMAEError(f"bundle {bundle.path} has no file {unknown[0]!r}; choose from {', '.join(known)}")
    walks: dict[str, list[Combination]] = {}
    found = []
    for file in files or known:
        for choice in runtimes or VERIFIED:
            one = _judged(_written(file, known[file], choice, trusted), bundle)
            walks.setdefault(choice, []).append(one)
            found.append(one)
    for choice in runtimes:
        reasons = [one.reason for one in walks[choice]]
        if all(reason is not None for reason in reasons):
            raise ConvMAEError(f"runtime {choice} cannot run {', '.join(files or known)} here: {reasons[0]}")
    return found if runtimes else [one for one in found if not one.evident]


def _written(file: str, precision: Precision, choice: str, trusted: bool) -> Combination:
    """A file on one of VERIFIED: computed as it is written, in full precision, or as the choice says."""
    runtime = choice if choice in TITLES else choice.removesuffix("-bf16")
    computes_in: ComputePrecision | None = None
    if runtime != choice:
        computes_in = "bf16"
    elif runtime in HINTED and precision not in HALF:
        computes_in = "fp32"
    return Combination(runtime=runtime, precision=precision, file=file, computes_in=computes_in, trusted=trusted)


def _judged(one: Combination, bundle: Bundle) -> Combination:
    """The combination with the reason that it cannot be run, where there is one."""
    place = PLACES.get(one.runtime)
    takes_engines = place is not None and place.runtime.takes_engines
    if one.file.endswith(ENGINE_SUFFIX) != takes_engines:
        if not takes_engines:
            return replace(one, reason="only TensorRT runs an engine", evident=True)
        reason = "TensorRT runs engines, which python -m export.to_tensorrt builds"
        return replace(one, reason=reason, evident=one.file in bundle.manifest.files)
    if one.computes_in == "bf16" and one.precision in HALF:
        return replace(one, reason=f"the file is {one.precision} itself; use runtime {one.runtime}", evident=True)
    if place is None:
        slow = _too_slow(one.precision)
        return replace(one, reason=slow, evident=slow is not None)
    return replace(one, reason=_problem(one) or (_refusal(one, bundle) if place.device == "cuda" else None))


def _problem(one: Combination) -> str | None:
    """Why its runtime cannot run it here, without trying."""
    place = PLACES[one.runtime]
    return place.runtime.problem(place.device, one.computes_in or one.precision)


def _refusal(one: Combination, bundle: Bundle) -> str | None:
    """Why it does not start."""
    try:
        open_backend(one, bundle)
    except ConvMAEError as error:
        return str(error)
    return None


def _too_slow(precision: Precision) -> str | None:
    """Why the reference evaluator is not to run files of a precision."""
    problem = ONNX_REFERENCE.problem("cpu", precision)
    others = [runtime for name, runtime in GRAPH_RUNTIMES.items() if name != REFERENCE]
    able = [runtime.title for runtime in others if runtime.problem("cpu", precision) is None]
    return problem or (f"it is slow, and {able[0]} runs the file" if able else None)


def to_measure(
    bundle: Bundle,
    *,
    checkpoint: bool,
    runtimes: Sequence[Measured] = MEASURED,
    files: Sequence[str] = (),
    trusted: bool = False,
) -> tuple[list[Combination], dict[str, str]]:
    """Everything that can be measured, PyTorch first, and what cannot: its name, and why.

    Args:
        bundle: whose files are run.
        checkpoint: whether there is one for PyTorch.
        runtimes: to look at.
        files: of the bundle; none: all.
        trusted: whether the programs inside engines may run.

    Raises:
        ConvMAEError: the bundle has no such file.
    """
    chosen = {file: bundle.graph(file)[1].precision for file in files or bundle.manifest.files}
    found: list[Combination] = []
    left_out: dict[str, str] = {}
    for runtime in (name for name in MEASURED if name in runtimes):
        reason = _missing(runtime, checkpoint)
        if reason is not None:
            left_out[TITLES[runtime]] = reason
        elif runtime in TORCH:
            found += _of_pytorch(runtime, bundle.manifest.task)
        elif PLACES[runtime].runtime.takes_engines:
            found += _engines(bundle, runtime, chosen, trusted, left_out)
        else:
            for one in (one for file, precision in chosen.items() for one in _of_file(runtime, file, precision)):
                problem = _problem(one)
                if problem is None:
                    found.append(one)
                else:
                    left_out[one.name] = problem
    return found, left_out


def _missing(runtime: str, checkpoint: bool) -> str | None:
    """Why a runtime cannot run any file here."""
    if runtime in TORCH:
        return None if checkpoint else "it needs --checkpoint, the run that the bundle was exported from"
    return _problem(Combination(runtime=runtime, precision=EXACT))


def _of_pytorch(runtime: str, task: str) -> list[Combination]:
    if TASKS[task].GIVES_LISTS:  # with lengths that depend on the image it is neither compiled nor cast as a whole
        return [Combination(runtime=runtime, precision="fp32")] if runtime == "eager" else []
    return [Combination(runtime=runtime, precision=precision) for precision in ("fp32", "bf16")]


def _engines(
    bundle: Bundle, runtime: str, files: Mapping[str, Precision], trusted: bool, left_out: dict[str, str]
) -> list[Combination]:
    """The engines in the bundle's folder that were built from some of its files; the others join `left_out`."""
    found, unreadable = [], {}
    for name in engines_of(bundle):
        try:
            record = read_record(bundle.path / name)
        except ConvMAEError as error:
            unreadable[f"{TITLES[runtime]} {name}"] = str(error)
            continue
        if record.graph in files:
            found.append(Combination(runtime=runtime, precision=record.precision, file=name, trusted=trusted))
    left_out |= unreadable
    if not found and not unreadable:
        left_out[TITLES[runtime]] = (
            f"the bundle has no engine of its files; python -m export.to_tensorrt {bundle.path} builds one"
        )
    return found


def _of_file(runtime: str, file: str, precision: Precision) -> list[Combination]:
    """How a file can be run; those of HINTED have several."""
    one = Combination(runtime=runtime, precision=precision, file=file)
    if runtime not in HINTED:
        return [one]
    full, reduced = replace(one, computes_in="fp32"), replace(one, computes_in="bf16")
    if _problem(reduced) is not None:
        variants = [full]
    else:  # half a file computed in full precision would only be a slower file in full precision
        variants = [reduced] if precision in HALF else [full, reduced]
    return [replace(variant, hint=hint) for variant in variants for hint in HINTS]
