"""What a GPU is to settle, in order of worth, within a number of minutes.

    python -m benchmarks.gpu --out DIR [--minutes 12] [--dry-run]

Each part is a process of its own with a budget: one that hangs, or takes the GPU's memory, ends alone. After each, the
page `DIR/gpu.md` (expected beside found) and `DIR/gpu.json` are written anew, so that whatever ends the run leaves what
was found until then. A part that would begin too late is left out and said to be. With --dry-run everything runs small
on the CPU: that says that the parts run, and its figures mean nothing.

The expectations are estimates for an H200 from counted operations and bytes (4.3 TB/s, 790 TFLOP/s in bf16); nothing
here has run on a GPU yet. It needs PyTorch 2.11 or newer, and what `training` imports.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tyro

from benchmarks.gpu_parts import EXPECTED, PARTS, measure
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.program import SOME_INPUTS_BAD, run_program

LEAST_SECONDS: Final = 10.0  # that a part is begun with
GRACE_SECONDS: Final = 5.0  # from asking a part to end to ending it


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
    state: str  # done, failed, out of time, not begun
    seconds: float = 0.0
    found: dict[str, Any] | None = None
    said: str = ""  # the end of what it wrote, where it failed


def main(options: Options) -> int:
    """Runs the parts; 1 where one failed, or was left out."""
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown or not options.minutes > 0:
        raise ConvMAEError(
            f"expected parts among {', '.join(PARTS)} and more than 0 minutes; got {', '.join(options.parts)} and "
            f"{options.minutes:g}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_parts(options, time.monotonic)
    print(page(outcomes, options))
    return 0 if all(outcome.state == "done" for outcome in outcomes) else SOME_INPUTS_BAD


def run_parts(options: Options, clock: Callable[[], float]) -> list[Outcome]:
    """What became of each part, written after each.

    Args:
        options: of the run.
        clock: seconds that have passed.
    """
    end = clock() + 60 * options.minutes
    outcomes: list[Outcome] = []
    for name in options.parts:
        left = end - clock()
        if left < LEAST_SECONDS:
            outcomes.append(Outcome(part=name, state="not begun"))
        else:
            outcomes.append(run_part(name, min(left, PARTS[name].seconds), options, clock))
        write(outcomes, options)
    return outcomes


def run_part(name: str, seconds: float, options: Options, clock: Callable[[], float]) -> Outcome:
    """Runs a part in a process of its own, with all that it starts."""
    began = clock()
    if options.dry_run and seconds >= LEAST_SECONDS:
        return dry_part(name, options.out / f"{name}.json", began, clock)
    results, log = options.out / f"{name}.json", options.out / f"{name}.log"
    results.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_parts",
        name,
        str(results),
        *(["--dry-run"] if options.dry_run else []),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(seconds)
            state = "done" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            end_group(process)
    found = json.loads(results.read_text()) if results.is_file() else None
    said = "" if state == "done" else log.read_text(errors="replace")[-2000:]
    return Outcome(part=name, state=state, seconds=round(clock() - began, 1), found=found, said=said)


def dry_part(name: str, results: Path, began: float, clock: Callable[[], float]) -> Outcome:
    """A part in this process: a new one spends most of its time on imports."""
    try:
        measure(name, results, dry=True)
        state, said = "done", ""
    except Exception as error:  # a part may raise anything, as it ends a process of its own with it otherwise
        state, said = "failed", f"{type(error).__name__}: {error}"
    found = json.loads(results.read_text()) if results.is_file() else None
    return Outcome(part=name, state=state, seconds=round(clock() - began, 1), found=found, said=said)


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
        temporary.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1) + "\n")
    with atomic_file(options.out / "gpu.md") as temporary:
        temporary.write_text(page(outcomes, options) + "\n")


def page(outcomes: Sequence[Outcome], options: Options) -> str:
    """Expected beside found, a line each."""
    lines = ["# On a GPU", ""]
    if options.dry_run:
        lines += ["**A dry run on a CPU: the figures mean nothing.**", ""]
    lines += ["| part | what | expected | found |", "|---|---|---|---|"]
    for outcome in outcomes:
        rows = outcome.found or {}
        lines.append(f"| {outcome.part} | {outcome.state}, {outcome.seconds:g} s | | |")
        lines += [f"| | {what} | {EXPECTED.get(what, '')} | {shown(value)} |" for what, value in rows.items()]
    for outcome in outcomes:
        if outcome.said:
            lines += ["", f"## {outcome.part} {outcome.state}", "", "```", outcome.said.strip(), "```"]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A number with three digits, others as they are."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.gpu", description=__doc__)))
