"""Each epoch is told of, and the best validation is recognised."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.epoch_log import EpochLog
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_setup import Setup
from convmae_deploy.models.convmae import nano
from tests.engine.updates import Updates


class ScoredRecipe(Recipe):
    best_by = "miou"
    best_label = "mIoU"


def begin(out: Path, **settings: Any) -> EpochLog:
    config = TrainingConfig(
        data=Path("data/photos"),
        optimisation=OptimisationConfig(epochs=5),
        run=RunConfig(out=out, precision="fp32"),
    )
    model = nn.Linear(2, 2)
    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = Setup.of(config).begin(record, model, optimizer, Updates(3), {"train_photos": 3, "val_photos": 2})
    return EpochLog(recipe=ScoredRecipe(config=config, run=run), console=Console(quiet=True), **settings)


def scored(value: float) -> Validation:
    return Validation(scores={"miou": value, "other": 1.0}, summary=f"mIoU {value:.1f}", images=2, unreadable=0)


def test_a_validation_is_due_every_so_many_epochs_and_after_the_last(tmp_path: Path) -> None:
    often, never = begin(tmp_path / "often", validation_epochs=2), begin(tmp_path / "never")
    assert [often.is_due(epoch) for epoch in range(5)] == [False, True, False, True, True]
    assert not any(never.is_due(epoch) for epoch in range(5))


def test_a_picture_is_due_every_so_many_epochs_and_after_the_last(tmp_path: Path) -> None:
    often, never = begin(tmp_path / "often", picture_epochs=2), begin(tmp_path / "never")
    assert [often.picture_is_due(epoch) for epoch in range(5)] == [False, True, False, True, True]
    assert not any(never.picture_is_due(epoch) for epoch in range(5))


@pytest.mark.slow
def test_only_a_better_score_is_the_best(tmp_path: Path) -> None:
    log = begin(tmp_path / "run", validation_epochs=1)
    records = [log.finish(epoch, 1.0, scored(value)) for epoch, value in enumerate((40.0, 30.0, 40.0, 41.0))]
    assert [record is not None for record in records] == [True, False, False, True]
    assert log.run.progress.best_metric == 41
    assert records[3] is not None and records[3].provenance is not None
    assert records[3].provenance["validation"] == "mIoU 41.0 on 2 photos" and records[3].provenance["epoch"] == "4 of 5"
    assert records[3].provenance["data"] == "3 training and 2 validation photos of photos"


@pytest.mark.slow
def test_lines_and_curves_have_the_scores_where_there_was_a_validation(tmp_path: Path) -> None:
    log = begin(tmp_path / "run")
    assert log.finish(0, 2.0) is None
    log.finish(1, 1.5, scored(3.0))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "val_miou" not in lines[0] and (lines[1]["val_miou"], lines[1]["val_other"]) == (3.0, 1.0)
    assert [(line["epoch"], line["train_loss"], line["lr"]) for line in lines] == [(1, 2.0, 0.5), (2, 1.5, 0.5)]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_validation_is_told_with_its_loss_where_it_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = begin(tmp_path / "run", validation_epochs=1)
    log.console = Console(width=200)
    log.finish(0, 2.0, Validation(scores={"loss": 0.25, "miou": 50.0}, summary="mIoU 50.00 %", images=2, unreadable=0))
    log.finish(1, 1.5, Validation(scores={"miou": 60.0}, summary="mIoU 60.00 %", images=2, unreadable=0))
    told = capsys.readouterr().out.splitlines()[-2:]
    assert told[0] == "epoch 1/5: training loss 2.0000, validation loss 0.2500, mIoU 50.00 %"
    assert told[1] == "epoch 2/5: training loss 1.5000, mIoU 60.00 %"


def test_a_best_checkpoint_is_named_where_there_is_one(tmp_path: Path) -> None:
    recipe, run = begin(tmp_path / "run").recipe, tmp_path / "run"
    words = f"there is no checkpoint {run}/best; the weights after the last update are {run}/last"
    assert recipe.last_words() == words
    (run / "best").mkdir()
    recipe.run.progress.best_metric = 41.0
    assert recipe.last_words() == f"best validation mIoU 41.00 %: {run}/best"
