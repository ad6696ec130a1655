"""Finetunes a ConvMAE classifier on a folder of photos.

    python -m training.finetune nano --data photos/ --out runs/mine
    python -m training.finetune base --data imagenet/ --out runs/base --init convmae_base.pth
    torchrun --nproc-per-node 8 -m training.finetune base --data imagenet/ --out runs/base --init pretrained/

`photos/{train,val}/<class>/*`; a `photos/classes.json` {"folder": "name"} names the classes. The preset `base` is the
paper's recipe (FINETUNE.md of the authors: 85.0 % top-1 on ImageNet-1K from 1600 epochs of pretraining, on 32 GPUs; not
run by us). `nano` is ours for a CPU and made the model that ships: see its model card for time and accuracy.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from rich.console import Console

from convmae_deploy.bundle.manifest import Preprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, training_transform
from convmae_deploy.data.determinism import seed_step
from convmae_deploy.data.photo_datasets import AugmentedPhotos, EvaluationPhotos
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.sources import FolderSource
from convmae_deploy.engine.classification import (
    finetuning_loop,
    finish_finetuning,
    initial_record,
    read_splits,
    split_facts,
)
from convmae_deploy.engine.epoch_log import check_validation_epochs
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import RunConfig, refuse_sharding, start_from, training_sampler
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, Variant, check_image_size
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One finetuning run."""

    variant: Variant  # of the model
    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    init: Path | None = None  # pretrained checkpoint: ours (folder) or the authors' (.pth); None: from scratch
    image_size: tuple[int, int] | None = None  # (height, width) of validation and use; None: the variant's
    train_size: tuple[int, int] | None = None  # of training, smaller ones train faster (arXiv 1906.06423); None: same
    drop_path: float = 0.1  # stochastic depth of the last block
    head_init_std: float = 2e-5  # of the new head's weights
    layer_decay: float = 0.65  # factor of the learning rate from one layer to the one below it
    validation_epochs: int = 1  # a validation every so many epochs, and after the last
    licence: str = "unspecified: ask whoever trained these weights"  # of the weights that come out
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for size in (self.image_size, self.train_size):
            if size is not None:
                check_image_size(size)
        check_validation_epochs(self.validation_epochs)


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
        layer_decay=1.0,
        optimisation=OptimisationConfig(
            epochs=40,
            warmup_epochs=3,
            batch_size=64,
            micro_batch_size=64,
            base_lr=4e-3,
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
    "base_kernel7": ("ConvMAE-B with 7x7 convolutions, the paper's recipe.", replace(base(), variant="base_kernel7")),
    "base_kernel9": ("ConvMAE-B with 9x9 convolutions, the paper's recipe.", replace(base(), variant="base_kernel9")),
    "base_plus": ("ConvMAE-B* with the paper's recipe.", replace(base(), variant="base_plus")),
    "large": ("ConvMAE-L with the paper's recipe.", replace(base(), variant="large")),
    "huge": ("ConvMAE-H with the paper's recipe.", replace(base(), variant="huge")),
}


def finetune(config: FinetuneConfig) -> int:
    """Runs or resumes a finetuning; returns the exit status (0, or 128 + signal when stopped).

    Raises:
        ConvMAEError: bad data, checkpoint or settings, or losses that stay not finite.
    """
    return finish_finetuning(prepare(config, *read_splits(config.data)))


def prepare(config: FinetuneConfig, train: PhotoFolder, val: PhotoFolder) -> TrainingLoop:
    """Everything a run needs, before its first update."""
    accelerator = config.run.accelerator()
    refuse_sharding(accelerator)
    sampler = training_sampler(len(train.photos), config.optimisation, config.run.seed, accelerator)
    seed_step(config.run.seed, 0)
    record = initial_record(config.variant, train.classes, config.image_size, licence=config.licence)
    console = config.run.console(accelerator)
    classifier = initial_model(config, record.model, len(train.classes), console)
    assert isinstance(record.preprocessing, Preprocessing)
    transform = training_transform(
        config.augmentation, config.train_size or record.model.image_size, record.preprocessing
    )
    source = FolderSource(
        AugmentedPhotos(train, transform, config.run.seed),
        sampler,
        workers=config.run.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    return finetuning_loop(
        config,
        accelerator=accelerator,
        console=console,
        record=record,
        classifier=classifier,
        source=source,
        validation=EvaluationPhotos(val, record.preprocessing),
        facts=split_facts(train, val),
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
        start_from(model.encoder, config.init, architecture, console)
    return model


def main() -> int:
    """Command line: a preset, then flags that change it."""
    config = tyro.extras.overridable_config_cli(
        PRESETS, config=(tyro.conf.OmitArgPrefixes,), prog="python -m training.finetune"
    )
    return finetune(config)


if __name__ == "__main__":
    run_program(main)
