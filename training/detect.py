"""Trains a ConvMAE detector (Mask R-CNN: boxes and masks) on photos annotated in COCO's format.

    python -m training.detect nano --data coco/ --init runs/pretrained --out runs/detector
    python -m training.detect base-25 --data coco/ --init convmae_base.pth --out runs/coco
    torchrun --nproc-per-node 8 -m training.detect base-25 --data coco/ --init convmae_base.pth --out runs/coco

Data: annotations/instances_{train,val}.json and images/{train,val}/, or the folders of COCO and of labelling tools. The
presets `base-25`, `base-50` and `base-100` are the paper's (53.2 box AP and 47.1 mask AP on COCO; 8 A100 for 29 hours),
`vitdet-base` is that of the authors' second repository (53.9 and 47.6); none of them was run by us. `nano`, `tiny` and
`overfit` are ours for a CPU: training/README.md has their figures.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
from PIL import Image
from rich.console import Console
from torch import Tensor

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.data.coco import CocoSplit, read_coco_split
from convmae_deploy.data.coco_file import note_unread
from convmae_deploy.data.data_check import check_coco
from convmae_deploy.data.detection_augmentation import DetectionAugmentation, DetectionAugmentationConfig, Target
from convmae_deploy.data.detection_datasets import AugmentedDetections, EvaluationDetections, collate_detections
from convmae_deploy.data.listing import LISTING, listing
from convmae_deploy.engine.dense import NANO, NANO_OPTIMISATION, DenseTrainingConfig
from convmae_deploy.engine.detection import detection_picture, evaluate_detector
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.optimisation import DenseOptimisationConfig, build_adamw
from convmae_deploy.engine.pictures import first_photos
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_config import RunConfig, check_at_least
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset, synchronised
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import DETECTORS, ConvMAEDetector, build_detector
from convmae_deploy.program import run_program

PER_256 = 256 / 32  # from the learning rate of the paper's 32 photos to the one of 256 that --base-lr gives


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DenseTrainingConfig):
    """One training of a detector."""

    detector: Literal["nano_fpn", "tiny_fpn", "base_fpn", "base_fpn_shifted", "base_simple"]  # see models.detector
    data: Path = tyro.MISSING  # folder of photos and annotations
    image_size: tuple[int, int] | None = None  # (height, width) of the input in pixels; None: the detector's
    drop_path: float = 0.1  # stochastic depth of the last block
    layer_decay: float | None = None  # factor of the learning rate from one layer to the one below it; None: none
    freeze_positions: bool = False  # leave the position embedding as it is initialised
    licences: tuple[int, ...] = ()  # ids, in the annotations, of the licences of photos to train on; none: all
    train_images: int | None = None  # train on so many photos with objects, those with the lowest ids; None: all
    empty_photos: bool = False  # train on photos without objects too, which detectron2 leaves out
    validate_on: Literal["val", "train"] = "val"  # train: the photos trained on, to see whether they can be learnt
    augmentation: DetectionAugmentationConfig = field(default_factory=DetectionAugmentationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, train_images=self.train_images)


def base_25() -> DetectConfig:
    """The paper's recipe on COCO: 92 187 updates of 32 photos, which are 25 epochs, at a learning rate of 8e-5.

    As in the authors' code biases decay, the position embedding stays as pretrained, and there is no layer decay.
    """
    return DetectConfig(
        detector="base_fpn",
        freeze_positions=True,
        optimisation=DenseOptimisationConfig(
            epochs=25,
            batch_size=32,
            micro_batch_size=4,
            base_lr=8e-5 * PER_256,
            warmup_steps=461,
            warmup_factor=1e-3,
            weight_decay=0.1,
        ),
        run=RunConfig(workers=8),
    )


def longer(config: DetectConfig, epochs: int) -> DetectConfig:
    """The same recipe for another number of epochs."""
    return replace(config, optimisation=replace(config.optimisation, epochs=epochs))


def vitdet_base() -> DetectConfig:
    """The authors' second recipe on COCO: 184 375 updates of 16 photos, 25 epochs, at 1e-4 with layer decay 0.8.

    The learning rate falls tenfold after 163 889 and 177 546 updates. Input is padded with the level 128; theirs, with
    the mean colour.
    """
    return DetectConfig(
        detector="base_simple",
        layer_decay=0.8,
        optimisation=DenseOptimisationConfig(
            epochs=25,
            batch_size=16,
            micro_batch_size=2,
            base_lr=1e-4 * 2 * PER_256,
            schedule="steps",
            warmup_steps=250,
            warmup_factor=1e-3,
            weight_decay=0.1,
        ),
        run=RunConfig(workers=8),
    )


def nano() -> DetectConfig:
    """On a few hundred photos, on a CPU."""
    return DetectConfig(
        detector="nano_fpn",
        **NANO,
        optimisation=replace(NANO_OPTIMISATION, epochs=60, weight_decay=0.1),
        augmentation=DetectionAugmentationConfig(scale=(0.5, 2.0)),
    )


def overfit() -> DetectConfig:
    """The nano detector on 20 photos as they are, validated on the same: what can be learnt must be learnt here."""
    return replace(
        nano(),
        image_size=(320, 320),
        train_images=20,
        validate_on="train",
        drop_path=0.0,
        layer_decay=None,
        validation_epochs=25,
        picture_epochs=25,
        optimisation=replace(
            nano().optimisation,
            epochs=300,
            batch_size=4,
            micro_batch_size=4,
            base_lr=1.28e-1,  # 2e-3 for 4 photos
            weight_decay=0.0,
        ),
        augmentation=DetectionAugmentationConfig(scale=(1.0, 1.0), flip=0.0),
    )


PRESETS = {
    "nano": ("Ours: on a CPU.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), detector="tiny_fpn")),
    "overfit": ("Ours: nano on 20 photos, to see whether it learns.", overfit()),
    "base-25": ("ConvMAE-B, the paper's recipe: 25 epochs of COCO.", base_25()),
    "base-50": ("The same for 50 epochs.", longer(base_25(), 50)),
    "base-100": ("The same for 100 epochs.", longer(base_25(), 100)),
    "vitdet-base": ("ConvMAE-B in the authors' ViTDet form, their recipe.", vitdet_base()),
}


def read_splits(config: DetectConfig) -> tuple[CocoSplit, CocoSplit]:
    """The photos to train on and those to validate on.

    Raises:
        ConvMAEError: the annotations are bad, or `val` has objects of a category that `train` has not.
    """
    whole = read_coco_split(config.data, "train")
    train = whole.for_training(licences=config.licences, limit=config.train_images, empty_photos=config.empty_photos)
    val = train if config.validate_on == "train" else read_coco_split(config.data, "val", like=whole)
    named = {photo.path for split in (whole, val) for photo in split.photos}
    note_unread(config.data, ("train",) if val is train else ("train", "val"), named, train.findings)
    return train, val


def data_facts(root: Path, train: CocoSplit, val: CocoSplit) -> dict[str, Any]:
    """What run.json says of the photos; crowds and dropped annotations are those of the whole file."""
    return {
        "classes": list(train.classes),
        "category_ids": list(train.category_ids),
        "train_photos": len(train.photos),
        "val_photos": len(val.photos),
        "train_objects": sum(len(train.objects[index]) for index in range(len(train.photos))),
        "train_crowds": train.crowds,
        "train_dropped": train.dropped,
        LISTING: listing(root, train.annotated(), val.annotated()),
    }


def prepare(config: DetectConfig) -> TrainingLoop:
    """Everything a run needs, before its first update.

    Raises:
        ConvMAEError: bad data, checkpoint or settings.
    """
    train, val = read_splits(config)
    setup = Setup.of(config)
    setup.check_data(partial(check_coco, config.data, train, val))
    record, preprocessing = initial_record(config, train.classes, train.category_ids)
    augmentation = DetectionAugmentation(config.augmentation, preprocessing)
    source = setup.source(AugmentedDetections(train, augmentation, config.run.seed), collate_detections)
    model = synchronised(initial_model(config, record, setup.console), setup.accelerator)
    optimizer = build_adamw(model, config.optimisation, layer_decay=config.layer_decay, decay_biases=True)
    run = setup.begin(record, model, optimizer, source, data_facts(config.data, train, val))
    return setup.loop(
        source,
        DetectRecipe(config=config, run=run, validation=EvaluationDetections(val, preprocessing)),
        validate_on=config.validate_on,
        validation_epochs=config.validation_epochs,
        picture_epochs=config.picture_epochs,
    )


def initial_record(
    config: DetectConfig, classes: tuple[str, ...], category_ids: tuple[int, ...] = ()
) -> tuple[CheckpointRecord, Letterbox]:
    """What checkpoints say of themselves before any result, and of it how a photo fills the input."""
    architecture, detector = DETECTORS[config.detector]()
    architecture = for_input(architecture, config.image_size)
    preprocessing = Letterbox(size=architecture.input_size)
    record = CheckpointRecord(
        kind="detection",
        variant=config.detector.split("_")[0],  # the names of DETECTORS begin with the encoder's
        model=architecture,
        detector=detector,
        classes=classes,
        category_ids=category_ids,
        preprocessing=preprocessing,
        licence=Licence(name=config.licence),
    )
    return record, preprocessing


def for_input(architecture: ConvMAEConfig, image_size: tuple[int, int] | None) -> ConvMAEConfig:
    """The encoder for inputs of another size; where relative positions have a size of their own, that follows alone."""
    if image_size is None:
        return architecture
    if architecture.dense.relative_size is not None:
        return replace(architecture, dense=replace(architecture.dense, relative_size=image_size))
    return replace(architecture, image_size=image_size)


def initial_model(config: DetectConfig, record: CheckpointRecord, console: Console) -> ConvMAEDetector:
    """A detector with fresh weights, its encoder replaced by that of `config.init` where one is given."""
    assert record.detector is not None
    model = build_detector(
        record.model, record.detector, num_classes=len(record.classes), drop_path_rate=config.drop_path
    )
    model.encoder.pos_embed.requires_grad_(not config.freeze_positions)
    return config.started(model, record.model, console)


@dataclass(kw_only=True)
class DetectRecipe(Recipe):
    """The loss of a detector, what it scores, and a picture of what it finds."""

    config: DetectConfig
    validation: EvaluationDetections
    best_by: ClassVar = "mask_ap"
    best_label: ClassVar = "mask AP"

    def loss(self, images: Tensor, targets: list[Target]) -> Tensor:
        """The sum of the five losses; the last micro-batch of an update tells TensorBoard each of them."""
        losses: dict[str, Tensor] = self.run.model(images, targets)
        self.loss_parts = {name: value.detach() for name, value in losses.items()}
        return sum(losses.values(), start=images.new_zeros(()))

    def validate(self) -> Validation:
        """What the detector scores on the validation photos."""
        at_once, workers = self.config.optimisation.micro_batch_size, self.config.run.workers
        model, accelerator = self.run.bare_model, self.run.accelerator
        return evaluate_detector(model, self.validation, accelerator, batch_size=at_once, workers=workers)

    def draw(self) -> Image.Image | None:
        """What is annotated and what is found in the first validation photos."""
        drawn = first_photos(self.validation)
        return detection_picture(self.run.bare_model, self.validation, drawn, self.run.accelerator)


def main() -> int:
    """Command line: a preset, then flags that change it."""
    return run_preset(PRESETS, "python -m training.detect", prepare)


if __name__ == "__main__":
    run_program(main)
