"""How often is an exported classifier right? Top-1 and top-5 on a labelled folder of photos, through the runtime.

    python -m benchmarks.accuracy serving/bundles/imagenette-nano --data photos/ [--split val]

The photos are decoded, preprocessed and run exactly as the server and `convmae predict` do it, without torch.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.program import run_program
from convmae_deploy.tasks.classification import Classifier


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


def measure(predictor: Classifier, data: Path, split: str) -> BundleAccuracy:
    """Classifies every photo of a split.

    Raises:
        ConvMAEError: there are none, or a class of the folder is not one of the model's.
    """
    folder = read_photo_folder(data, split)
    unknown = sorted(set(folder.classes) - set(predictor.manifest.classes))
    if unknown:
        raise ConvMAEError(
            f"{data} has classes that {predictor.manifest.name} does not know, for instance {unknown[0]!r}"
        )
    photos, first, five = Counter[str](), Counter[str](), Counter[str]()
    unreadable = 0
    pairs = list(zip(folder.photos, folder.labels, strict=True))
    for path, label in track(pairs, "Classifying", console=Console(stderr=True), transient=True):
        try:
            image = read_photo(path).image
        except ConvMAEError:
            unreadable += 1
            continue
        name = folder.classes[label]
        found = [prediction.label for prediction in predictor.classify([image], top_k=5)[0]]
        photos[name] += 1
        first[name] += found[0] == name
        five[name] += name in found
    return BundleAccuracy(photos=photos, first=first, five=five, unreadable=unreadable)


def main() -> None:
    """The command."""
    config = tyro.cli(AccuracyConfig, prog="python -m benchmarks.accuracy", description=AccuracyConfig.__doc__)
    accuracy = measure(Classifier.open(config.bundle), config.data, config.split)
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
