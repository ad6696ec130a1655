"""How often is an exported classifier right? Top-1 and top-5 on a labelled folder of photos, through the runtime.

    python -m benchmarks.accuracy serving/bundles/imagenette-nano --data photos/ [--split val]

The photos are decoded and preprocessed exactly as the server and `convmae predict` do it, and run in batches. Top-1 and
its change from file to file is also what `python -m export.verify B --data photos/` says; here it is by class.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import run_program
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.base import Predictor
from export.tasks import read_task_data
from export.tasks.classification import ClassifiedData


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Measures a bundle's accuracy on DATA/SPLIT/<class>/*."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder of the exported model
    data: Path  # folder of photos; a classes.json in it names the classes
    split: str = "val"  # folder below it


@dataclass(frozen=True, kw_only=True)
class BundleAccuracy:
    """Counts over a split."""

    photos: Counter[str]  # by class
    first: Counter[str]  # right at the first place, by class
    five: Counter[str]  # among the first five, by class
    unreadable: int

    def percent(self, hits: Counter[str], name: str | None = None) -> float:
        """Share of a class, or of all, in percent."""
        chosen = [name] if name is not None else list(self.photos)
        return 100 * sum(hits[key] for key in chosen) / sum(self.photos[key] for key in chosen)


def measure(predictor: Predictor, data: Path, split: str) -> BundleAccuracy:
    """Classifies every photo of a split.

    Raises:
        ConvMAEError: there are none, none can be decoded, or a class of the folder is not one of the model's.
    """
    labelled = read_task_data(data, predictor.manifest, split=split)
    if not isinstance(labelled, ClassifiedData) or labelled.labels is None:
        raise ConvMAEError(f"--data must hold photos by class in {data / split}; found no such folder")
    predictions = labelled.predictions(predictor)
    photos, first, five = Counter[str](), Counter[str](), Counter[str]()
    for label, logits in zip(labelled.labels, predictions, strict=True):
        if logits is not None:
            name, place = predictor.manifest.classes[label], int((logits > logits[label]).sum())
            photos[name] += 1
            first[name] += place < 1
            five[name] += place < 5
    return BundleAccuracy(photos=photos, first=first, five=five, unreadable=len(predictions) - photos.total())


def main() -> None:
    """The command."""
    config = tyro.cli(AccuracyConfig, prog="python -m benchmarks.accuracy", description=AccuracyConfig.__doc__)
    accuracy = measure(open_predictor(config.bundle), config.data, config.split)
    table = Table("class", "photos", "top-1 %", "top-5 %")
    for name, count in accuracy.photos.items():
        shares = (f"{accuracy.percent(hits, name):.1f}" for hits in (accuracy.first, accuracy.five))
        table.add_row(name, str(count), *shares)
    totals = (f"{accuracy.percent(hits):.2f}" for hits in (accuracy.first, accuracy.five))
    table.add_section()
    table.add_row("all", str(accuracy.photos.total()), *totals)
    console = Console()
    console.print(table)
    if accuracy.unreadable:
        console.print(f"{accuracy.unreadable} photos could not be decoded and are not counted")


if __name__ == "__main__":
    run_program(main)
