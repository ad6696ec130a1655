"""Trains a ConvMAE segmenter (UperNet) on photos with label maps.

    python -m training.segment nano --data camvid/ --init runs/pretrained --out runs/segmenter
    python -m training.segment base --data ADEChallengeData2016/ --init convmae_base.pth --out runs/ade20k
    torchrun --nproc-per-node 8 -m training.segment base --data ADEChallengeData2016/ --init runs/base --out runs/ade20k

Data in ADE20K's own folders (images/ and annotations/{training,validation}), or images/{train,val} and
labels/{train,val} with a classes.json. The preset `base` is the authors' for ADE20K in the form of their code (51.66 %
mIoU from 1600 epochs of pretraining, 8 GPUs; not run by us), `base-paper` the same in the form that the paper
describes. `nano` and `tiny` are ours for a CPU: training/README.md has their figures.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch.nn.functional as F
import tyro
from PIL import Image
from rich.console import Console
from torch import Tensor

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import SlidingWindow, standard_windows
from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.data.data_check import check_segmentation
from convmae_deploy.data.listing import LISTING, listing
from convmae_deploy.data.segmentation_augmentation import SegmentationAugmentation, SegmentationAugmentationConfig
from convmae_deploy.data.segmentation_datasets import AugmentedSegmentation
from convmae_deploy.data.segmentation_folder import IGNORE, read_segmentation_splits
from convmae_deploy.engine.dense import NANO, NANO_OPTIMISATION, DenseTrainingConfig
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.optimisation import DenseOptimisationConfig, build_adamw
from convmae_deploy.engine.pictures import first_photos
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.segmentation import (
    EvaluationSegmentation,
    evaluate_segmenter,
    segmentation_picture,
    window_runner,
)
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset, synchronised
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, DenseConfig, Variant
from convmae_deploy.models.segmenter import ConvMAESegmenter, SegmenterConfig, authors_dense, build_segmenter
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseTrainingConfig):
    """One training of a segmenter."""

    variant: Variant  # the encoder's
    data: Path = tyro.MISSING  # folder of photos and label maps
    image_size: tuple[int, int] = (512, 512)  # (height, width) in pixels of training crops and of windows in use
    # plain, as in the paper, or authors: relative positions, LayerScale and their norm's epsilon, as in their code
    stage3: Literal["plain", "authors"] = "plain"
    drop_path: float = 0.2  # stochastic depth of the last block
    layer_decay: float = 0.75  # factor of the learning rate from one layer to the one below it
    auxiliary_weight: float = 0.4  # weight of the auxiliary head's loss
    validation_epochs: int = 13  # a validation every so many epochs, and after the last
    picture_epochs: int = 13  # a picture of validation photos every so many epochs, and after the last; 0: never
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    augmentation: SegmentationAugmentationConfig = field(default_factory=SegmentationAugmentationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimisation.micro_batch_size < 2:
            raise ConvMAEError("micro_batch_size must be at least 2: BatchNorm compares photos; got 1")


def base() -> SegmentConfig:
    """The authors' recipe for ADE20K in the form of their code.

    Their 160 000 updates of 16 photos (the paper says 16k): 127 epochs of ADE20K's 20 210 photos are 160 401.
    """
    return SegmentConfig(
        variant="base",
        stage3="authors",
        model=SegmenterConfig(e4="convolution"),
        optimisation=DenseOptimisationConfig(
            epochs=127,
            batch_size=16,
            micro_batch_size=4,
            base_lr=1.6e-3,  # 1e-4 for 16 photos
            schedule="linear",
            warmup_steps=1500,
            warmup_factor=1e-6,
        ),
        run=RunConfig(workers=8),
    )


def base_paper() -> SegmentConfig:
    """The same recipe in the form of the paper: max-pooled E4, and stage 3 as it was pretrained."""
    return replace(base(), stage3="plain", model=SegmenterConfig())


def nano() -> SegmentConfig:
    """On a few hundred photos, on a CPU."""
    return SegmentConfig(
        variant="nano",
        image_size=(256, 256),
        **NANO,
        model=SegmenterConfig(channels=64, auxiliary_channels=64),
        optimisation=replace(NANO_OPTIMISATION, epochs=40, schedule="linear"),
        augmentation=SegmentationAugmentationConfig(short_side=360, scale=(0.6, 1.6)),
    )


PRESETS = {
    "nano": ("Ours: on a CPU.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), variant="tiny")),
    "base": ("ConvMAE-B for ADE20K, the authors' recipe and code.", base()),
    "base-paper": ("ConvMAE-B for ADE20K as the paper describes it.", base_paper()),
}


def prepare(config: SegmentConfig) -> TrainingLoop:
    """Everything a run needs, before its first update.

    Raises:
        ConvMAEError: bad photos, label maps, checkpoint or settings.
    """
    train, val = read_segmentation_splits(config.data)
    facts = {
        "classes": list(train.classes),
        "train_photos": len(train.photos),
        "val_photos": len(val.photos),
        LISTING: listing(config.data, train.files(), val.files()),
    }
    setup = Setup.of(config)
    setup.check_data(partial(check_segmentation, config.data, train, val))
    record, windows = initial_record(config, train.classes)
    augmentation = SegmentationAugmentation(config.augmentation, config.image_size, mean=windows.mean, std=windows.std)
    source = setup.source(AugmentedSegmentation(train, augmentation, config.run.seed))
    model = synchronised(initial_model(config, record, setup.console), setup.accelerator)
    optimizer = build_adamw(model, config.optimisation, layer_decay=config.layer_decay)
    run = setup.begin(record, model, optimizer, source, facts)
    recipe = SegmentRecipe(config=config, run=run, validation=EvaluationSegmentation(val, windows))
    return setup.loop(source, recipe, validation_epochs=config.validation_epochs, picture_epochs=config.picture_epochs)


def initial_record(config: SegmentConfig, classes: tuple[str, ...]) -> tuple[CheckpointRecord, SlidingWindow]:
    """What checkpoints say of themselves before any result, and of it where windows lie."""
    dense = authors_dense() if config.stage3 == "authors" else DenseConfig()
    windows = standard_windows(config.image_size, config.augmentation.short_side, config.augmentation.long_side)
    record = CheckpointRecord(
        kind="segmentation",
        variant=config.variant,
        model=replace(MODELS[config.variant](), image_size=config.image_size, dense=dense),
        segmenter=config.model,
        classes=classes,
        preprocessing=windows,
        licence=Licence(name=config.licence),
    )
    return record, windows


def initial_model(config: SegmentConfig, record: CheckpointRecord, console: Console) -> ConvMAESegmenter:
    """A segmenter with fresh weights, its encoder replaced by that of `config.init` where one is given."""
    model = build_segmenter(
        record.model, config.model, num_classes=len(record.classes), drop_path_rate=config.drop_path
    )
    return config.started(model, record.model, console)


def pixel_loss(logits_bkhw: Tensor, labels_bhw: Tensor) -> Tensor:
    """Cross-entropy of logits of any grid, resized to the labels' size; the mean over all pixels.

    Pixels of no class (`IGNORE`) add nothing but count, as in the authors' mmsegmentation: so the mean over a batch is
    that over its parts, and photos without any label give 0.
    """
    logits = F.interpolate(logits_bkhw.float(), size=labels_bhw.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels_bhw, ignore_index=IGNORE, reduction="none").mean()


@dataclass(kw_only=True)
class SegmentRecipe(Recipe):
    """The loss of a segmenter, what it scores, and a picture of what it says."""

    config: SegmentConfig
    validation: EvaluationSegmentation
    best_by: ClassVar = "miou"
    best_label: ClassVar = "mIoU"

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of both heads.

        BatchNorm needs two values of each channel and pooling leaves one of a photo, so a lone photo is taken twice.
        """
        if len(images) == 1:
            images, labels = images.expand(2, -1, -1, -1), labels.expand(2, -1, -1)
        logits, auxiliary = self.run.model(images, auxiliary=True)
        return pixel_loss(logits, labels) + self.config.auxiliary_weight * pixel_loss(auxiliary, labels)

    def validate(self) -> Validation:
        """What the segmenter scores on the validation photos."""
        run, at_once = self.run, self.config.optimisation.micro_batch_size
        return evaluate_segmenter(
            run.bare_model, self.validation, run.accelerator, batch_size=at_once, workers=run.config.workers
        )

    def draw(self) -> Image.Image | None:
        """The first validation photos with their labels and with what is said of them."""
        folder, windows = self.validation.folder, self.validation.preprocessing
        at_once = self.config.optimisation.micro_batch_size
        runner = window_runner(self.run.bare_model, self.run.accelerator, at_once)
        return segmentation_picture(folder, first_photos(self.validation), windows, runner)


def main() -> int:
    """Command line: a preset, then flags that change it."""
    return run_preset(PRESETS, "python -m training.segment", prepare)


if __name__ == "__main__":
    run_program(main)
