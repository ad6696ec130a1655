"""What a benchmark chose for a bundle on a machine, and whether that holds for the bundle and the machine at hand.

`python -m export.benchmark BUNDLE --choose latency` writes BUNDLE.choice.json beside the folder, which stays as it was
proven; `load(..., runtime="auto")`, `--runtime auto` and CONVMAE_RUNTIME=auto follow it. A choice of another bundle or
another machine is not followed, and a warning says so.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convmae_deploy.backends.base import ComputePrecision, Device, PerformanceHint
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, Digest, find_engine, read_record
from convmae_deploy.backends.gpu import find_gpu
from convmae_deploy.backends.runtimes import AUTO, DEFAULT_RUNTIME, RUNTIMES, RuntimeName, RuntimeOptions
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_regular
from convmae_deploy.machine import available_cores, processor

Goal = Literal["latency", "throughput"]
MAX_CHOICE_BYTES = 2**16
Word = Annotated[str, Field(max_length=300)]

logger = logging.getLogger("convmae_deploy")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Record):
    """What a choice holds for."""

    processor: Word
    cores: int  # that the process might use
    gpu: Word | None

    @classmethod
    def this(cls) -> "Machine":
        """The one at hand."""
        gpu = find_gpu()
        return cls(processor=processor(), cores=available_cores(), gpu=None if gpu is None else gpu.name)

    def words(self) -> str:
        """For people."""
        return f"{self.processor}, {self.cores} cores, {self.gpu or 'no GPU'}"


class Choice(_Record):
    """What to run."""

    schema_version: Literal[1] = 1
    goal: Goal
    device: Literal["cpu", "cuda"]
    runtime: RuntimeName
    file: Word  # a graph of the bundle, or an engine in its folder
    file_sha256: Digest
    precision: ComputePrecision | None = None  # as of `RuntimeOptions`
    hint: PerformanceHint | None = None  # likewise
    machine: Machine
    figures: Word  # what was measured, in a sentence
    versions: dict[Word, Word] = Field(max_length=50)  # of the packages that it was measured with


def choice_path(bundle: Path) -> Path:
    """Where the choice for a bundle is."""
    folder = Path(os.path.abspath(bundle))
    return folder.with_name(f"{folder.name}.choice.json")


def file_sha256(bundle: Bundle, file: str) -> str:
    """The digest of a graph of the bundle, or of an engine in its folder, as their records say it.

    Raises:
        BundleError: there is none.
    """
    if file.endswith(ENGINE_SUFFIX):
        return read_record(find_engine(bundle, file)).engine_sha256
    return bundle.graph(file)[1].digest


def settle(
    bundle: Bundle, options: RuntimeOptions = DEFAULT_RUNTIME, device: Device = "auto"
) -> tuple[RuntimeOptions, Device]:
    """How to open a bundle on this machine, and where: as it is asked for.

    With runtime `auto` as was chosen, else as without a choice. A warning says which.

    Args:
        bundle: what is to run.
        options: what is to run it.
        device: where it may run.

    Raises:
        ConvMAEError: something is asked for besides `auto` that the choice says.
    """
    if options.runtime != AUTO:
        return options, device
    trusted = options.trust_engine_code
    if replace(options, trust_engine_code=False) != RuntimeOptions(runtime=AUTO):
        given = {"file": options.file, "precision": options.precision, "hint": options.hint}
        named = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise ConvMAEError(
            f"runtime auto takes the file, the precision and the hint that were chosen; leave out {named}, or name a "
            "runtime"
        )
    path = choice_path(bundle.path)
    try:
        choice = Choice.model_validate_json(read_regular(path, MAX_CHOICE_BYTES))
        reason = _why_not(choice, bundle, device)
    except FileNotFoundError:
        reason = "there is none"
    except (OSError, ValidationError):
        reason = "it cannot be read"
    except ConvMAEError as error:  # of an engine that has gone
        reason = str(error)
    if reason is not None:
        logger.warning(
            "runtime auto finds no choice for bundle %s to follow (%s: %s) and takes its first graph in ONNX Runtime; "
            "measuring it here, with export.benchmark --choose in a clone of convmae_deploy, writes one",
            bundle.manifest.name,
            path,
            reason,
        )
        return RuntimeOptions(trust_engine_code=trusted), device
    logger.warning(
        "runtime auto follows %s for bundle %s: %s in %s, chosen for %s (%s)",
        path,
        bundle.manifest.name,
        choice.file,
        RUNTIMES[choice.runtime].title,
        choice.goal,
        choice.figures,
    )
    chosen = RuntimeOptions(
        runtime=choice.runtime,
        file=choice.file,
        precision=choice.precision,
        hint=choice.hint,
        trust_engine_code=trusted and RUNTIMES[choice.runtime].takes_engines,
    )
    return chosen, choice.device


def _why_not(choice: Choice, bundle: Bundle, device: Device) -> str | None:
    """Why a choice is not for this bundle on this machine; None: it is."""
    here = Machine.this()
    if choice.machine != here:
        return f"it is of another machine, {choice.machine.words()}, and this one is {here.words()}"
    known = choice.file.endswith(ENGINE_SUFFIX) or choice.file in bundle.manifest.files
    if not known or file_sha256(bundle, choice.file) != choice.file_sha256:
        return f"it is of another bundle, whose {choice.file} is another file"
    if device not in ("auto", choice.device):
        return f"it is for device {choice.device}, and {device} was asked for"
    precision = "fp32" if choice.precision is None else choice.precision
    return RUNTIMES[choice.runtime].problem(choice.device, precision)
