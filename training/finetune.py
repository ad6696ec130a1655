"""Finetunes a ConvMAE classifier on a folder of photos.

    python -m training.finetune nano --data photos/ --out runs/mine
    python -m training.finetune base --data imagenet/ --out runs/base --init convmae_base.pth
    torchrun --nproc-per-node 8 -m training.finetune base --data imagenet/ --out runs/base --init pretrained/

`photos/{train,val}/<class>/*`; a `photos/classes.json` {"folder": "name"} names the classes. The preset `base` is the
paper's recipe (FINETUNE.md of the authors: 85.0 % top-1 on ImageNet-1K from 1600 epochs of pretraining, on 32 GPUs; not
run by us). `nano` is ours for a CPU and made the model that ships: see its model card for time and accuracy.
"""

from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing, training_transform
from convmae_deploy.data.data_check import check_photos
from convmae_deploy.data.photo_datasets import AugmentedPhotos, EvaluationPhotos
from convmae_deploy.data.photo_folder import read_photo_splits
from convmae_deploy.engine.classification import (
    FinetuneRecipe,
    FinetuningConfig,
    initial_record,
    paper_presets,
    split_facts,
)
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset, start_from
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, check_image_size
from convmae_deploy.models.vit import PhotoVariant
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FinetuningConfig):
    """One finetuning run."""

    image_size: tuple[int, int] | None = None  # (height, width) of validation and use; None: the variant's
    train_size: tuple[int, int] | None = None  # for training, smaller ones train faster (arXiv 1906.06423); None: same

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_size is not None:
            check_image_size(self.train_size)


def base() -> FinetuneConfig:
    """The paper's recipe for ConvMAE-B (CONVMAE's FINETUNE.md; layer decay 0.65 is the command's, 0.75 its default)."""
    return FinetuneConfig(variant="base", run=RunConfig(workers=8))


def as_mae(variant: PhotoVariant, drop_path: float) -> FinetuneConfig:
    """MAE's recipe for a ViT of this size (its FINETUNE.md).

    The paper names layer decays of 0.65, 0.75 and 0.85 and not for which sizes, and no epochs or drop path by size.
    """
    plain = base()
    return replace(
        plain,
        variant=variant,
        drop_path=drop_path,
        layer_decay=0.75,
        optimisation=replace(plain.optimisation, epochs=50, base_lr=1e-3),
    )


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
    "vit_nano": ("The baseline: a ViT as large as nano, the nano recipe.", replace(nano(), variant="vit_nano")),
    **paper_presets(base()),
    "large": ("ConvMAE-L, MAE's recipe for ViT-L.", as_mae("large", drop_path=0.2)),
    "huge": ("ConvMAE-H, MAE's recipe for ViT-H.", as_mae("huge", drop_path=0.3)),
}


def prepare(config: FinetuneConfig) -> TrainingLoop:
    """Everything a run needs, before its first update.

    Raises:
        ConvMAEError: bad data, checkpoint or settings.
    """
    train, val = read_photo_splits(config.data)
    setup = Setup.of(config)
    setup.check_data(partial(check_photos, config.data, train, val))
    record = initial_record(config.variant, train.classes, config.image_size, licence=config.licence)
    assert isinstance(record.preprocessing, Preprocessing)
    train_size = config.train_size or record.model.image_size
    transform = training_transform(config.augmentation, train_size, record.preprocessing)
    source = setup.source(AugmentedPhotos(train, transform, config.run.seed))
    classifier = initial_model(config, record.model, len(train.classes), setup.console)
    optimizer = build_adamw(classifier, config.optimisation, layer_decay=config.layer_decay)
    run = setup.begin(record, classifier, optimizer, source, split_facts(config.data, train, val))
    recipe = FinetuneRecipe(
        config=config,
        run=run,
        validation=EvaluationPhotos(val, record.preprocessing),
        mixing=batch_mixing(config.augmentation, len(train.classes)),
    )
    return setup.loop(source, recipe, validation_epochs=config.validation_epochs)


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
    start_from(model.encoder, config.init, architecture, console)
    return model


def main() -> int:
    """Command line: a preset, then flags that change it."""
    return run_preset(PRESETS, "python -m training.finetune", prepare)


if __name__ == "__main__":
    run_program(main)
