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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_pretraining_norm
from convmae_deploy.checkpoints.original_keys import PROBE_NORM_EPS, fold_probe_head
from convmae_deploy.data.augmentation import AugmentationConfig, normalised, training_transform
from convmae_deploy.data.data_check import check_photos
from convmae_deploy.data.determinism import StepSampler, StepSource, seed_step
from convmae_deploy.data.features import EvaluationFeatures, FeatureSource, read_features
from convmae_deploy.data.photo_datasets import AugmentedPhotos, EvaluationPhotos, Transform
from convmae_deploy.data.photo_folder import read_photo_splits
from convmae_deploy.engine.classification import (
    Accuracy,
    ClassifierConfig,
    ClassifierRecipe,
    initial_record,
    paper_presets,
    split_facts,
)
from convmae_deploy.engine.evaluation import Validation, evaluate
from convmae_deploy.engine.feature_cache import FeatureCache, photos_digest, weights_digest
from convmae_deploy.engine.optimisation import LarsConfig, build_lars
from convmae_deploy.engine.training_config import RunConfig, check_at_least
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset, start_from
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, GlobalPool, build_classifier
from convmae_deploy.printing import counted
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class LinprobeConfig(ClassifierConfig):
    """One linear probe."""

    init: Path = tyro.MISSING  # pretrained checkpoint: ours (folder) or the authors' (.pth)
    # avg: mean of all tokens; token: the top-left one under the pretraining norm, which the authors' code probes unless
    # told otherwise and which scores lower; only to repeat results that were got so
    global_pool: GlobalPool = "avg"
    cached_views: int = 0  # augmented views of each photo to compute features of, once; 0: new ones every epoch
    head_init_std: float = 0.01  # standard deviation of the new head's weights
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the photo's area that a random crop covers
    flip: float = 0.5  # probability of a horizontal flip
    optimisation: LarsConfig = field(default_factory=LarsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, cached_views=self.cached_views)
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
    "vit_nano": ("The baseline: a ViT as large as nano, the nano recipe.", replace(nano(), variant="vit_nano")),
    **paper_presets(base()),
}


def prepare(config: LinprobeConfig) -> TrainingLoop:
    """Everything a run needs, before its first update; where views are cached that includes computing them.

    Raises:
        ConvMAEError: bad data, checkpoint or settings.
    """
    train, val = read_photo_splits(config.data)
    setup = Setup.of(config)
    setup.check_data(partial(check_photos, config.data, train, val))
    record = initial_record(
        config.variant, train.classes, config.image_size, licence=config.licence, global_pool=config.global_pool
    )
    assert isinstance(record.preprocessing, Preprocessing)
    classifier = frozen_classifier(config, record, setup.console).to(setup.accelerator.device)
    facts = split_facts(config.data, train, val)
    facts["encoder"] = frozen_digest(classifier)  # it is not in `last`: resuming must find the same one
    seed_step(config.run.seed, 0)
    probe = LinearProbe(classifier.num_features, len(train.classes), config.head_init_std)
    photos = AugmentedPhotos(train, augmentation(config, record.preprocessing), config.run.seed)
    validation = EvaluationPhotos(val, record.preprocessing)
    source: StepSource = setup.source(photos)
    check_no_photo_alone(source.steps)
    run = setup.begin(record, probe, build_lars(probe, config.optimisation), source, facts)
    features = FrozenFeatures(classifier, record.preprocessing, setup.accelerator)
    if config.cached_views:
        source, validation = open_cached(config, features, photos, validation, setup)
    recipe = LinearProbeRecipe(config=config, run=run, features=features, validation=validation)
    return setup.loop(source, recipe, validation_epochs=config.validation_epochs)


def check_no_photo_alone(steps: StepSampler) -> None:
    """Raises ConvMAEError where a micro-batch would have one photo: BatchNorm compares photos."""
    if steps.batch_size // steps.world_size // steps.micro_batches_per_step < 2:
        raise ConvMAEError(
            f"BatchNorm needs at least two photos at once; an update of {steps.batch_size} photos on "
            f"{steps.world_size} processes has a micro-batch of one: raise --batch-size"
        )


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
    setup: Setup,
) -> tuple[StepSource, EvaluationPhotos]:
    """Features in place of the photos of both splits, computed where they are not there yet."""
    views = min(config.cached_views, config.optimisation.epochs)
    cache = FeatureCache(
        folder=config.run.out / "features",
        accelerator=setup.accelerator,
        features=features,
        width=features.classifier.num_features,
        made_of={
            "encoder": frozen_digest(features.classifier),
            "global_pool": config.global_pool,
            "precision": setup.config.run.precision,
            "seed": config.run.seed,
            "crop_scale": config.crop_scale,
            "flip": config.flip,
            "preprocessing": validation.preprocessing.model_dump(),
        },
        batch_size=config.optimisation.micro_batch_size,
        workers=config.run.workers,
        console=setup.console,
    )
    setup.console.print(
        f"features of {counted(views, 'view')} of {counted(len(photos), 'photo')}, and of {len(validation)} for "
        f"validation, are kept in {cache.folder}; if interrupted continue with --resume"
    )
    train, val = (photos_digest(split.folder, config.data) for split in (photos, validation))
    files = [
        cache.computed(f"view-{view}", photos, [(view, index) for index in range(len(photos))], train)
        for view in range(views)
    ]
    val_features = read_features(cache.computed("val", validation, range(len(validation)), val))
    evaluated = EvaluationFeatures(validation.folder, validation.preprocessing, val_features)
    return FeatureSource(files, photos.folder, setup.sampler(len(photos))), evaluated


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
    preprocessing: Preprocessing
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) on the device, normalised or in uint8, to (B, D) float32."""
        with self.accelerator.autocast():
            e3 = self.classifier.forward_features(normalised(images, self.preprocessing))
            return self.classifier.forward_head(e3, pre_logits=True).float()


@dataclass(kw_only=True)
class LinearProbeRecipe(ClassifierRecipe):
    """The loss of the probe, the run's model, and what the whole classifier scores, which is `best`."""

    config: LinprobeConfig
    features: FrozenFeatures
    validation: EvaluationPhotos  # their features where views are cached

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; the inputs are images, or features where views are cached."""
        features = inputs if self.config.cached_views else self.features(inputs)
        return F.cross_entropy(self.run.model(features).float(), labels)

    def validate(self) -> Validation:
        """What would be served scores on the validation photos."""
        classifier, cached = self.features.classifier, self.config.cached_views > 0
        self.fold()
        return evaluate(
            classifier.head if cached else classifier,
            self.validation,
            Accuracy(),
            self.run.accelerator,
            batch_size=self.config.optimisation.micro_batch_size,
            workers=0 if cached else self.config.run.workers,
        )

    def save_best(self, record: CheckpointRecord) -> None:
        """Writes the classifier, by the main process."""
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
    return run_preset(PRESETS, "python -m training.linprobe", prepare)


if __name__ == "__main__":
    run_program(main)
