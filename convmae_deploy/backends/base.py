"""What runs a graph, in few words, whatever the runtime is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError, ModelError

MAX_THREADS = 1024
Device = Literal["auto", "cpu", "cuda"]
ComputePrecision = Literal["fp32", "bf16"]
PerformanceHint = Literal["latency", "throughput"]
FloatArray = NDArray[np.float32]
InputArray = NDArray[Any]  # what graphs take: normalised values in float32, or levels in uint8
Outputs = dict[str, NDArray[Any]]  # name -> (B, ...)
Feeds = Mapping[str, NDArray[Any]]  # name of an input -> its values
GraphSource = Path | bytes  # an ONNX file, or what is in one


class Backend(Protocol):
    """Runs batches through one graph of a bundle; `run` may be called from several threads at once.

    One on a GPU says more, which the server's batching asks for: `batch_sizes`, the batches that it is fast for,
    `lanes`, how many of them it takes at once (else 1), and `host_buffer`, which as `numpy.zeros` makes an array, of
    memory that the GPU copies fast from.
    """

    @property
    def name(self) -> str:
        """What runs the graph, for people."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Where it runs, by the backend's own names, the preferred one first."""

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        Raises:
            ModelError: the graph does not run.
        """


@dataclass(frozen=True)
class OpenGraph:
    """A graph that is in no bundle, or whose inputs are others than the bundle's; nobody should serve with one."""

    inputs: tuple[str, ...]
    run: Callable[[Sequence[str], Feeds], Outputs]  # names of outputs, values of all inputs -> those outputs
    outputs: tuple[str, ...] = ()  # where the runtime says them: ONNX Runtime
    takes_bytes: bool = False  # whether its first input is of 8 bits without a sign; where the runtime says so


class GraphOpener(Protocol):
    """Opens a graph on the CPU, to be computed in the types that it is written in."""

    def __call__(self, source: GraphSource, *, optimised: bool = True) -> OpenGraph:
        """The graph.

        Args:
            source: where it is.
            optimised: whether layers may be merged, as they are when a graph is served.

        Raises:
            Exception: it does not load; no runtime's exceptions have a common base.
            ConvMAEError: the runtime is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What the programs must know of something that runs graphs."""

    title: str  # for people
    extras: tuple[str, ...] = ()  # pip extras, named as the packages that they bring; none: it comes with the project
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu",)  # the one that it is for first
    problem: Callable[[Device, Precision], str | None]  # why it cannot run such graphs there, a clause; None: it can
    # (bundle, file=, device=, threads=, and those of `options` that were given) -> Backend; raises ConvMAEError
    open: Callable[..., Backend] | None = None  # None: it serves nothing
    options: tuple[str, ...] = ()  # of `RuntimeOptions`, those that it alone takes
    shares_threads: bool = False  # whether `threads` are of all runs together
    takes_engines: bool = False  # whether it runs engines, not graphs
    open_graph: GraphOpener | None = None  # None: it runs what is in a bundle alone
    describe: Callable[[Precision, ComputePrecision | None], str] | None = None  # a run on the CPU, with versions
    widens: tuple[Precision, ...] = ()  # graphs in these it computes in fp32, most of them, where they overflow less


def describe_backend(backend: Backend) -> str:
    """What runs the graph, and where, in a few words."""
    return f"{backend.name} ({', '.join(backend.providers)})"


def does_not_run(runtime: str, path: Path, images: int, error: Exception) -> ModelError:
    """What to raise where a runtime fails in a run of so many images.

    The graph was checked and has run or will run with others, so memory is the likeliest reason.
    """
    reason = " ".join(str(error).split())
    return ModelError(
        f"{runtime} could not run {path} on a batch of {images} ({reason}); free memory, use smaller batches, or "
        "export it again"
    )


def check_threads(threads: int | None) -> None:
    """Raises ConvMAEError unless `threads` is from 1 to 1024, or None."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConvMAEError(f"threads must be from 1 to {MAX_THREADS}; got {threads}")
