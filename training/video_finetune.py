"""Finetunes a VideoConvMAE classifier on videos with labels.

    python -m training.video_finetune nano --data videos/ --init runs/pretrained-video --out runs/mine
    torchrun --nproc-per-node 8 … -m training.video_finetune k400 --data k400/ --init runs/k400 --out runs/k400-ft

`videos/{train,val}/<class>/*`, or lists `videos/{train,val}.csv` of paths and labels. Validation looks at one view of
each video; `training.video_test` looks at several, as the paper does. The presets `k400` and `ssv2` are the paper's
protocol with VideoMAE's augmentation where the paper names none; they were not run by us. `nano` is ours for a CPU:
training/README.md has its figures.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing
from convmae_deploy.data.data_check import check_videos
from convmae_deploy.data.listing import LISTING, listing
from convmae_deploy.data.video_augmentation import clip_training_transform, video_augmentation
from convmae_deploy.data.video_datasets import AugmentedVideos, EvaluationVideos, collate_copies
from convmae_deploy.data.video_folder import VideoFolder, read_video_folder, read_video_splits
from convmae_deploy.engine.classification import FinetuneRecipe, FinetuningConfig
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset
from convmae_deploy.engine.video import VideoTrainingConfig
from convmae_deploy.media.video_file import import_av
from convmae_deploy.models.classifier import ConvMAEClassifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class VideoFinetuneConfig(VideoTrainingConfig, FinetuningConfig):
    """One video finetuning run."""

    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*, or of lists {train,val}.csv
    copies: int = 1  # copies of each clip in a batch, augmented differently (repeated augmentation)
    layer_decay: float = 0.75  # factor of the learning rate from one layer to the one below it
    validate_on: Literal["val", "train"] = "val"  # train: the videos trained on, to see whether they can be learnt
    optimisation: OptimisationConfig = field(
        default_factory=lambda: OptimisationConfig(epochs=100, batch_size=512, micro_batch_size=8, base_lr=5e-4)
    )
    augmentation: AugmentationConfig = field(default_factory=lambda: video_augmentation(flip=0.5))


def k400() -> VideoFinetuneConfig:
    """Kinetics-400, 100 epochs (the authors' README); two copies of each clip, as in VideoMAE's script."""
    return VideoFinetuneConfig(variant="base", copies=2)


def ssv2() -> VideoFinetuneConfig:
    """Something-Something v2: segments, no flip, 40 epochs (the authors' README; the paper has 50)."""
    plain = k400()
    return replace(
        plain,
        stride=None,
        augmentation=video_augmentation(flip=0.0),
        optimisation=replace(plain.optimisation, epochs=40),
    )


def nano() -> VideoFinetuneConfig:
    """A few hundred clips of 16 frames, on a CPU; no flip, which changes what a motion is called."""
    return VideoFinetuneConfig(
        variant="nano",
        image_size=(64, 64),
        stride=1,
        drop_path=0.05,
        head_init_std=0.02,
        layer_decay=1.0,
        validation_epochs=5,
        augmentation=AugmentationConfig(
            crop_scale=(0.5, 1.0), flip=0.0, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0
        ),
        optimisation=OptimisationConfig(
            epochs=60, warmup_epochs=5, batch_size=16, micro_batch_size=16, base_lr=6e-3, clip_grad=1.0
        ),
        run=RunConfig(),
    )


PRESETS = {
    "nano": ("Ours: for a CPU.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), variant="tiny")),
    "k400": ("VideoConvMAE-B on Kinetics-400.", k400()),
    "ssv2": ("VideoConvMAE-B on Something-Something v2.", ssv2()),
}


def read_splits(config: VideoFinetuneConfig) -> tuple[VideoFolder, VideoFolder]:
    """The videos to train on and those to validate on."""
    if config.validate_on == "val":
        return read_video_splits(config.data)
    train = read_video_folder(config.data, "train")
    return train, train


def prepare(config: VideoFinetuneConfig) -> TrainingLoop:
    """Everything a run needs, before its first update.

    Raises:
        ConvMAEError: bad data, checkpoint or settings.
    """
    import_av()  # else every video would count as one that cannot be decoded
    train, val = read_splits(config)
    facts = {
        "classes": list(train.classes),
        "train_videos": len(train.videos),
        "val_videos": len(val.videos),
        LISTING: listing(config.data, *(zip(split.videos, split.labels, strict=True) for split in (train, val))),
    }
    setup = Setup.of(config)
    setup.check_data(partial(check_videos, config.data, train, val))
    record = config.initial_record("video-classification", classes=train.classes)
    assert isinstance(record.preprocessing, ClipPreprocessing)
    transform = clip_training_transform(config.augmentation, record.model.image_size, record.preprocessing)
    videos = AugmentedVideos(train, record.preprocessing, transform, config.run.seed, copies=config.copies)
    source = setup.source(videos, collate_copies)
    classifier = initial_model(config, record.model, len(train.classes), setup.console)
    optimizer = build_adamw(classifier, config.optimisation, layer_decay=config.layer_decay)
    run = setup.begin(record, classifier, optimizer, source, facts)
    validation, mixing = (
        EvaluationVideos(val, record.preprocessing),
        batch_mixing(config.augmentation, len(train.classes)),
    )
    return setup.loop(
        source,
        FinetuneRecipe(config=config, run=run, validation=validation, mixing=mixing),
        kind="videos",
        validate_on=config.validate_on,
        validation_epochs=config.validation_epochs,
    )


def initial_model(
    config: VideoFinetuneConfig, architecture: ConvMAEConfig, num_classes: int, console: Console
) -> ConvMAEClassifier:
    """A classifier with fresh weights, its encoder replaced by that of `config.init` where one is given."""
    model = build_video_classifier(
        architecture,
        config.video,
        num_classes=num_classes,
        drop_path_rate=config.drop_path,
        head_init_std=config.head_init_std,
    )
    return config.started(model, architecture, console)


def main() -> int:
    """Command line: a preset, then flags that change it."""
    return run_preset(PRESETS, "python -m training.video_finetune", prepare)


if __name__ == "__main__":
    run_program(main)
