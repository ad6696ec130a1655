"""The loop of a training program: updates, accumulation, progress, checkpoints, stopping. The recipe gives the loss."""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from convmae_deploy.data.augmentation import normalised
from convmae_deploy.data.determinism import MicroBatch, StepSource, seed_step
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.engine.epoch_log import EpochLog
from convmae_deploy.engine.evaluation import unreadable_files
from convmae_deploy.engine.interruption import Interruption, interruptible
from convmae_deploy.engine.optimisation import OptimisationConfig, set_lr
from convmae_deploy.engine.progress import Lines, TrainingProgress
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_run import TrainingRun, any_process
from convmae_deploy.errors import ConvMAEError


class Figures:
    """Numbers of an update on their way from the device.

    A GPU copies them when it comes to that; whoever reads them waits for that update and for nothing queued after it.
    """

    def __init__(self, *figures: Tensor) -> None:
        """`figures`: scalars on one device."""
        values = torch.stack([figure.detach().float() for figure in figures])
        self._values = values.to("cpu", non_blocking=True)  # page-locked, where it comes from a GPU
        self._copied = torch.Event() if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> list[float]:
        """The numbers, in their order."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one update did, over all processes; its numbers are read from the device when they are asked for."""

    figures: (
        Figures | None
    )  # sum of the losses, norm of the gradient, parts of the loss; None where there are no images
    parts: tuple[str, ...] = ()  # of the loss, their names
    images: int
    unreadable: int  # photos or videos that could not be decoded
    files: tuple[Unreadable, ...] = ()  # these, on the main process, as far as they are known

    @cached_property
    def _read(self) -> list[float]:
        return [math.nan, math.nan] if self.figures is None else self.figures.read()

    @property
    def loss(self) -> float:
        """Mean over its images; not a number where there are none."""
        return self._read[0] / self.images if self.images else math.nan

    @property
    def gradient_norm(self) -> float:
        """The whole gradient's, before clipping."""
        return self._read[1]

    @property
    def loss_parts(self) -> dict[str, float]:
        """What the recipe says of the loss of the last micro-batch."""
        return dict(zip(self.parts, self._read[2:], strict=True)) if self.figures is not None else {}

    @property
    def is_finite(self) -> bool:
        """Whether it may change the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Queued(NamedTuple):
    """An update that the device has been given and that is not accounted for yet."""

    update: Update
    number: int  # from 1, of the run
    lr: float


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """Runs a recipe over its data until the last epoch or a signal."""

    run: TrainingRun
    source: StepSource
    recipe: Recipe
    console: Console
    log: EpochLog

    @property
    def optimisation(self) -> OptimisationConfig:
        """How weights are updated."""
        return self.recipe.config.optimisation

    def fit(self) -> int:
        """Trains from the start, or from where a resumed run was; ends the group of processes and says how it ended.

        Returns:
            The exit status: 0, or 128 + signal when stopped.

        Raises:
            ConvMAEError: the numbers stay not finite, or photos unreadable.
        """
        if self.run.config.resume:
            self.run.resume()
        progress, steps = self.run.progress, self.source.steps_per_epoch
        last_step = self.optimisation.epochs * steps
        self._check_not_beyond(last_step)
        self.run.note_resumed()  # only now: a start that is refused leaves the run as it was
        lines = Lines(self.console)
        with interruptible() as interruption:
            while progress.step < last_step and not self.run.must_stop(interruption):
                epoch = progress.step // steps
                self._train_epoch(epoch, interruption, lines)
                if progress.step == (epoch + 1) * steps:
                    counted = steps - progress.epoch_skipped
                    train_loss = progress.epoch_loss / counted if counted else math.nan
                    progress.epoch_loss, progress.epoch_skipped = 0.0, 0
                    self.log.finish_and_save(epoch, train_loss)
        self.run.accelerator.end_training()  # a process that exits with its group open may abort
        if progress.step < last_step and interruption.signal_number is not None:
            self.console.print(f"stopped after update {progress.step} of {last_step}; continue with --resume")
            return 128 + interruption.signal_number
        if progress.skipped == last_step:
            raise ConvMAEError(f"all {last_step} updates of the run were skipped, so it learnt nothing: see above why")
        self.console.print(self.recipe.last_words())
        return 0

    def _check_not_beyond(self, last_step: int) -> None:
        """Says where a resumed run goes on, and refuses one that has done more than it is now asked for."""
        done = self.run.progress.step
        if done > last_step:
            raise ConvMAEError(
                f"{self.run.folder.path} has done {done} updates already, more than the {last_step} of --epochs "
                f"{self.optimisation.epochs}; resume with at least {-(-done // self.source.steps_per_epoch)} epochs"
            )
        if done:
            nothing = "; nothing is left to do: resume with more --epochs to go on" if done == last_step else ""
            self.console.print(f"continued after update {done} of {last_step}{nothing}")
        elif self.run.config.resume:
            self.console.print("begun again from update 0, as no checkpoint had been saved yet")

    def _train_epoch(self, epoch: int, interruption: Interruption, lines: Lines) -> None:
        """The rest of one epoch, from update `progress.step` on; when interrupted it stops after an update, saved."""
        run, progress, steps = self.run, self.run.progress, self.source.steps_per_epoch
        schedule = self.optimisation.holding(self.source.steps.batch_size)
        first = progress.step - epoch * steps
        saved = time.monotonic()
        queued: deque[Queued] = deque()
        shown = TrainingProgress(
            self.console,
            done=progress.step,
            total=schedule.epochs * steps,
            lines=lines,
            kind="videos" if self.log.kind == "videos" else "images",
        )
        with shown.bar:
            for step, micro_batches in enumerate(self.source.epoch(epoch, first), first):
                # after what fetching may draw
                seed_step(run.config.seed, progress.step, run.accelerator.process_index)
                lr = schedule.learning_rate_at(progress.step, steps)
                set_lr(run.optimizer.param_groups, lr)
                update = self.update(micro_batches)
                progress.step += 1
                queued.append(Queued(update, progress.step, lr))
                stopping = run.must_stop(interruption)
                saving = step + 1 < steps and (stopping or self._is_time_to_save(saved))
                self._account(queued, all_of_them=saving or stopping or step + 1 == steps)
                counted = step + 1 - len(queued) - progress.epoch_skipped
                mean = progress.epoch_loss / counted if counted else math.nan
                shown.advance(f"{epoch + 1}/{schedule.epochs}", update.images, mean)
                if saving:
                    run.save()
                    saved = time.monotonic()
                if stopping:
                    return

    def _account(self, queued: deque[Queued], *, all_of_them: bool) -> None:
        """Accounts for queued updates in their order: for all but the last, which a GPU may still be at.

        On a CPU, and from one that was skipped on, the last one is accounted for too: so a run ends with the weights
        that it had when it could no longer go on.
        """
        ahead = self.run.accelerator.device.type != "cpu" and not all_of_them
        while len(queued) > (ahead and not self.run.progress.skipped_in_a_row):
            self._account_for(*queued.popleft())

    def _account_for(self, update: Update, number: int, lr: float) -> None:
        """Adds an update to the run's sums and logs it."""
        progress = self.run.progress
        progress.unreadable += update.unreadable
        self.log.unreadable.add(update.files)
        if self.run.accelerator.is_main_process:
            told = update.loss_parts | {"loss": update.loss, "gradient_norm": update.gradient_norm}
            self.run.folder.log_update(number, **told, lr=lr)
        if update.is_finite:
            progress.epoch_loss += update.loss
            progress.skipped_in_a_row = 0
            return
        progress.epoch_skipped += 1
        reason = f"its loss was {update.loss:g} and the norm of its gradient {update.gradient_norm:g}"
        remedy = "continue with --resume and --precision fp32, a lower --base-lr or --clip-grad 1"
        if not update.images:
            first = f", the first, {update.files[0].file}: {update.files[0].reason}" if update.files else ""
            reason = f"none of its {update.unreadable} files could be decoded{first}"
            remedy = "mend the data and continue with --resume"
        self.console.print(f"update {number} skipped: {reason}")
        self.run.count_skipped(reason, remedy)

    def _is_time_to_save(self, saved: float) -> bool:
        """Whether a checkpoint is due; the main process's clock decides for all, since all take part in saving."""
        due = time.monotonic() - saved > 60 * self.run.config.save_minutes
        return any_process(self.run.accelerator, due and self.run.accelerator.is_main_process)

    def update(self, micro_batches: Sequence[MicroBatch]) -> Update:
        """One update over its micro-batches, in which every readable photo of all processes weighs the same.

        Weights stay as they are where no photo is readable, and where the loss or its gradient is not finite.
        """
        accelerator, model, optimizer = self.run.accelerator, self.run.model, self.run.optimizer
        readable, unreadable = count_photos(micro_batches, accelerator)
        seen, skipped = sum(readable), sum(unreadable)
        files = unreadable_files((count for _, _, count in micro_batches), skipped)
        if not seen:
            return Update(figures=None, images=0, unreadable=skipped, files=files)
        stand_in = photos_of_any_process(micro_batches, readable)
        loss_sum = torch.zeros((), device=accelerator.device)
        for images, extra, _ in micro_batches:
            # Accelerate divides by the number of micro-batches and of processes; times 1.0 where all are equal
            weight = len(images) * accelerator.gradient_accumulation_steps * accelerator.num_processes / seen
            with accelerator.accumulate(model):
                if not len(images) and accelerator.num_processes == 1:
                    continue
                # the others wait for this process's gradients, so it takes part without photos too, with weight 0
                inputs = (images, extra) if len(images) else stand_in
                images, extra = send_to_device(inputs, accelerator.device, non_blocking=True)
                loss = self.recipe.loss(normalised(images, self.run.record.preprocessing), extra)
                accelerator.backward(loss * weight)
            loss_sum += loss.detach().float() * len(images)
        limit = self.optimisation.clip_grad
        norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if limit is None else limit)
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # sharded: each process has a part
        loss_sum = accelerator.reduce(loss_sum, "sum")
        parts = self.recipe.loss_parts
        update = Update(
            figures=Figures(loss_sum, whole_norm, *parts.values()),
            parts=tuple(parts),
            images=seen,
            unreadable=skipped,
            files=files,
        )
        with self._only_where_finite(loss_sum, whole_norm) as on_device:
            if on_device or update.is_finite:
                optimizer.step()
        optimizer.zero_grad()
        return update

    @contextmanager
    def _only_where_finite(self, loss_sum: Tensor, gradient_norm: Tensor) -> Iterator[bool]:
        """Has the optimizer's next step leave everything as it is unless both numbers are finite.

        Yields:
            Whether the device sees to that; else the caller must, which waits for it.
        """
        optimizer = self.run.bare_optimizer
        if self.run.accelerator.scaler is not None:  # it skips by itself, and then lowers its scale
            yield True
        elif self.run.is_sharded or not getattr(optimizer, "_step_supports_amp_scaling", False):
            yield False
        else:
            optimizer.found_inf = (~(loss_sum.isfinite() & gradient_norm.isfinite())).float()  # type: ignore[attr-defined]
            try:
                yield True
            finally:
                optimizer.found_inf = None  # type: ignore[attr-defined]


def count_photos(micro_batches: Sequence[MicroBatch], accelerator: Accelerator) -> tuple[list[int], list[int]]:
    """Readable and unreadable photos of an update, each a number a process."""
    own = [sum(len(images) for images, _, _ in micro_batches), sum(unreadable for _, _, unreadable in micro_batches)]
    if accelerator.num_processes == 1:  # nothing to ask a device
        return own[:1], own[1:]
    counts = accelerator.gather(torch.tensor([own], device=accelerator.device))  # (processes, 2)
    readable, unreadable = counts.T.tolist()
    return readable, unreadable


def photos_of_any_process(micro_batches: Sequence[MicroBatch], readable: Sequence[int]) -> tuple[Tensor, Any]:
    """Up to two photos (BatchNorm compares) of an update and what belongs to them; all processes must ask for them.

    Args:
        micro_batches: of this process.
        readable: photos of each process, of at least one more than 0.
    """
    own = next(((images[:2], extra[:2]) for images, extra, _ in micro_batches if len(images)), None)
    shared = [own]
    if not all(readable):
        broadcast_object_list(shared, from_process=next(rank for rank, photos in enumerate(readable) if photos))
    photos = own or shared[0]
    assert photos is not None
    return photos
