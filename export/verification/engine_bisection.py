"""Which module of a TensorRT engine goes wrong first? Engines that give one more value each, and a search by halves.

What lies between an engine's input and outputs cannot be asked of it. So the graph that it was built from is given a
module's last value as its only output, an engine is built of that in the same way and run, and its value is held
against the fp32 graph's. Of fifty modules six engines find the first that is off where the ones before it are not. A
single value at a time, as marking all takes more memory than many GPUs have and undoes whatever TensorRT merges.

Limits: an output keeps TensorRT from merging across it, so an error that merging makes can vanish in the search, which
is then said; where the error is not monotonous over the modules, the one that is named is one of several.

Nobody has run this on a GPU: the tests build its engines with TensorRT for RTX and run ONNX Runtime in their place.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, EngineProfile, EngineRecord, record_path
from convmae_deploy.backends.tensorrt_library import cache_folder
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import BundleFile, OutputSpec
from convmae_deploy.files import sha256_of
from export.engines.builder import BuildRequest, build_engine
from export.engines.recorded import build_with_record
from export.runtimes.combinations import Combination, open_backend
from export.verification.divergence import Divergence
from export.verification.layer_errors import PROBE, least_db, module_values, probed, snr_db


@dataclass(frozen=True, kw_only=True)
class EngineProbe:
    """Builds and runs engines that give a value from within the graph of an engine."""

    bundle: Bundle
    record: EngineRecord  # of the engine in question
    combination: Combination  # that runs it
    model: onnx.ModelProto  # the graph that it was built from
    images: FloatArray  # (B, 3, ...)

    def value(self, name: str, expected: FloatArray) -> FloatArray:
        """A value (B, ...) of the graph in an engine of its own, in float32."""
        with tempfile.TemporaryDirectory(prefix="convmae-engine-") as folder:
            bundle = self.build(Path(folder), name, expected.shape[1:])
            (engine,) = bundle.path.glob(f"*{ENGINE_SUFFIX}")
            one = Combination(runtime=self.combination.runtime, precision=self.record.precision, file=engine.name)
            return open_backend(one, bundle).run(self.images, [PROBE + name])[PROBE + name]

    def build(self, folder: Path, name: str, shape: tuple[int, ...]) -> Bundle:
        """A folder with an engine that gives a value of that shape, without the batch axis, and its record."""
        graph, engine = folder / "probe.onnx", folder / f"probe{ENGINE_SUFFIX}"
        onnx.save(probed(self.model, [name]), graph)
        opset = next(entry.version for entry in self.model.opset_import if entry.domain == "")
        description = BundleFile(
            sha256=sha256_of(graph), bytes=graph.stat().st_size, precision=self.record.precision, opset=opset
        )
        fields = {"outputs": {PROBE + name: OutputSpec(shape=shape)}, "files": {graph.name: description}}
        bundle = Bundle(folder, self.bundle.manifest.model_copy(update=fields))
        options, count = self.record.options, len(self.images)
        memory, level = options.get("workspace_mb"), options.get("optimisation_level")
        capabilities = str(options.get("compute_capability", ""))
        request = BuildRequest(
            graph=graph,
            engine=engine,
            manifest=bundle.manifest,
            flavour=self.record.flavour,
            profiles=(EngineProfile(min_batch=count, max_batch=count),),
            workspace_bytes=None if memory is None else int(memory) * 2**20,
            optimisation_level=None if level is None else int(level),
            hardware_compatible="hardware_compatible" in options,
            compute_capabilities=tuple(capabilities.split(",")) if capabilities else (),
            timing_cache=cache_folder(),
        )
        record = build_with_record(request, description, lambda wanted: build_engine(wanted, _ignore, _ignore))
        record_path(engine).write_text(record.model_dump_json(), encoding="utf-8")
        return bundle


def find_in_engine(right: onnx.ModelProto, probe: EngineProbe) -> Divergence:
    """Names the first module whose value in the engine is off.

    Args:
        right: the fp32 graph.
        probe: of the engine in question.
    """
    ends, expected = module_values(right, probe.model, probe.images)
    modules = [module for module, values in expected.items() if len(values) == len(probe.images) and values.ndim > 1]

    def measure(module: str) -> float:
        return snr_db(expected[module], probe.value(ends[module], expected[module]))

    search = Search(modules=modules, least=least_db(probe.record.precision), measure=measure)
    return Divergence(layers=(), first=None, explanation=search.explanation())


@dataclass(frozen=True, kw_only=True)
class Search:
    """By halves, for the first module that is off."""

    modules: Sequence[str]  # in the order of the graph
    least: float  # decibels that a module's value must have
    measure: Callable[[str], float]  # a module's, of an engine with its value as output
    measured: dict[str, float] = field(default_factory=dict)

    def explanation(self) -> str:
        """One clause for a message."""
        if not self.modules:
            return "unknown: no module of the graph could be compared"
        if not self._is_off(len(self.modules) - 1):
            return (
                f"none: in engines that give the value of {self.modules[-1]} as well it holds with "
                f"{self.measured[self.modules[-1]]:.0f} dB, so what TensorRT merges there, or what is behind, is off"
            )
        low, high = -1, len(self.modules) - 1  # the last that holds, the first that is known to be off
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_off(middle) else (middle, high)
        module = self.modules[high]
        before = "it is the first of all"
        if low >= 0:
            before = f"{self.modules[low]} before it has {self.measured[self.modules[low]]:.0f} dB"
        return (
            f"{module}, whose value in the engine has a signal-to-noise ratio of {self.measured[module]:.0f} dB; "
            f"{before} ({len(self.measured)} engines built)"
        )

    def _is_off(self, place: int) -> bool:
        module = self.modules[place]
        self.measured[module] = self.measure(module)
        return self.measured[module] < self.least


def _ignore(*_: object) -> None:
    """What TensorRT says while it builds is of no use here; its errors are raised."""
