"""How good is an exported model on labelled data, by class? Its task's metric, through the runtime.

    python -m benchmarks.accuracy serving/bundles/imagenette-nano --data photos/ [--split val]
    python -m benchmarks.accuracy serving/bundles/street-nano --data camvid/

Photos and videos are decoded and preprocessed exactly as the server and `convmae predict` do it. The metric and its
change from file to file is also what `python -m export.verify B --data photos/` says; here it is by class.
"""

from collections.abc import Sequence
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
from export.verification.task_data import ClassScores, TaskMetric


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Measures a bundle on labelled data, as the training programs read them."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder of the exported model
    data: Path  # folder of the data
    split: str = "val"  # part of it


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a model is worth on a split."""

    metrics: Sequence[TaskMetric]
    by_class: ClassScores
    undecoded: int  # photos or videos, which are not counted


def measure(predictor: Predictor, data: Path, split: str) -> Accuracy:
    """Predicts every photo or video of a split.

    Raises:
        ConvMAEError: there are none, none has a label, none can be decoded, or a class is not one of the model's.
    """
    labelled = read_task_data(data, predictor.manifest, split=split)
    if not labelled.labelled:
        raise ConvMAEError(f"--data must hold labels of {split!r} beside its {labelled.kind}; found none in {data}")
    predictions = labelled.predictions(predictor)
    return Accuracy(
        metrics=labelled.metrics(predictions),
        by_class=labelled.by_class(predictions, predictor.manifest.classes),
        undecoded=sum(prediction is None for prediction in predictions),
    )


def table_of(scores: ClassScores) -> Table:
    """A row a class, and last that of all."""
    rows = list(scores.items())
    table = Table("class", *rows[-1][1])
    for place, (name, values) in enumerate(rows, start=1):
        digits = 2 if place == len(rows) else 1
        cells = (str(value) if isinstance(value, int) else f"{value:.{digits}f}" for value in values.values())
        table.add_row(name, *cells, end_section=place == len(rows) - 1)
    return table


def main() -> None:
    """The command."""
    config = tyro.cli(AccuracyConfig, prog="python -m benchmarks.accuracy", description=AccuracyConfig.__doc__)
    accuracy = measure(open_predictor(config.bundle), config.data, config.split)
    console = Console()
    if accuracy.by_class:
        console.print(table_of(accuracy.by_class))
    for metric in accuracy.metrics:
        console.print(f"{metric.name} {metric.value:.2f} %, {metric.samples} samples")
    if accuracy.undecoded:
        console.print(f"{accuracy.undecoded} could not be decoded and are not counted")


if __name__ == "__main__":
    run_program(main)
