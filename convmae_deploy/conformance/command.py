"""`convmae conform`: what another program does otherwise than a bundle says, in words."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from convmae_deploy.backends.base import Backend, FloatArray, Outputs
from convmae_deploy.backends.runtimes import start_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import KIT_NAME, Precision
from convmae_deploy.conformance.judging import (
    LEAST_DB,
    LEAST_DB_OF_FILES,
    Arrays,
    Finding,
    Run,
    judge_inputs,
    judge_outputs,
)
from convmae_deploy.conformance.kit import KitItem, input_key, kit_outputs, output_key, read_kit
from convmae_deploy.conformance.programs import Server, graph_runner, read_arrays
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_text
from convmae_deploy.printing import printable
from convmae_deploy.program import SOME_INPUTS_BAD
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.terminal import Terminal

MAX_KEY_BYTES = 64 * 1024
FILES, INPUTS = "outputs for the file", "outputs for the right input"


def conform_with(
    path: Path, *, url: str | None, npz: Path | None, onnx: Path | None, precision: Precision, key_file: Path | None
) -> int:
    """Judges a program, prints what was found and returns the exit status.

    Args:
        path: of the bundle.
        url: of a server.
        npz: what a program wrote.
        onnx: a graph.
        precision: that the program computes in.
        key_file: with the server's key.

    Raises:
        ConvMAEError: it cannot be judged.
    """
    if [url, npz, onnx].count(None) != 2:
        raise ConvMAEError("expected one of http://HOST:PORT, --npz FILE and --onnx FILE after the bundle; give one")
    if key_file is not None and url is None:
        raise ConvMAEError("--api-key-file is for a server; leave it out")
    bundle = load_bundle(path)
    kit = read_kit(bundle)
    if url is not None:
        key = None if key_file is None else read_text(key_file, MAX_KEY_BYTES).strip()
        findings = _of_server(bundle, kit, Server(url, bundle.manifest, key), precision)
    elif onnx is not None:
        run = graph_runner(onnx, bundle.manifest)
        findings = _of_graph(bundle, kit, run, precision)
    else:
        assert npz is not None
        findings = _of_arrays(bundle, kit, npz, precision)
    _print(findings, Terminal())
    return 0 if all(one.passed for one in findings) else SOME_INPUTS_BAD


def _of_arrays(bundle: Bundle, kit: Sequence[KitItem], path: Path, precision: Precision) -> list[Finding]:
    """Inputs and outputs that a program wrote; an output is judged alone where its input is right or not there."""
    arrays = read_arrays(path)
    names = [item.photo.name for item in kit]
    inputs = {name: arrays[input_key(name)] for name in names if input_key(name) in arrays}
    outputs: dict[str, Arrays] = {
        name: found
        for name in names
        if (found := {one: arrays[key] for one in bundle.manifest.outputs if (key := output_key(name, one)) in arrays})
    }
    if not inputs and not outputs:
        raise ConvMAEError(
            f"{path} must hold arrays such as {input_key(names[0])} or "
            f"{output_key(names[0], task_of(bundle.manifest).KEY_OUTPUT)}, as {KIT_NAME} does; found "
            f"{', '.join(arrays)[:200] or 'none'}"
        )
    manifest = bundle.manifest
    findings = judge_inputs(manifest, kit, inputs)
    right = [name for name, one in zip(inputs, findings, strict=True) if one.passed and name in outputs]
    of_files = {name: found for name, found in outputs.items() if name not in inputs}
    return [
        *findings,
        *judge_outputs(
            manifest, kit, {name: outputs[name] for name in right}, what=INPUTS, least_db=LEAST_DB[precision], run=None
        ),
        *judge_outputs(
            manifest, kit, of_files, what=FILES, least_db=_least_of_files(precision), run=_own_graph(bundle)
        ),
    ]


def _of_graph(bundle: Bundle, kit: Sequence[KitItem], run: Run, precision: Precision) -> list[Finding]:
    found = {item.photo.name: run(item.input[None]) for item in kit}
    least = LEAST_DB[precision]
    return judge_outputs(bundle.manifest, kit, found, what=INPUTS, least_db=least, run=run, theirs=True)


def _of_server(bundle: Bundle, kit: Sequence[KitItem], server: Server, precision: Precision) -> list[Finding]:
    """Both ways into a server, where it has both: what it makes of right inputs, and of files."""
    findings = _of_graph(bundle, kit, server.run_input, precision) if server.takes_inputs else []
    if server.takes_files:
        found = {item.photo.name: server.run_file(item.photo.content) for item in kit}
        least = _least_of_files(precision)
        findings += judge_outputs(bundle.manifest, kit, found, what=FILES, least_db=least, run=_own_graph(bundle))
    return findings


def _least_of_files(precision: Precision) -> float:
    return min(LEAST_DB_OF_FILES, LEAST_DB[precision])


def _own_graph(bundle: Bundle) -> Run:
    """The bundle's default graph, started when it is first needed."""
    backends: list[Backend] = []

    def run(image: FloatArray) -> Outputs:
        if not backends:
            backends.append(start_backend(bundle, device="cpu"))
        return backends[0].run(image, kit_outputs(bundle.manifest))

    return run


def _print(findings: Sequence[Finding], console: Terminal) -> None:
    """A line for each photo, and what to mend."""
    table = Table("photo", "compared", "difference", "")
    for one in findings:
        table.add_row(printable(one.photo), one.what, one.difference, Text(one.verdict, overflow="fold"))
    console.print(table)
    wrong = [one for one in findings if not one.passed]
    for words in dict.fromkeys(one.verdict for one in wrong if one.mistakes is not None):
        photos = ", ".join(one.photo for one in wrong if one.verdict == words)
        console.print(f"{words} ({printable(photos)}).", highlight=False)
    if not wrong:
        console.print(f"It conforms: {len(findings)} of {len(findings)} comparisons hold.", highlight=False)
    elif any(one.mistakes is None for one in wrong):
        console.print(
            f"No known mistake explains the rest; {KIT_NAME} in the bundle holds the photos, the right inputs and "
            "outputs and the steps in words. A program that computes in half precision or int8 is judged so with "
            "--precision.",
            highlight=False,
        )
