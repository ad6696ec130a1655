"""What a GPU is to settle, in order of worth, within a number of minutes.

    python -m benchmarks.gpu --out DIR [--minutes 12] [--parts step tests …] [--dry-run]

Each part is a process of its own with a budget: one that hangs, or takes the GPU's memory, ends alone. While it runs
and after it, the page `DIR/gpu.html` (expected beside found) and `DIR/gpu.json` are written anew, so that whatever ends
the run leaves what was found until then. A part that would begin too late is left out and said to be. With --dry-run
everything runs small on the CPU, in one process: that says that the parts run, and its figures mean nothing.

The expectations are estimates for an H200 from counted operations and bytes (4.3 TB/s, 790 TFLOP/s in bf16); nothing
here has run on a GPU yet. It needs PyTorch 2.11 or newer, and what `training` imports; pytest and ONNX Runtime for one
part each.
"""

import html
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import tyro

from benchmarks.gpu_parts import EXPECTED, PARTS, Expectation, measure
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import SOME_INPUTS_BAD, run_program

LEAST_SECONDS: Final = 10.0  # that a part is begun with
GRACE_SECONDS: Final = 5.0  # from asking a part to end to ending it
WRITE_SECONDS: Final = 2.0  # from one look at what a part has found to the next
SAID: Final = 2000  # characters of what a part wrote that are kept where it failed
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
th[colspan] { padding-top: 1rem }
.off td { background: #fdecea }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Options:
    """Measures a GPU, and what runs on it."""

    out: Path
    """Folder for the page and the figures; made where there is none."""
    minutes: float = 12.0
    """For all parts together."""
    dry_run: bool = False
    """Run every part small, on the CPU."""
    parts: tuple[str, ...] = tuple(PARTS)
    """Which, in this order."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a part."""

    part: str
    state: str  # running, done, failed, out of time, not begun
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    said: str = ""  # the end of what it wrote, where it failed


def main(options: Options) -> int:
    """Runs the parts; 1 where one failed, or was left out."""
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown or not options.minutes > 0:
        raise ConvMAEError(
            f"expected parts among {', '.join(PARTS)} and more than 0 minutes; got {', '.join(options.parts)} and "
            f"{options.minutes:g}"
        )
    if not options.dry_run and not torch.cuda.is_available():
        raise ConvMAEError("benchmarks.gpu needs an NVIDIA GPU that PyTorch can use, found none; --dry-run needs none")
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_parts(options, time.monotonic)
    print(f"{options.out / 'gpu.html'}: {sum(outcome.state == 'done' for outcome in outcomes)} of {len(outcomes)} done")
    return 0 if all(outcome.state == "done" for outcome in outcomes) else SOME_INPUTS_BAD


def run_parts(options: Options, clock: Callable[[], float]) -> list[Outcome]:
    """What became of each part, written as it goes.

    Args:
        options: of the run.
        clock: seconds that have passed.
    """
    end = clock() + 60 * options.minutes
    outcomes: list[Outcome] = []
    for name in options.parts:
        left = end - clock()
        outcome = Outcome(part=name, state="running" if left >= LEAST_SECONDS else "not begun")
        outcomes.append(outcome)
        if outcome.state == "running":
            run = run_dry if options.dry_run else run_part
            run(outcome, min(left, PARTS[name].seconds), clock, lambda: write(outcomes, options))
        write(outcomes, options)
        print(f"{name}: {outcome.state}, {outcome.seconds:g} s", flush=True)
    return outcomes


def run_part(outcome: Outcome, seconds: float, clock: Callable[[], float], advance: Callable[[], None]) -> None:
    """Runs a part in a process of its own, with all that it starts.

    Args:
        outcome: is filled in.
        seconds: the longest that it may take.
        clock: seconds that have passed.
        advance: is called whenever it may have found more.
    """
    began = clock()
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", outcome.part, str(results)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None and clock() - began < seconds:
                try:
                    process.wait(min(WRITE_SECONDS, max(seconds - (clock() - began), 0)))
                except subprocess.TimeoutExpired:
                    fill_in(outcome, results, clock() - began)
                    advance()
            status = process.poll()
        finally:
            end_group(process)
        outcome.state = "out of time" if status is None else "failed" if status else "done"
        fill_in(outcome, results, clock() - began)
        if outcome.state != "done":
            outcome.said = log.read_text(errors="replace")[-SAID:]


def run_dry(outcome: Outcome, seconds: float, clock: Callable[[], float], advance: Callable[[], None]) -> None:
    """A small part, in this process, as a new one would spend most of its time on imports; arguments as `run_part`."""
    began = clock()
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results", Path(folder) / "log"
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                measure(outcome.part, results, dry=True)
                outcome.state = "done"
            except Exception:  # as one that raises ends a process of its own
                outcome.state = "failed"
                traceback.print_exc()
        fill_in(outcome, results, clock() - began)
        if outcome.state == "failed":
            outcome.said = log.read_text()[-SAID:]


def fill_in(outcome: Outcome, results: Path, seconds: float) -> None:
    """What a part has found so far."""
    outcome.seconds = round(seconds, 1)
    if results.is_file():
        outcome.found = json.loads(results.read_text())


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and what it has started, first by asking."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def write(outcomes: Sequence[Outcome], options: Options) -> None:
    """Replaces the page and the figures."""
    with atomic_file(options.out / "gpu.json") as temporary:
        temporary.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    with atomic_file(options.out / "gpu.html") as temporary:
        temporary.write_text(page(outcomes, options), encoding="utf-8")


def page(outcomes: Sequence[Outcome], options: Options) -> str:
    """Expected beside found, a line each."""
    where = f"CPU ({processor()}, {available_cores()} cores)" if options.dry_run else torch.cuda.get_device_name()
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>On a GPU</title>',
        f"<style>{STYLE}</style><h1>On a GPU</h1>",
        f"<p>{html.escape(where)}; PyTorch {torch.__version__}. Expected: estimates for an H200.</p>",
        "<p><strong>A dry run on a CPU: the figures mean nothing.</strong></p>" if options.dry_run else "",
        "<table><tr><th>what<th>expected<th>found</tr>",
    ]
    for outcome in outcomes:
        lines.append(f"<tr><th colspan=3>{outcome.part}: {outcome.state}, {outcome.seconds:g} s</tr>")
        for what, value in outcome.found.items():
            expected = EXPECTED.get(what, Expectation(""))
            kind = "" if options.dry_run or expected.holds(value) else ' class="off"'
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            cells = "".join(f"<td>{html.escape(text)}" for text in (what, expected.words, shown))
            lines.append(f"<tr{kind}>{cells}</tr>")
    lines.append("</table>")
    for outcome in outcomes:
        if outcome.said:
            lines.append(f"<h2>{outcome.part}: {outcome.state}</h2><pre>{html.escape(outcome.said.strip())}</pre>")
    return "\n".join(lines) + "</html>\n"


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.gpu", description=__doc__)))
