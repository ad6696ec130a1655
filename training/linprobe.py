"""Trains a linear classifier on the frozen features of a pretrained ConvMAE: what pretraining alone has learnt.

    python -m training.linprobe nano --data photos/ --init runs/pretrained --out runs/probe
    python -m training.linprobe base --data imagenet/ --init convmae_base.pth --out runs/probe
    torchrun --nproc-per-node 8 -m training.linprobe base --data imagenet/ --init runs/base --out runs/probe

The encoder never changes; BatchNorm without affine and a Linear are trained on its pooled features. `best` is a
classifier like any other, BatchNorm folded into its head, to export and serve; `last` holds the head alone, to resume.

The preset `base` is the authors' recipe (FINETUNE.md: 70.9 % top-1 on ImageNet-1K from 1600 epochs of pretraining, 32
GPUs; not run by us). Two things to know of it: without their flag `--global_pool`, which one of their two commands
lacks, the authors' code probes the top-left token under the pretraining norm instead of the mean of all tokens, which
is `--global-pool token` here, only to repeat such results; and their crop is one draw where ours tries ten.
`nano` is ours for a CPU: it runs the encoder over ten augmented views of each photo once and trains on what comes out
(`--cached-views`).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import Tensor, nn

from convmae_deploy.bundle.manifest import Preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_pretraining_norm
from convmae_deploy.checkpoints.original_keys import PROBE_NORM_EPS, fold_probe_head
from convmae_deploy.data.augmentation import AugmentationConfig, training_transform
from convmae_deploy.data.determinism import StepSampler, StepSource, seed_step
from convmae_deploy.data.features import EvaluationFeatures, FeatureSource, read_features
from convmae_deploy.data.photo_datasets import AugmentedPhotos, EvaluationPhotos, Transform
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.sources import FolderSource
from convmae_deploy.engine.classification import (
    classification_log,
    initial_record,
    read_splits,
    split_facts,
    told_accuracy,
)
from convmae_deploy.engine.epoch_log import EpochLog, Validation, check_validation_epochs
from convmae_deploy.engine.evaluation import evaluate
from convmae_deploy.engine.feature_cache import FeatureCache, photos_digest, weights_digest
from convmae_deploy.engine.optimisation import LarsConfig, build_lars
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import RunConfig, TrainingRun, refuse_sharding, start_from, training_sampler
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, GlobalPool, build_classifier
from convmae_deploy.models.convmae import Variant, check_image_size
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class LinprobeConfig:
    """One linear probe."""

    variant: Variant  # of the model
    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    init: Path = tyro.MISSING  # pretrained checkpoint: ours (folder) or the authors' (.pth)
    image_size: tuple[int, int] | None = None  # (height, width) of training, validation and use; None: the variant's
    # avg: mean of all tokens; token: the top-left one under the pretraining norm, which the authors' code probes unless
    # told otherwise and which scores lower; only to repeat results that were got so
    global_pool: GlobalPool = "avg"
    cached_views: int = 0  # augmented views of each photo to compute features of, once; 0: new ones every epoch
    head_init_std: float = 0.01  # of the new head's weights
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the photo's area that a random crop covers
    flip: float = 0.5  # probability of a horizontal flip
    validation_epochs: int = 1  # a validation every so many epochs, and after the last
    licence: str = "unspecified: ask whoever trained these weights"  # of the weights that come out
    optimisation: LarsConfig = field(default_factory=LarsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_validation_epochs(self.validation_epochs)
        if self.cached_views < 0:
            raise ConvMAEError(f"cached_views must be at least 0; got {self.cached_views}")
        if self.image_size is not None:
            check_image_size(self.image_size)
        if self.optimisation.micro_batch_size < 2:
            raise ConvMAEError("micro_batch_size must be at least 2: BatchNorm compares photos; got 1")


def base() -> LinprobeConfig:
    """The authors' recipe for ConvMAE-B (FINETUNE.md), with `--global_pool`."""
    return LinprobeConfig(variant="base", run=RunConfig(workers=8))


def nano() -> LinprobeConfig:
    """A few thousand photos, on a CPU.

    There are some hundred updates where the paper has 28 000, so that each moves the weights by thirty times as much.
    """
    return LinprobeConfig(
        variant="nano",
        image_size=(96, 96),
        cached_views=10,
        optimisation=LarsConfig(
            warmup_epochs=5, batch_size=256, micro_batch_size=256, base_lr=1.0, trust_coefficient=0.03
        ),
    )


PRESETS = {
    "nano": ("Ours: for a CPU, on cached features.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), variant="tiny")),
    "small": ("ConvMAE-S with the paper's recipe.", replace(base(), variant="small")),
    "base": ("ConvMAE-B, the paper's recipe.", base()),
    "base_kernel7": ("ConvMAE-B with 7x7 convolutions, the paper's recipe.", replace(base(), variant="base_kernel7")),
    "base_kernel9": ("ConvMAE-B with 9x9 convolutions, the paper's recipe.", replace(base(), variant="base_kernel9")),
    "base_plus": ("ConvMAE-B* with the paper's recipe.", replace(base(), variant="base_plus")),
    "large": ("ConvMAE-L with the paper's recipe.", replace(base(), variant="large")),
    "huge": ("ConvMAE-H with the paper's recipe.", replace(base(), variant="huge")),
}


def probe(config: LinprobeConfig) -> int:
    """Runs or resumes a linear probe; returns the exit status (0, or 128 + signal when stopped).

    Raises:
        ConvMAEError: bad data, checkpoint or settings, or losses that stay not finite.
    """
    loop = prepare(config, *read_splits(config.data))
    status = loop.fit()
    if status == 0:
        loop.console.print(f"best validation top-1 {loop.run.progress.best_metric:.2f} %: {config.run.out / 'best'}")
    return status


def prepare(config: LinprobeConfig, train: PhotoFolder, val: PhotoFolder) -> TrainingLoop:
    """Everything a run needs, before its first update; where views are cached that includes computing them."""
    accelerator = config.run.accelerator()
    refuse_sharding(accelerator)
    console = config.run.console(accelerator)
    sampler = training_sampler(len(train.photos), config.optimisation, config.run.seed, accelerator)
    record = initial_record(
        config.variant, train.classes, config.image_size, licence=config.licence, global_pool=config.global_pool
    )
    classifier = frozen_classifier(config, record, console).to(accelerator.device)
    frozen = frozen_digest(classifier)
    seed_step(config.run.seed, 0)
    probe = LinearProbe(classifier.num_features, len(train.classes), config.head_init_std)
    run = TrainingRun.begin(
        config,
        run=config.run,
        accelerator=accelerator,
        record=record,
        model=probe,
        optimizer=build_lars(probe, config.optimisation),
        micro_batches=sampler.micro_batches_per_step,
        facts=split_facts(train, val) | {"encoder": frozen},  # it is not in `last`: resuming must find the same one
    )
    log = classification_log(
        run,
        console,
        data=config.data,
        epochs=config.optimisation.epochs,
        validation_epochs=config.validation_epochs,
    )
    features = FrozenFeatures(classifier, accelerator)
    assert isinstance(record.preprocessing, Preprocessing)
    photos = AugmentedPhotos(train, augmentation(config, record.preprocessing), config.run.seed)
    validation = EvaluationPhotos(val, record.preprocessing)
    source: StepSource
    if config.cached_views:
        source, validation = open_cached(config, features, photos, validation, sampler, console)
    else:
        pin = accelerator.device.type == "cuda"
        source = FolderSource(photos, sampler, workers=config.run.workers, pin_memory=pin)
    recipe = LinearProbeRecipe(config=config, run=run, features=features, validation=validation, log=log)
    return TrainingLoop(run=run, optimisation=config.optimisation, source=source, recipe=recipe, console=console)


def frozen_classifier(config: LinprobeConfig, record: CheckpointRecord, console: Console) -> ConvMAEClassifier:
    """The pretrained encoder with its pooling and norm, and a head to be filled in.

    Raises:
        ConvMAEError: no such encoder, or, for the first token, no pretraining norm.
    """
    classifier = build_classifier(record.model, num_classes=len(record.classes), global_pool=config.global_pool)
    start_from(classifier.encoder, config.init, record.model, console)
    if config.global_pool == "token":  # for the mean fc_norm stays as it starts, as in the authors' code
        norm = load_pretraining_norm(config.init)
        if norm is None:
            raise ConvMAEError(
                f"--global-pool token needs the norm of the pretraining and {config.init} holds none; give the "
                "pretraining checkpoint itself, or leave the option out"
            )
        classifier.fc_norm.load_state_dict(norm)
    if config.run.compile:
        classifier.encoder.compile()
    return classifier.requires_grad_(False).eval()


def frozen_digest(classifier: ConvMAEClassifier) -> str:
    """SHA-256 of the weights that features depend on.

    But for the position embedding: where it was resized its last bits differ from one machine to another.
    """
    changing = ("head.", "encoder.pos_embed")
    state = classifier.state_dict()
    return weights_digest({name: value for name, value in state.items() if not name.startswith(changing)})


def augmentation(config: LinprobeConfig, preprocessing: Preprocessing) -> Transform:
    """A random crop and flip, nothing else."""
    only = AugmentationConfig(
        crop_scale=config.crop_scale, flip=config.flip, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0
    )
    return training_transform(only, preprocessing.crop, preprocessing)


def open_cached(
    config: LinprobeConfig,
    features: "FrozenFeatures",
    photos: AugmentedPhotos,
    validation: EvaluationPhotos,
    sampler: StepSampler,
    console: Console,
) -> tuple[StepSource, EvaluationPhotos]:
    """Features in place of the photos of both splits, computed where they are not there yet."""
    views = min(config.cached_views, config.optimisation.epochs)
    cache = FeatureCache(
        folder=config.run.out / "features",
        accelerator=features.accelerator,
        features=features,
        width=features.classifier.num_features,
        made_of={
            "encoder": frozen_digest(features.classifier),
            "global_pool": config.global_pool,
            "precision": config.run.precision,
            "seed": config.run.seed,
            "crop_scale": config.crop_scale,
            "flip": config.flip,
            "preprocessing": validation.preprocessing.model_dump(),
        },
        batch_size=config.optimisation.micro_batch_size,
        workers=config.run.workers,
        console=console,
    )
    console.print(
        f"features of {views} views of {len(photos)} photos, and of {len(validation)} for validation, are kept in "
        f"{cache.folder}; if interrupted continue with --resume"
    )
    train, val = (photos_digest(split.folder, config.data) for split in (photos, validation))
    files = [
        cache.computed(f"view-{view}", photos, [(view, index) for index in range(len(photos))], train)
        for view in range(views)
    ]
    val_features = read_features(cache.computed("val", validation, range(len(validation)), val))
    evaluated = EvaluationFeatures(validation.folder, validation.preprocessing, val_features)
    return FeatureSource(files, photos.folder.labels, sampler), evaluated


class LinearProbe(nn.Module):
    """What is trained: BatchNorm without affine and a Linear, named as in the authors' files."""

    def __init__(self, width: int, num_classes: int, init_std: float) -> None:
        super().__init__()
        linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(linear.weight, std=init_std)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.BatchNorm1d(width, eps=PROBE_NORM_EPS, affine=False), linear)

    def forward(self, features_bd: Tensor) -> Tensor:
        """Pooled features (B, D) to logits (B, K)."""
        if self.training and len(features_bd) < 2:
            raise ConvMAEError(
                "BatchNorm needs at least two photos at once and a micro-batch had one; raise --batch-size and "
                "--micro-batch-size, or check the data for unreadable photos"
            )
        return self.head(features_bd)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FrozenFeatures:
    """What the probe sees of images."""

    classifier: ConvMAEClassifier
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) on the device to (B, D) float32."""
        with self.accelerator.autocast():
            e3 = self.classifier.forward_features(images)
            return self.classifier.forward_head(e3, pre_logits=True).float()


@dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe:
    """The loss of the probe, and what follows each epoch."""

    config: LinprobeConfig
    run: TrainingRun  # of the LinearProbe alone
    features: FrozenFeatures
    validation: EvaluationPhotos  # their features where views are cached
    log: EpochLog

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; the inputs are images, or features where views are cached."""
        features = inputs if self.config.cached_views else self.features(inputs)
        return F.cross_entropy(self.run.model(features).float(), labels)

    def finish_epoch(self, epoch: int, train_loss: float) -> None:
        """Validates, logs and saves; `best` is the whole classifier."""
        self.log.finish_and_save(epoch, train_loss, validate=self.validate, save_best=self.save_classifier)

    def validate(self) -> Validation:
        """What would be served scores on the validation photos."""
        classifier, cached = self.features.classifier, self.config.cached_views > 0
        self.fold()
        accuracy = evaluate(
            classifier.head if cached else classifier,
            self.validation,
            self.run.accelerator,
            batch_size=self.config.optimisation.micro_batch_size,
            workers=0 if cached else self.config.run.workers,
        )
        return told_accuracy(accuracy)

    def save_classifier(self, record: CheckpointRecord) -> None:
        """Writes `best`, by the main process."""
        if self.run.accelerator.is_main_process:
            self.run.folder.save("best", self.features.classifier.state_dict(), record)

    def fold(self) -> None:
        """Makes the probe, as it is in evaluation, the classifier's head; on all processes the main one's.

        The processes have seen different photos, so the running statistics of their BatchNorms differ.
        """
        weights = self.run.weights()  # whole on the main process
        weights.pop("head.0.num_batches_tracked", None)
        folded = [fold_probe_head(weights) if self.run.accelerator.is_main_process else None]
        broadcast_object_list(folded)
        assert folded[0] is not None
        head = {name.removeprefix("head."): value for name, value in folded[0].items()}
        self.features.classifier.head.load_state_dict(head)


def main() -> int:
    """Command line: a preset, then flags that change it."""
    config = tyro.extras.overridable_config_cli(
        PRESETS, config=(tyro.conf.OmitArgPrefixes,), prog="python -m training.linprobe"
    )
    return probe(config)


if __name__ == "__main__":
    run_program(main)
