"""Finetunes a ConvMAE classifier on a folder of photos.

    python -m training.finetune nano --data photos/ --out runs/mine
    python -m training.finetune base --data imagenet/ --out runs/base --init convmae_base.pth
    torchrun --nproc-per-node 8 -m training.finetune base --data imagenet/ --out runs/base --init pretrained/

`photos/{train,val}/<class>/*`; a `photos/classes.json` {"folder": "name"} names the classes. The preset `base` is the
paper's recipe (FINETUNE.md of the authors: 85.0 % top-1 on ImageNet-1K from 1600 epochs of pretraining, on 32 GPUs; not
run by us). `nano` is ours for a CPU and made the model that ships: see its model card for time and accuracy.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import DataLoader

from convmae_deploy.checkpoints import CheckpointRecord, load_initial_encoder
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing, training_transform
from convmae_deploy.data.photo_datasets import AugmentedPhotos, EvaluationPhotos, collate_readable
from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder
from convmae_deploy.engine.determinism import StepSampler, seed_step
from convmae_deploy.engine.evaluation import Accuracy, evaluate
from convmae_deploy.engine.interruption import Interruption, interruptible, leave_signals_to_parent
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw, scheduled_lr, set_lr
from convmae_deploy.engine.progress import draw_curves, peak_memory_gb, training_progress
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_run import MAY_CHANGE_ON_RESUME, RunConfig, TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import check_can_create
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, check_image_size
from convmae_deploy.program import run_program
from convmae_deploy.runtime.manifest import Licence, standard_preprocessing


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One finetuning run."""

    variant: Literal["nano", "tiny", "small", "base", "base_plus", "large", "huge"]  # of the model
    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    init: Path | None = None  # pretrained checkpoint: ours (folder) or the authors' (.pth); None: from scratch
    image_size: tuple[int, int] | None = None  # (height, width) of validation and use; None: the variant's
    train_size: tuple[int, int] | None = None  # of training, smaller ones train faster (arXiv 1906.06423); None: same
    drop_path: float = 0.1  # stochastic depth of the last block
    head_init_std: float = 2e-5  # of the new head's weights
    licence: str = "unspecified: ask whoever trained these weights"  # of the weights that come out
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for size in (self.image_size, self.train_size):
            if size is not None:
                check_image_size(size)


def base() -> FinetuneConfig:
    """The paper's recipe for ConvMAE-B (CONVMAE's FINETUNE.md; layer decay 0.65 is the command's, 0.75 its default)."""
    return FinetuneConfig(variant="base", run=RunConfig(workers=8))


def nano() -> FinetuneConfig:
    """From scratch on a few thousand photos, on a CPU."""
    return FinetuneConfig(
        variant="nano",
        train_size=(96, 96),
        drop_path=0.05,
        head_init_std=0.02,
        optimisation=OptimisationConfig(
            epochs=40,
            warmup_epochs=3,
            batch_size=64,
            micro_batch_size=64,
            base_lr=4e-3,
            layer_decay=1.0,
            clip_grad=1.0,
        ),
        augmentation=AugmentationConfig(
            crop_scale=(0.35, 1.0),
            rand_augment="rand-m6-n1-mstd0.5-inc1",
            random_erasing=0.1,
            mixup=0.0,
            cutmix=0.0,
        ),
    )


PRESETS = {
    "nano": ("Ours: from scratch on a CPU.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), variant="tiny")),
    "small": ("ConvMAE-S with the paper's recipe.", replace(base(), variant="small")),
    "base": ("ConvMAE-B, the paper's recipe.", base()),
    "base_plus": ("ConvMAE-B* with the paper's recipe.", replace(base(), variant="base_plus")),
    "large": ("ConvMAE-L with the paper's recipe.", replace(base(), variant="large")),
    "huge": ("ConvMAE-H with the paper's recipe.", replace(base(), variant="huge")),
}


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the steps of the loop share."""

    config: FinetuneConfig
    run: TrainingRun
    sampler: StepSampler
    loader: DataLoader[Any]
    validation: EvaluationPhotos
    console: Console


def finetune(config: FinetuneConfig) -> int:
    """Runs or resumes a finetuning; returns the exit status (0, or 128 + signal when stopped).

    Raises:
        ConvMAEError: bad data, checkpoint, settings, or a loss that is not finite.
    """
    train, val = (read_photo_folder(config.data, split) for split in ("train", "val"))
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise ConvMAEError(
            f"train and val of {config.data} must have the same classes; only one of them has {differing}"
        )
    session = prepare(config, train, val)
    run, steps = session.run, session.sampler.steps_per_epoch
    if config.run.resume:
        run.resume()
    last_step = config.optimisation.epochs * steps
    with interruptible() as interruption:
        while run.progress.step < last_step and interruption.signal_number is None:
            epoch = run.progress.step // steps
            train_epoch(session, epoch, interruption)
            if run.progress.step == (epoch + 1) * steps:
                finish_epoch(session, epoch)
    if run.progress.step < last_step and interruption.signal_number is not None:
        session.console.print(f"stopped after update {run.progress.step} of {last_step}; continue with --resume")
        return 128 + interruption.signal_number
    session.console.print(f"best validation top-1 {run.progress.best_metric:.2f} %: {config.run.out / 'best'}")
    return 0


def prepare(config: FinetuneConfig, train: PhotoFolder, val: PhotoFolder) -> Session:
    """Everything a run needs, before its first update."""
    accelerator = config.run.accelerator()
    sampler = StepSampler(
        len(train.photos),
        batch_size=config.optimisation.batch_size,
        micro_batch_size=config.optimisation.micro_batch_size,
        seed=config.run.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    accelerator.gradient_accumulation_steps = sampler.micro_batches_per_step
    seed_step(config.run.seed, 0)
    record = initial_record(config, train.classes)
    console = Console(quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)
    classifier = initial_model(config, record.model, len(train.classes), console)
    folder = RunFolder(config.run.out)
    facts = {
        "classes": list(train.classes),
        "train_photos": len(train.photos),
        "val_photos": len(val.photos),
        "processes": accelerator.num_processes,
    }
    check_can_create(config.run.out)
    if accelerator.is_main_process:
        folder.begin(config, seed=config.run.seed, data=facts, resume=config.run.resume, ignored=MAY_CHANGE_ON_RESUME)
    accelerator.wait_for_everyone()
    assert record.preprocessing is not None
    transform = training_transform(
        config.augmentation, config.train_size or record.model.image_size, record.preprocessing
    )
    loader = DataLoader(
        AugmentedPhotos(train, transform, config.run.seed),
        batch_sampler=sampler,
        num_workers=config.run.workers,
        collate_fn=collate_readable,
        worker_init_fn=leave_signals_to_parent,
        persistent_workers=config.run.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    model, optimizer = accelerator.prepare(classifier, build_adamw(classifier, config.optimisation))
    run = TrainingRun(
        config=config.run, accelerator=accelerator, folder=folder, record=record, model=model, optimizer=optimizer
    )
    validation = EvaluationPhotos(val, record.preprocessing)
    return Session(config=config, run=run, sampler=sampler, loader=loader, validation=validation, console=console)


def initial_record(config: FinetuneConfig, classes: tuple[str, ...]) -> CheckpointRecord:
    """What the checkpoints of this run say of themselves before any result."""
    architecture = MODELS[config.variant]()
    if config.image_size is not None:
        architecture = replace(architecture, image_size=config.image_size)
    return CheckpointRecord(
        kind="classifier",
        variant=config.variant,
        model=architecture,
        classes=classes,
        preprocessing=standard_preprocessing(architecture.image_size),
        licence=Licence(name=config.licence),
    )


def initial_model(
    config: FinetuneConfig, architecture: ConvMAEConfig, num_classes: int, console: Console
) -> ConvMAEClassifier:
    """A classifier with fresh weights, its encoder replaced by that of `config.init` where one is given.

    As in the authors' code `fc_norm` and the head always start fresh.
    """
    model = build_classifier(
        architecture,
        num_classes=num_classes,
        drop_path_rate=config.drop_path,
        head_init_std=config.head_init_std,
    )
    if config.init is not None:
        state, report = load_initial_encoder(config.init, architecture)
        model.encoder.load_state_dict(state)
        console.print("\n".join(report))
    return model


def train_epoch(session: Session, epoch: int, interruption: Interruption) -> None:
    """The rest of one epoch, from update `progress.step` on; when interrupted it stops after an update, saved."""
    config, run, progress, sampler = session.config, session.run, session.run.progress, session.sampler
    steps = sampler.steps_per_epoch
    first = progress.step - epoch * steps
    sampler.start(epoch, first)
    mixing = batch_mixing(config.augmentation, len(run.record.classes))
    batches = iter(session.loader)
    began = saved = time.monotonic()
    images = 0
    with training_progress(disable=not run.accelerator.is_main_process) as bar:
        label = f"{epoch + 1}/{config.optimisation.epochs}"
        task = bar.add_task("", total=steps, completed=first, epoch=label, loss=0.0, speed=0.0, memory=0.0)
        for step in range(first, steps):
            batch = [next(batches) for _ in range(sampler.micro_batches_per_step)]
            seed_step(config.run.seed, progress.step, run.accelerator.process_index)  # after what fetching may draw
            set_lr(run.optimizer.param_groups, scheduled_lr(config.optimisation, progress.step, steps))
            loss, seen, unreadable = update(session, batch, mixing)
            run.check_finite(loss)
            progress.step += 1
            progress.epoch_loss += loss
            progress.unreadable += unreadable
            images += seen
            speed = images / (time.monotonic() - began)
            bar.update(task, advance=1, loss=progress.epoch_loss / (step + 1), speed=speed, memory=peak_memory_gb())
            stopping = run.must_stop(interruption)
            if step + 1 < steps and (stopping or time.monotonic() - saved > 60 * config.run.save_minutes):
                run.save()
                saved = time.monotonic()
            if stopping:
                return


def update(session: Session, batches: list[tuple[Tensor, Tensor, int]], mixing: Mixup | None) -> tuple[float, int, int]:
    """One update over its micro-batches; returns over all processes the mean loss, images, and unreadable photos."""
    accelerator, model, optimizer = session.run.accelerator, session.run.model, session.run.optimizer
    clip_grad = session.config.optimisation.clip_grad
    totals = torch.zeros(3, device=accelerator.device)  # sum of losses, images, unreadable photos
    for images, labels, unreadable in batches:
        if not len(images):
            raise ConvMAEError(f"none of the {unreadable} photos of a batch could be decoded; check the data folder")
        images, targets = images.to(accelerator.device), labels.to(accelerator.device)
        smoothing = session.config.augmentation.label_smoothing
        if mixing is not None and len(images) > 1:
            even = len(images) // 2 * 2  # mixing pairs the images of a batch; it smooths the targets itself
            images, targets = mixing(images[:even], targets[:even])
            smoothing = 0.0
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(images).float(), targets, label_smoothing=smoothing)
            accelerator.backward(loss)
            if accelerator.sync_gradients and clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        totals += torch.stack([loss.detach() * len(images), *loss.new_tensor([len(images), unreadable])])
    loss_sum, seen, skipped = accelerator.reduce(totals, "sum").tolist()
    return loss_sum / seen, int(seen), int(skipped)


def finish_epoch(session: Session, epoch: int) -> None:
    """Validates, logs, draws, and saves `best`, where it is the best so far, and `last`."""
    config, run, progress = session.config, session.run, session.run.progress
    accuracy = evaluate(
        run.accelerator.unwrap_model(run.model),
        session.validation,
        run.accelerator,
        batch_size=config.optimisation.micro_batch_size,
        workers=config.run.workers,
    )
    train_loss = progress.epoch_loss / session.sampler.steps_per_epoch
    progress.epoch_loss = 0.0
    is_best = accuracy.top1 > progress.best_metric
    progress.best_metric = max(accuracy.top1, progress.best_metric)
    if not run.accelerator.is_main_process:
        return
    run.folder.log(
        epoch=epoch + 1,
        step=progress.step,
        lr=max(group["lr"] for group in run.optimizer.param_groups),
        train_loss=train_loss,
        val_loss=accuracy.loss,
        val_top1=accuracy.top1,
        val_top5=accuracy.top5,
        unreadable_train=progress.unreadable,
        unreadable_val=accuracy.unreadable,
    )
    draw_curves(config.run.out / "curves.png", run.folder.metrics())
    session.console.print(
        f"epoch {epoch + 1}/{config.optimisation.epochs}: training loss {train_loss:.4f}, "
        f"validation loss {accuracy.loss:.4f}, top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %"
    )
    if is_best:
        run.folder.save("best", run.weights(), scored_record(session, epoch, accuracy))
    run.save()


def scored_record(session: Session, epoch: int, accuracy: Accuracy) -> CheckpointRecord:
    """The record of a checkpoint with where it came from and what it scored."""
    run = session.run.folder.description()
    provenance = {
        "data": f"{run['data']['train_photos']} training and {run['data']['val_photos']} validation photos "
        f"of {session.config.data.name}",
        "command": run["command"],
        "seed": str(session.config.run.seed),
        "epoch": f"{epoch + 1} of {session.config.optimisation.epochs}",
        "validation": f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % on {accuracy.images} photos",
        "trained_with": ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
    }
    return session.run.record.model_copy(update={"provenance": provenance})


def main() -> int:
    """Command line: a preset, then flags that change it."""
    config = tyro.extras.overridable_config_cli(
        PRESETS, config=(tyro.conf.OmitArgPrefixes,), prog="python -m training.finetune"
    )
    return finetune(config)


if __name__ == "__main__":
    run_program(main)
