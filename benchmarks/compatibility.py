"""Which file of a bundle runs in which runtime of which version: every cell of the table is run.

    python -m benchmarks.compatibility BUNDLE [BUNDLE ...] --folder environments/ [--runtime onnxruntime==1.17.3 ...]

Each runtime gets an environment of its own in --folder, made from the package index at the first time. A cell is the
lowest signal-to-noise ratio of an output against ONNX Runtime's of this project on the bundle's first file, "built"
where nothing can be run (TensorRT for RTX without a GPU), or the number of a note that says why it was refused. Of
several bundles it is the lowest of those whose file runs, and names the tasks of the others.
A detector's rows are in the order of their scores and may change places where two are all but equal, so that one pair
counts as noise; what is judged there are `scores` and `num`.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import numpy as np
import tyro
from numpy.typing import NDArray

from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle, task_of
from export.runtimes.runners import onnx_runner
from export.verification.gates import EXACT_DB, GATES, signal_to_noise
from export.verification.samples import verification_samples

HERE: Final = Path(__file__).parent
PYTHON_PACKAGES: Final = ("onnxruntime", "openvino", "opencv-python-headless", "tensorrt-rtx")
NODE_PACKAGES: Final = ("onnxruntime-node", "onnxruntime-web")
NUMPY_1: Final = (
    "onnxruntime==1.14.",
    "onnxruntime==1.15.",
    "onnxruntime==1.16.",
    "onnxruntime==1.17.",
    "onnxruntime==1.18.",
)
DEFAULT: Final = (
    *(f"onnxruntime=={version}" for version in ("1.16.3", "1.17.3", "1.18.1", "1.20.1", "1.22.1")),
    "onnxruntime",
    "openvino==2023.3.0",
    "openvino==2024.3.0",
    "openvino==2024.6.0",
    "openvino==2026.3.0",
    "openvino",
    "onnxruntime-node",
    "onnxruntime-web",
    "opencv-python-headless",
    "tensorrt-rtx",
)
IMAGES: Final = 2
TIMEOUT: Final = 1800  # seconds for one cell
LEAST: Final[Mapping[Precision, float]] = {  # decibels of what is taken for the same numbers; int8 is reported alone
    "fp32": 90.0,
    "fp16": GATES["fp16"].snr_db,
    "bf16": GATES["bf16"].snr_db,
    "int8": 5.0,
    "int8-fp16": 5.0,
}
MAX_NOTE: Final = 300  # characters
BUILT, REFUSED = "built", "no"  # cells without a figure
NAMES: Final = r"node_\w+|model[\w.-]*\.onnx|\d+"  # what differs in a message from graph to graph
JUDGED: Final = ("scores", "num")  # of a detector


@dataclass(frozen=True, kw_only=True)
class CompatibilityConfig:
    """Runs every file of some bundles in every runtime of a list and prints a table."""

    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional]  # each of another task
    folder: Path  # of the environments; kept, so that a second time is quick
    runtime: tuple[str, ...] = DEFAULT  # packages of Python or npm, as NAME or NAME==VERSION

    def __post_init__(self) -> None:
        for runtime in self.runtime:
            if package_of(runtime) not in (*PYTHON_PACKAGES, *NODE_PACKAGES):
                known = ", ".join((*PYTHON_PACKAGES, *NODE_PACKAGES))
                raise ConvMAEError(f"--runtime must be one of {known}, or one with ==VERSION; got {runtime}")


def package_of(runtime: str) -> str:
    """Its name without the version."""
    return runtime.partition("==")[0]


def environment(folder: Path, runtime: str) -> Path:
    """The folder of a runtime's environment, made where it is not there.

    Raises:
        ConvMAEError: it cannot be installed.
    """
    place = folder / runtime.replace("==", "-")
    if (place / "ready").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    if package_of(runtime) in NODE_PACKAGES:
        call(
            [
                "npm",
                "install",
                "--no-fund",
                "--no-audit",
                "--ignore-scripts",
                "--prefix",
                str(place),
                runtime.replace("==", "@"),
            ]
        )
    else:
        uv = str(Path(sys.executable).with_name("uv"))
        numpy = ["numpy<2"] if runtime.startswith(NUMPY_1) else ["numpy"]
        call([uv, "venv", "--quiet", "--clear", str(place / "venv")])
        call([uv, "pip", "install", "--quiet", "--python", str(place / "venv/bin/python"), runtime, *numpy])
    (place / "ready").touch()
    return place


def call(command: Sequence[str], folder: Path | None = None) -> None:
    """Runs a command to its end.

    Raises:
        ConvMAEError: it fails, with the last line of what it said.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ConvMAEError(f"no answer within {TIMEOUT} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        first = next(
            (place for place, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception|Fail)\b", line)), -1
        )
        said = re.sub(r"\S*/", "", " ".join(lines[first:]))  # no paths of this machine
        raise ConvMAEError(said[:MAX_NOTE] or f"it ended with status {done.returncode}")


def outputs_of(place: Path, runtime: str, graph: Path, name: str, images: NDArray[np.float32]) -> dict[str, Any]:
    """What a runtime gives; nothing where it only builds.

    Raises:
        ConvMAEError: it refuses the graph or does not run it.
    """
    with TemporaryDirectory() as folder:
        if package_of(runtime) in NODE_PACKAGES:
            return outputs_of_node(place, runtime, graph, name, images, Path(folder))
        given, found = Path(folder) / "input.npz", Path(folder) / "output.npz"
        np.savez(given, **{name: images})  # type: ignore[arg-type]  # numpy types the keywords as its own flag
        python = str(place / "venv/bin/python")
        call([python, str(HERE / "run_elsewhere.py"), package_of(runtime), str(graph), str(given), str(found)])
        with np.load(found) as arrays:
            return dict(arrays)


def outputs_of_node(
    place: Path, runtime: str, graph: Path, name: str, images: NDArray[np.float32], folder: Path
) -> dict[str, Any]:
    """The same, of node."""
    (folder / "input.json").write_text(json.dumps({"input": name, "shape": images.shape}), encoding="utf-8")
    (folder / "input.bin").write_bytes(images.tobytes())
    script = str(HERE / "run_elsewhere.mjs")
    call(["node", script, package_of(runtime), str(graph.resolve()), str(folder)], folder=place)
    described = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
    types = {"float32": "<f4", "int64": "<i8", "int32": "<i4"}
    return {
        key: np.fromfile(folder / f"{key}.bin", types[entry["type"]]).reshape(entry["shape"])
        for key, entry in described.items()
    }


def decibels(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """The lowest signal-to-noise ratio of an output.

    Raises:
        ConvMAEError: an output is missing or of another shape.
    """
    lowest = EXACT_DB
    for name, values in expected.items():
        if name not in found or found[name].shape != values.shape:
            shape = f"the shape {found[name].shape}, not {values.shape}" if name in found else "nothing"
            raise ConvMAEError(f"{name}: it gives {shape}")
        exact = values.astype(np.float64)
        noise = float(np.linalg.norm(exact - found[name]))
        if not np.isfinite(noise):
            raise ConvMAEError(f"{name}: it gives NaN or infinity")
        lowest = min(lowest, signal_to_noise(float(np.linalg.norm(exact)), noise))
    return lowest


def cells_of(bundle: Bundle, environments: Mapping[str, Path | str], notes: list[str]) -> dict[tuple[str, str], str]:
    """(runtime, file) -> its cell, for one bundle."""
    manifest, task = bundle.manifest, task_of(bundle.manifest)
    count = min(IMAGES, manifest.input.max_batch)
    samples = verification_samples(task, manifest.preprocessing, None, None, count)
    images = np.stack(samples.inputs(task, manifest.preprocessing, 0, count)).astype(np.float32)
    outputs = [name for name in manifest.outputs if name in JUDGED] if task.GIVES_LISTS else list(manifest.outputs)
    expected = onnx_runner(checked_path(bundle, None), outputs)(images)
    cells: dict[tuple[str, str], str] = {}
    for file, described in manifest.files.items():
        for runtime, place in environments.items():
            try:
                if isinstance(place, str):
                    raise ConvMAEError(place)
                found = outputs_of(place, runtime, checked_path(bundle, file), manifest.input.name, images)
                ratio = decibels(expected, found) if found else None
                cell = BUILT if ratio is None else f"{ratio:.0f} dB"
                if ratio is not None and ratio < LEAST[described.precision]:
                    raise ConvMAEError(f"{cell}, and {LEAST[described.precision]:g} are expected")
            except ConvMAEError as error:
                cell = f"{REFUSED} ({note_number(notes, f'{runtime}: {error}')})"
            print(f"{file} of {manifest.task} in {runtime}: {cell}", file=sys.stderr)
            cells[runtime, file] = cell
    return cells


def note_number(notes: list[str], note: str) -> int:
    """Its place among the notes, counted from 1; those that differ in the name of a node alone are one."""
    known = [re.sub(NAMES, "", one) for one in notes]
    if (key := re.sub(NAMES, "", note)) not in known:
        known.append(key)
        notes.append(note)
    return known.index(key) + 1


def merged(cells: Mapping[str, str]) -> str:
    """One cell of those of several tasks: the lowest figure, and the tasks that have none."""
    figures = [cell for cell in cells.values() if not cell.startswith(REFUSED)]
    refused: dict[str, list[str]] = {}
    for task, cell in cells.items():
        if cell not in figures:
            refused.setdefault(cell, []).append(task)
    if not figures and len(refused) == 1:
        return next(iter(refused))
    lowest = min(figures, key=lambda cell: 0.0 if cell == BUILT else float(cell.split()[0]), default=None)
    return "; ".join(
        [*([] if lowest is None else [lowest]), *(f"{', '.join(tasks)}: {cell}" for cell, tasks in refused.items())]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    config = tyro.cli(
        CompatibilityConfig,
        args=arguments,
        prog="python -m benchmarks.compatibility",
        description=__doc__.split("\n")[0],
    )
    environments: dict[str, Path | str] = {}
    for runtime in config.runtime:
        try:
            environments[runtime] = environment(config.folder.resolve(), runtime)
        except ConvMAEError as error:
            environments[runtime] = f"it cannot be installed here: {error}"
    notes: list[str] = []
    tables = {}
    for path in config.bundles:
        bundle = load_bundle(path)
        tables[bundle.manifest.task] = cells_of(bundle, environments, notes)
    files = list(dict.fromkeys(file for table in tables.values() for _, file in table))
    header = ["runtime", *(f"`{file}`" for file in files)]
    rows = [
        [
            runtime.replace("==", " "),
            *(
                merged({task: table[runtime, file] for task, table in tables.items() if (runtime, file) in table})
                for file in files
            ),
        ]
        for runtime in environments
    ]
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |")
    print("\n" + "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1)))


if __name__ == "__main__":
    run_program(main)
