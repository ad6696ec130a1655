"""Searches for bytes that break the readers of what strangers send, guided by coverage.

    python -m tests.fuzz images tiff --minutes 20 --out runs/fuzz
    python -m tests.fuzz all

Ends with status 1 where a promise is broken: another exception than the reader's own, a warning, a crash, seconds of
CPU time
or hundreds of megabytes for a few bytes. OUT/TARGET/finds holds the shortest input of each kind and what it does;
OUT/TARGET/corpus is where the next search goes on from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import SOME_INPUTS_BAD, require_extra, run_program
from tests.fuzz.finds import INPUT
from tests.fuzz.search import Result, search
from tests.fuzz.targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """A search for bytes that break a reader."""

    targets: Annotated[tuple[str, ...], tyro.conf.Positional]  # names of targets, or "all"
    minutes: float = 20.0  # for each target
    out: Path = Path("runs/fuzz")  # folder of corpora and finds; a search goes on from what is there
    seed: int = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - {*TARGETS, "all"})
        if unknown or not self.targets:
            raise ConvMAEError(f"targets must be all or some of {', '.join(TARGETS)}; got {unknown or 'none'}")
        if not 0 < self.minutes <= 24 * 60:
            raise ConvMAEError(f"--minutes must be above 0 and at most 1440; got {self.minutes:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its status."""
    config = tyro.cli(FuzzConfig, args=arguments, prog="python -m tests.fuzz", description=__doc__)
    require_extra("fuzz", ["atheris"])
    console = Console(emoji=False, markup=False)
    results = []
    for name in TARGETS if "all" in config.targets else dict.fromkeys(config.targets):
        console.print(f"{name}: {TARGETS[name].reader}, {config.minutes:g} minutes")
        results.append(search(name, TARGETS[name], 60 * config.minutes, config.out, config.seed))
    console.print(_table(results))
    for result in results:
        for find in result.finds:
            where = f"{len(find.data)} bytes, {find.folder / INPUT}"
            console.print(f"{result.target}: {find.kind}: {find.sentence[:200]} ({where})", soft_wrap=True)
    return SOME_INPUTS_BAD if any(result.finds for result in results) else 0


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for title in ("target", "minutes", "inputs", "a second", "places", "features", "corpus", "MiB", "finds"):
        table.add_column(title, justify="left" if title == "target" else "right")
    for result in results:
        figures = result.coverage, result.features, result.corpus, result.peak_mib, len(result.finds)
        rate = result.executions / max(result.seconds, 1e-9)
        rates = f"{result.seconds / 60:.1f}", str(result.executions), f"{rate:.0f}"
        table.add_row(result.target, *rates, *map(str, figures))
    return table


if __name__ == "__main__":
    run_program(main)
