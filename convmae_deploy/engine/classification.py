"""What programs that train a classifier share: photos, their accuracy, finetuning and its presets.

Shapes: B images or videos, K classes, V views of a video.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor, nn

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.augmentation import AugmentationConfig
from convmae_deploy.data.listing import LISTING, listing
from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.video_datasets import EvaluationVideos
from convmae_deploy.engine.evaluation import Validation, evaluate
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_config import ValidatedConfig
from convmae_deploy.models.classifier import GlobalPool
from convmae_deploy.models.vit import PhotoVariant, variant_config

PAPER_VARIANTS: dict[PhotoVariant, str] = {  # and what they are called
    "small": "ConvMAE-S",
    "base": "ConvMAE-B",
    "base_kernel7": "ConvMAE-B with 7x7 convolutions",
    "base_kernel9": "ConvMAE-B with 9x9 convolutions",
    "base_plus": "ConvMAE-B*",
    "large": "ConvMAE-L",
    "huge": "ConvMAE-H",
    "vit_base": "MAE's ViT-B",
}


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ValidatedConfig):
    """The settings of a program that trains a classifier."""

    variant: PhotoVariant  # the model's


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig(ClassifierConfig):
    """The settings of a program that finetunes a classifier, of photos or of videos."""

    drop_path: float = 0.1  # stochastic depth of the last block
    head_init_std: float = 2e-5  # standard deviation of the new head's weights
    layer_decay: float = 0.65  # factor of the learning rate from one layer to the one below it
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


Config = TypeVar("Config", bound=ClassifierConfig)


def paper_presets(base: Config) -> dict[str, tuple[str, Config]]:
    """The paper's recipe for each of its variants, as a program's `PRESETS` have them."""
    return {
        name: (f"{title}, the paper's recipe.", replace(base, variant=name)) for name, title in PAPER_VARIANTS.items()
    }


def split_facts(root: Path, train: PhotoFolder, val: PhotoFolder) -> dict[str, Any]:
    """What run.json says of the photos below `root`."""
    return {
        "classes": list(train.classes),
        "train_photos": len(train.photos),
        "val_photos": len(val.photos),
        LISTING: listing(root, *(zip(split.photos, split.labels, strict=True) for split in (train, val))),
    }


def initial_record(
    variant: str,
    classes: tuple[str, ...],
    image_size: tuple[int, int] | None,
    *,
    licence: str,
    global_pool: GlobalPool = "avg",
) -> CheckpointRecord:
    """What the checkpoints of a run say of themselves before any result.

    Args:
        variant: its name.
        classes: the name of each logit.
        image_size: (height, width) in pixels of validation and use; None: the variant's.
        licence: of the weights that come out.
        global_pool: how tokens become one vector.
    """
    architecture = variant_config(variant, image_size)
    return CheckpointRecord(
        kind="classification",
        variant=variant,
        model=architecture,
        classes=classes,
        global_pool=global_pool,
        preprocessing=standard_preprocessing(architecture.image_size),
        licence=Licence(name=licence),
    )


class Accuracy:
    """Top-1 and top-5 accuracy in percent, the latter of all classes where they are fewer, and mean cross-entropy."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)  # cross-entropy, top-1, top-5, images or videos

    def update(self, outputs: Tensor, extra: Tensor) -> None:
        """Counts logits (B, K) against labels (B,)."""
        labels = extra.to(outputs.device)
        hits = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(outputs.float(), labels, reduction="sum")
        batch = [loss.item(), hits[:, 0].sum().item(), hits.sum().item(), len(labels)]
        self.sums += torch.tensor(batch, dtype=torch.float64)

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """`loss`, `top1`, `top5`."""
        loss, top1, top5, count = accelerator.reduce(self.sums.to(accelerator.device), "sum").tolist()
        return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}

    def summary(self, scores: Mapping[str, float]) -> str:
        """The two accuracies."""
        return f"top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %"


class AverageOfViews(nn.Module):
    """A video classifier over several views: the mean of their probabilities, as `tasks.clips.average_views`.

    Input (B, V, 3, T, H, W); output (B, K), the logarithms of the means, which are logits of the same probabilities.
    The views are run one after the other, so they need no more memory than one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        """(B, V, 3, T, H, W) to (B, K)."""
        views = [F.log_softmax(self.model(view).float(), dim=1) for view in clips.unbind(dim=1)]  # V of (B, K)
        return torch.stack(views).logsumexp(dim=0) - math.log(len(views))


@dataclass(kw_only=True)
class ClassifierRecipe(Recipe):
    """What training a classifier is, whatever is trained of it."""

    validation: EvaluationPhotos | EvaluationVideos
    best_by: ClassVar = "top1"
    best_label: ClassVar = "top-1"


@dataclass(kw_only=True)
class FinetuneRecipe(ClassifierRecipe):
    """The loss of a classifier, and what it scores."""

    config: FinetuningConfig
    mixing: Mixup | None

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against smoothed, and where there are two inputs mixed, targets.

        Args:
            inputs: images (B, 3, H, W) or clips (B, 3, T, H, W).
            labels: (B,).
        """
        smoothing, targets = self.config.augmentation.label_smoothing, labels
        if self.mixing is not None and len(inputs) > 1:
            even = len(inputs) // 2 * 2  # mixing pairs the inputs of a batch; it smooths the targets itself
            inputs, targets = self.mixing(inputs[:even], labels[:even])
            smoothing = 0.0
        return F.cross_entropy(self.run.model(inputs).float(), targets, label_smoothing=smoothing)

    def validate(self) -> Validation:
        """What the classifier scores on the validation photos, or on one view of the videos."""
        model, settings = self.run.bare_model, self.config
        return evaluate(
            AverageOfViews(model) if isinstance(self.validation, EvaluationVideos) else model,
            self.validation,
            Accuracy(),
            self.run.accelerator,
            batch_size=settings.optimisation.micro_batch_size,
            workers=settings.run.workers,
        )
