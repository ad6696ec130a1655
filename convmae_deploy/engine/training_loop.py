"""The loop of a training program: updates, accumulation, progress, checkpoints, stopping. The recipe gives the loss."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from convmae_deploy.engine.determinism import MicroBatch, StepSource, seed_step
from convmae_deploy.engine.interruption import Interruption, interruptible
from convmae_deploy.engine.optimisation import OptimisationConfig, scheduled_lr, set_lr
from convmae_deploy.engine.progress import peak_memory_gb, training_progress
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.errors import ConvMAEError


class Recipe(Protocol):
    """What differs from one training program to another."""

    def loss(self, images: Tensor, extra: Any) -> Tensor:
        """The mean loss of a micro-batch on the device; `extra` is what the dataset gives beside the images."""

    def finish_epoch(self, epoch: int, train_loss: float) -> None:
        """Validates, logs, draws and saves after the last update of an epoch (from 0); called on all processes."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one update did, over all processes."""

    loss: float  # mean over its images
    gradient_norm: float  # of the whole gradient, before clipping
    images: int
    unreadable: int  # photos that could not be decoded


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """Runs a recipe over its data until the last epoch or a signal."""

    run: TrainingRun
    optimisation: OptimisationConfig
    source: StepSource
    recipe: Recipe
    console: Console

    def fit(self) -> int:
        """Trains from where the run is; returns the exit status (0, or 128 + signal when stopped).

        Raises:
            ConvMAEError: no photo of a batch is readable, or the numbers stay not finite.
        """
        progress, steps = self.run.progress, self.source.steps_per_epoch
        last_step = self.optimisation.epochs * steps
        with interruptible() as interruption:
            while progress.step < last_step and not self.run.must_stop(interruption):
                epoch = progress.step // steps
                self._train_epoch(epoch, interruption)
                if progress.step == (epoch + 1) * steps:
                    counted = steps - progress.epoch_skipped
                    train_loss = progress.epoch_loss / counted if counted else math.nan
                    progress.epoch_loss, progress.epoch_skipped = 0.0, 0
                    self.recipe.finish_epoch(epoch, train_loss)
        if progress.step < last_step and interruption.signal_number is not None:
            self.console.print(f"stopped after update {progress.step} of {last_step}; continue with --resume")
            return 128 + interruption.signal_number
        return 0

    def _train_epoch(self, epoch: int, interruption: Interruption) -> None:
        """The rest of one epoch, from update `progress.step` on; when interrupted it stops after an update, saved."""
        run, progress, steps = self.run, self.run.progress, self.source.steps_per_epoch
        first = progress.step - epoch * steps
        began = saved = time.monotonic()
        images = 0
        with training_progress(self.console) as bar:
            label, total = f"{epoch + 1}/{self.optimisation.epochs}", self.optimisation.epochs * steps
            task = bar.add_task(
                "", total=total, completed=progress.step, epoch=label, loss=math.nan, speed=0.0, memory=0.0
            )
            for step, micro_batches in enumerate(self.source.epoch(epoch, first), first):
                # after what fetching may draw
                seed_step(run.config.seed, progress.step, run.accelerator.process_index)
                lr = scheduled_lr(self.optimisation, progress.step, steps)
                set_lr(run.optimizer.param_groups, lr)
                update = self.update(micro_batches)
                progress.step += 1
                self._account(update, lr)
                images += update.images
                speed = images / (time.monotonic() - began)
                mean = progress.epoch_loss / max(1, step + 1 - progress.epoch_skipped)
                bar.update(task, advance=1, loss=mean, speed=speed, memory=peak_memory_gb())
                stopping = run.must_stop(interruption)
                if step + 1 < steps and (stopping or self._is_time_to_save(saved)):
                    run.save()
                    saved = time.monotonic()
                if stopping:
                    return

    def _account(self, update: Update, lr: float) -> None:
        """Adds an update to the run's sums and logs it."""
        progress = self.run.progress
        progress.unreadable += update.unreadable
        if self.run.accelerator.is_main_process:
            self.run.folder.log_update(progress.step, loss=update.loss, gradient_norm=update.gradient_norm, lr=lr)
        if math.isfinite(update.loss) and math.isfinite(update.gradient_norm):
            progress.epoch_loss += update.loss
            progress.skipped_in_a_row = 0
            return
        progress.epoch_skipped += 1
        self.console.print(
            f"update {progress.step} skipped: loss {update.loss:g}, norm of the gradient {update.gradient_norm:g}"
        )
        self.run.count_skipped(update.loss, update.gradient_norm)

    def _is_time_to_save(self, saved: float) -> bool:
        """Whether a checkpoint is due; the main process's clock decides for all, since all take part in saving."""
        due = time.monotonic() - saved > 60 * self.run.config.save_minutes
        if self.run.accelerator.num_processes == 1:
            return due
        flag = torch.tensor(float(due and self.run.accelerator.is_main_process), device=self.run.accelerator.device)
        return bool(self.run.accelerator.reduce(flag, "sum").item())

    def update(self, micro_batches: Sequence[MicroBatch]) -> Update:
        """One update over its micro-batches; weights stay as they are where the loss or its gradient is not finite."""
        accelerator, model, optimizer = self.run.accelerator, self.run.model, self.run.optimizer
        totals = torch.zeros(3, device=accelerator.device)  # sum of losses, images, unreadable photos
        for images, extra, unreadable in micro_batches:
            if not len(images):
                raise ConvMAEError(f"none of the {unreadable} photos of a batch could be decoded; check the data")
            with accelerator.accumulate(model):
                loss = self.recipe.loss(*send_to_device((images, extra), accelerator.device, non_blocking=True))
                accelerator.backward(loss)
            totals += torch.stack([loss.detach().float() * len(images), *totals.new_tensor([len(images), unreadable])])
        limit = self.optimisation.clip_grad
        norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if limit is None else limit)
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # sharded: each process has a part
        loss_sum, seen, skipped = accelerator.reduce(totals, "sum").tolist()
        update = Update(
            loss=loss_sum / seen, gradient_norm=float(whole_norm), images=int(seen), unreadable=int(skipped)
        )
        finite = math.isfinite(update.loss) and math.isfinite(update.gradient_norm)
        if finite or accelerator.scaler is not None:  # the scaler skips by itself, and then lowers its scale
            optimizer.step()
        optimizer.zero_grad()
        return update
