"""One update: every readable photo weighs the same, whatever micro-batch and process it is in."""

import io
import json
import math
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_loop import Figures, Queued, TrainingLoop, Update
from convmae_deploy.engine.training_run import SKIPPED_UPDATES_IN_A_ROW, TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import nano
from tests.processes import RunProcesses

PHOTOS = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def micro_batch(*photos: int, unreadable: int = 0) -> MicroBatch:
    """Some of PHOTOS with their indices as labels, as `collate_readable` gives them."""
    if not photos:
        return torch.empty(0), torch.empty(0, dtype=torch.long), unreadable
    return PHOTOS[list(photos)], torch.tensor(photos), unreadable


@dataclass(kw_only=True)
class LinearRecipe(Recipe):
    """The mean squared error of a linear model."""

    seen: list[Any] = field(default_factory=list)  # what came beside the images

    def loss(self, images: Tensor, extra: Any) -> Tensor:
        self.seen.append(extra)
        targets = torch.stack([each["target"] for each in extra]) if isinstance(extra, list) else extra.float()
        predictions: Tensor = self.run.model(images.flatten(1)).squeeze(1)
        return F.mse_loss(predictions, targets)


def build_loop(out: Path, *, micro_batches: int = 1) -> TrainingLoop:
    """A loop to call `update` of, in which SGD shows every gradient."""
    accelerator = Accelerator(cpu=True)
    accelerator.gradient_accumulation_steps = micro_batches
    accelerator.step = 0
    torch.manual_seed(0)
    model = nn.Linear(3 * 4 * 4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    run = TrainingRun(
        config=RunConfig(out=out),
        accelerator=accelerator,
        folder=RunFolder(out),
        record=CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",)),
        model=model,
        optimizer=optimizer,
    )
    return TrainingLoop(
        run=run,
        source=None,  # type: ignore[arg-type]
        recipe=LinearRecipe(config=TrainingConfig(data=out, run=run.config), run=run),
        console=Console(quiet=True),
        log=None,  # type: ignore[arg-type]  # no test trains an epoch
    )


def with_adamw(loop: TrainingLoop) -> torch.optim.AdamW:
    """The optimizer that training programs have, in place of the loop's."""
    optimizer = torch.optim.AdamW(loop.run.model.parameters(), lr=0.01, fused=True)
    object.__setattr__(loop.run, "optimizer", loop.run.accelerator.prepare(optimizer))
    return optimizer


def weights_after(out: Path, *updates: list[MicroBatch]) -> Tensor:
    loop = build_loop(out, micro_batches=len(updates[0]))
    for micro_batches in updates:
        loop.update(micro_batches)
    return torch.cat([value.flatten() for value in loop.run.weights().values()])


@pytest.mark.slow
def test_micro_batches_of_unequal_size_give_the_update_of_one_large_batch(tmp_path: Path) -> None:
    parts = weights_after(tmp_path, [micro_batch(0, 1, 2, 3), micro_batch(4), micro_batch(5, 6)])
    torch.testing.assert_close(parts, weights_after(tmp_path, [micro_batch(*range(7))]), rtol=1e-5, atol=1e-7)


def test_equal_micro_batches_are_accumulated_to_the_last_bit_as_accelerate_does(tmp_path: Path) -> None:
    batches = [micro_batch(0, 1, 2), micro_batch(3, 4, 5), micro_batch(6, 7, 0)]
    loop = build_loop(tmp_path, micro_batches=3)
    model, optimizer, recipe = loop.run.model, loop.run.optimizer, loop.recipe
    before = [value.clone() for value in loop.run.weights().values()]
    for images, labels, _ in batches:
        with loop.run.accelerator.accumulate(model):
            loop.run.accelerator.backward(recipe.loss(images, labels))
    optimizer.step()
    expected = torch.cat([value.flatten() for value in loop.run.weights().values()])
    assert not torch.equal(expected, torch.cat([value.flatten() for value in before]))
    assert torch.equal(weights_after(tmp_path, batches), expected)


@pytest.mark.parametrize("first", [True, False])
def test_a_micro_batch_without_readable_photos_is_counted_and_changes_nothing(tmp_path: Path, first: bool) -> None:
    batches = [micro_batch(0, 1), micro_batch(unreadable=2)]
    loop = build_loop(tmp_path, micro_batches=2)
    update = loop.update(batches[::-1] if first else batches)
    assert (update.images, update.unreadable) == (2, 2)
    assert isinstance(loop.recipe, LinearRecipe) and len(loop.recipe.seen) == 1
    parts = torch.cat([value.flatten() for value in loop.run.weights().values()])
    assert torch.equal(parts, weights_after(tmp_path, [micro_batch(0, 1)]))


def test_an_update_without_readable_photos_leaves_the_weights_and_the_next_one_alone(tmp_path: Path) -> None:
    loop = build_loop(tmp_path, micro_batches=2)
    update = loop.update([micro_batch(unreadable=2), micro_batch(unreadable=1)])
    assert (update.images, update.unreadable, update.is_finite) == (0, 3, False)
    assert math.isnan(update.loss)
    batches = [micro_batch(0, 1), micro_batch(2, 3)]
    loop.update(batches)
    after = torch.cat([value.flatten() for value in loop.run.weights().values()])
    assert torch.equal(after, weights_after(tmp_path, batches))


def test_what_belongs_to_the_images_may_be_a_list_of_dicts(tmp_path: Path) -> None:
    loop = build_loop(tmp_path)
    update = loop.update([(PHOTOS[:2], [{"target": torch.tensor(0.5)}, {"target": torch.tensor(2.0)}], 0)])
    assert update.is_finite and isinstance(loop.recipe, LinearRecipe)
    ((one, two),) = loop.recipe.seen
    assert (one["target"], two["target"]) == (0.5, 2)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, 1e30]
)  # the last: the loss is finite in no float32, nor its gradient
def test_the_device_itself_leaves_weights_and_averages_alone_where_a_number_is_not_finite(
    tmp_path: Path, bad: float
) -> None:
    loop, again = build_loop(tmp_path), build_loop(tmp_path)
    optimizer, other = with_adamw(loop), with_adamw(again)
    photos, labels, _ = micro_batch(0, 1)
    for each in (loop, again):
        assert each.update([micro_batch(2, 3)]).is_finite
    update = loop.update([(photos, labels.float() + bad, 0)])
    assert not update.is_finite and optimizer.found_inf is None  # type: ignore[attr-defined]
    for each in (loop, again):
        each.update([micro_batch(4, 5)])
    for (name, value), expected in zip(loop.run.weights().items(), again.run.weights().values(), strict=True):
        assert torch.equal(value, expected), name
    assert [value["step"].item() for value in optimizer.state.values()] == [2, 2]
    assert str(optimizer.state_dict()) == str(other.state_dict())


def test_an_optimizer_that_cannot_skip_by_itself_is_not_asked_to_step(tmp_path: Path) -> None:
    photos, labels, _ = micro_batch(0, 1)
    before = torch.cat([value.flatten() for value in build_loop(tmp_path).run.weights().values()])
    assert torch.equal(weights_after(tmp_path, [(photos, labels.float() + math.nan, 0)]), before)


class OneUpdateAhead:
    """A loop over updates of a GPU: what has been accounted for after each."""

    def __init__(self, out: Path) -> None:
        self.loop = build_loop(out)
        accelerator = SimpleNamespace(device=torch.device("cuda"), is_main_process=False)
        log = SimpleNamespace(unreadable=SimpleNamespace(add=lambda files: None))
        run = replace(self.loop.run, accelerator=accelerator)
        object.__setattr__(run, "save", lambda: self.saved.append(run.progress.step))
        self.loop = replace(self.loop, run=run, log=log)  # type: ignore[arg-type]
        self.queued: deque[Queued] = deque()
        self.saved: list[int] = []

    def after(self, loss: float, *, all_of_them: bool = False) -> tuple[int, int]:
        """Updates that have counted, and that were skipped, after one more."""
        progress = self.loop.run.progress
        progress.step += 1
        update = Update(figures=Figures(torch.tensor(loss), torch.tensor(1.0)), images=1, unreadable=0)
        self.queued.append(Queued(update, progress.step, 0.1))
        self.loop._account(self.queued, all_of_them=all_of_them)
        return progress.step - len(self.queued) - progress.skipped, progress.skipped


def test_on_a_gpu_figures_are_read_an_update_later_and_before_a_checkpoint(tmp_path: Path) -> None:
    ahead = OneUpdateAhead(tmp_path)
    assert [ahead.after(2.0), ahead.after(3.0), ahead.after(4.0, all_of_them=True)] == [(0, 0), (1, 0), (3, 0)]
    assert ahead.loop.run.progress.epoch_loss == 9


def test_from_a_skipped_update_on_the_gpu_is_not_run_ahead_of(tmp_path: Path) -> None:
    ahead = OneUpdateAhead(tmp_path)
    assert [ahead.after(loss) for loss in (1.0, math.nan, 1.0, 1.0)] == [(0, 0), (1, 0), (2, 1), (2, 1)]
    assert ahead.after(math.inf) == (3, 1)
    for skipped in range(3, SKIPPED_UPDATES_IN_A_ROW + 1):  # the one above is found out about with the next
        assert ahead.after(math.nan) == (3, skipped)
    with pytest.raises(ConvMAEError, match="the last 10 updates up to 14 were skipped"):
        ahead.after(math.nan)
    assert ahead.saved == [14] and not ahead.queued


@pytest.mark.slow
def test_a_process_without_readable_photos_does_not_hold_up_the_others(
    tmp_path: Path, run_processes: RunProcesses
) -> None:
    found = json.loads(run_processes(2, "tests.engine.uneven_run").splitlines()[-1])
    assert found["photos"] == [[5, 2], [3, 3], [0, 4]]
    weights = torch.cat([torch.tensor(value).flatten() for value in found["weights"]])
    expected = weights_after(tmp_path, [micro_batch(0, 1, 2, 3, 4)], [micro_batch(0, 5, 2)])
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"progress": [1]}, "its progress is not said"),
        ({"progress": {"step": 1, "config": 2}}, "its progress is not said"),
        ({"progress": {"step": "a"}}, "its progress is not in numbers"),
        ({"progress": {"step": 1.5}}, "it is of update 1.5"),
        ({"progress": {"step": -5}}, "it is of update -5"),
        ({"progress": {"step": 10**30}}, "it is of update 10000"),
        ({"optimizer": [1]}, "it has no state of an optimiser"),
        ({"optimizer": {}}, "it has no state of an optimiser"),
        ({"optimizer": {"state": 1, "param_groups": 2}}, "none of this training"),
    ],
)
def test_what_is_no_state_of_this_training_is_not_continued(
    tmp_path: Path, damage: dict[str, Any], reason: str
) -> None:
    run = build_loop(tmp_path).run
    run.save()
    loaded = run.folder.load_last()
    assert loaded is not None
    run.folder.save("last", loaded[0], run.record, loaded[1] | damage)
    with pytest.raises(ConvMAEError, match=reason):
        build_loop(tmp_path).run.resume()


def test_weights_of_another_model_are_not_continued(tmp_path: Path) -> None:
    run = build_loop(tmp_path).run
    run.save()
    loaded = run.folder.load_last()
    assert loaded is not None
    run.folder.save("last", {"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, run.record, loaded[1])
    with pytest.raises(ConvMAEError, match="none of this training .*; take that of another copy"):
        build_loop(tmp_path).run.resume()


def test_a_run_that_was_resumed_before_its_first_checkpoint_says_so(tmp_path: Path) -> None:
    loop, text = build_loop(tmp_path), io.StringIO()
    run = replace(loop.run, config=replace(loop.run.config, resume=True))
    replace(loop, run=run, console=Console(file=text, width=200))._check_not_beyond(10)
    assert text.getvalue() == "begun again from update 0, as no checkpoint had been saved yet\n"
