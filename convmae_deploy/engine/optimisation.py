"""AdamW, with layer-wise learning rate decay where it is asked for, LARS, and the learning rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
import tyro
from timm.optim import Lars, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from convmae_deploy.errors import ConvMAEError


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """How weights are updated."""

    epochs: int = 100
    batch_size: int = 1024  # images per update, over all devices and accumulated micro-batches
    micro_batch_size: int = 128  # most images a device sees at once; more are accumulated
    base_lr: float = 5e-4  # learning rate per 256 images of batch_size
    min_lr: float = 1e-6  # learning rate at the end, of updates of batch_size
    warmup_epochs: float = 5.0  # linear warm-up from 0; shortened in a run within which it would not end
    weight_decay: float = 0.05  # for all but one-dimensional parameters and the position embedding
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None  # largest norm of the whole gradient; None: no clipping

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.micro_batch_size < 1:
            raise ConvMAEError(
                "epochs, batch_size and micro_batch_size must be at least 1; "
                f"got {self.epochs}, {self.batch_size}, {self.micro_batch_size}"
            )
        if not all(rate >= 0 for rate in (self.base_lr, self.min_lr, self.weight_decay)):
            raise ConvMAEError(
                "base_lr, min_lr and weight_decay must be at least 0; "
                f"got {self.base_lr:g}, {self.min_lr:g}, {self.weight_decay:g}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConvMAEError(f"betas must be at least 0 and less than 1; got {', '.join(map(str, self.betas))}")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ConvMAEError(f"clip_grad must be above 0; got {self.clip_grad:g}")
        if self.warmup_epochs < 0:
            raise ConvMAEError(f"warmup_epochs must be at least 0; got {self.warmup_epochs:g}")

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: base_lr x batch_size / 256."""
        return self.base_lr * self.batch_size / 256

    def holding(self, images: int) -> Self:
        """The same for updates of so many images, as there are no more: the learning rate follows, at its end too.

        Args:
            images: of an update, at most `batch_size`.
        """
        if images == self.batch_size:
            return self
        return replace(self, batch_size=images, min_lr=self.min_lr * images / self.batch_size)

    @property
    def asked_warmup(self) -> str:
        """The flag that asks for the warm-up."""
        return f"--warmup-epochs {self.warmup_epochs:g}"

    def shortened_warmup(self, steps_per_epoch: int) -> float | None:
        """Updates of warm-up where those asked for would not end within the run; None where they do, and are taken."""
        return None if self.warmup_epochs < self.epochs else _shortened(self.epochs * steps_per_epoch)

    def warmup_notice(self, steps_per_epoch: int) -> str | None:
        """What to print where warm-up is shortened."""
        shortened, total = self.shortened_warmup(steps_per_epoch), self.epochs * steps_per_epoch
        if shortened is None:
            return None
        return (
            f"warm-up takes {shortened:g} of the {total} updates of this run: {self.asked_warmup} would not end within "
            "them"
        )

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of update `step` (from 0): linear warm-up from 0, then half a cosine to `min_lr`.

        As in the authors' code the rate is set before each update from its fractional epoch.
        """
        epoch, shortened = step / steps_per_epoch, self.shortened_warmup(steps_per_epoch)
        warmup = self.warmup_epochs if shortened is None else shortened / steps_per_epoch
        if epoch < warmup:
            return self.learning_rate * epoch / warmup
        progress = (epoch - warmup) / (self.epochs - warmup)
        return self.min_lr + (self.learning_rate - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LarsConfig(OptimisationConfig):
    """How LARS updates the head of a linear probe. The defaults are the authors' recipe (90 epochs, batch 4096)."""

    epochs: int = 90
    batch_size: int = 4096
    micro_batch_size: int = 512  # the authors' share of one of 8 GPUs; BatchNorm takes its statistics from it
    base_lr: float = 0.1
    min_lr: float = 0.0
    warmup_epochs: float = 10.0
    momentum: float = 0.9
    trust_coefficient: float = 0.001  # an update of a weight is this share of its norm, times the learning rate
    # of AdamW alone
    weight_decay: tyro.conf.Suppress[float] = field(init=False, default=0.0)
    betas: tyro.conf.Suppress[tuple[float, float]] = field(init=False, default=(0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class DenseOptimisationConfig(OptimisationConfig):
    """How a detector or segmenter is updated: warm-up is counted in updates, and the rate falls from the first one on.

    That is the schedule of detectron2 and mmcv, where warm-up is a factor of the rate that there would be without it.
    """

    min_lr: float = 0.0
    schedule: Literal["cosine", "linear", "steps"] = "cosine"  # how the learning rate falls; all but steps to min_lr
    milestones: tuple[float, ...] = (8 / 9, 26 / 27)  # shares of the updates; steps: the rate falls tenfold at each
    warmup_steps: int = 0  # updates of linear warm-up; fewer in a run within which they would not end
    warmup_factor: float = 0.0  # that warm-up begins with
    warmup_epochs: tyro.conf.Suppress[float] = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 0 or not 0 <= self.warmup_factor <= 1:
            raise ConvMAEError(
                "warmup_steps must be at least 0 and warmup_factor between 0 and 1; "
                f"got {self.warmup_steps}, {self.warmup_factor}"
            )

    @property
    def asked_warmup(self) -> str:
        """The flag that asks for the warm-up."""
        return f"--warmup-steps {self.warmup_steps}"

    def shortened_warmup(self, steps_per_epoch: int) -> float | None:
        """As for `OptimisationConfig`."""
        total = self.epochs * steps_per_epoch
        return None if not self.warmup_steps or self.warmup_steps < total else _shortened(total)

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of update `step` (from 0)."""
        shortened = self.shortened_warmup(steps_per_epoch)
        warmup = self.warmup_steps if shortened is None else shortened
        warm = min(1.0, step / warmup) if warmup else 1.0
        factor = self.warmup_factor + (1 - self.warmup_factor) * warm
        return factor * self._rate_without_warmup(step / (self.epochs * steps_per_epoch))

    def _rate_without_warmup(self, progress: float) -> float:
        if self.schedule == "steps":
            passed = sum(progress >= milestone for milestone in self.milestones)
            return self.learning_rate * 0.1**passed
        left = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_lr + (self.learning_rate - self.min_lr) * left


def _shortened(total_steps: int) -> float:
    """Updates of warm-up in a run that is shorter than its warm-up: a tenth, but neither less than one nor all."""
    return min(max(1.0, total_steps / 10), total_steps - 1.0)


def build_adamw(
    model: nn.Module, config: OptimisationConfig, *, layer_decay: float | None = None, decay_biases: bool = False
) -> torch.optim.AdamW:
    """AdamW without decay of one-dimensional parameters and of those of the model's `no_weight_decay`.

    Args:
        model: whose parameters to update.
        config: learning rate, decay and betas.
        layer_decay: factor of the learning rate from one layer of the model's `group_matcher` to the one below it; the
            groups then carry it as `lr_scale`.
        decay_biases: whether the biases of all layers but norms decay all the same, as in the authors' detectors.
    """
    unchanged = model.no_weight_decay()  # type: ignore[operator]
    groups: list[dict[str, Any]]
    if layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=unchanged)
    else:
        groups = param_groups_layer_decay(model, config.weight_decay, unchanged, layer_decay=layer_decay)
    if decay_biases:
        biases = {id(module.bias) for module in model.modules() if hasattr(module, "bias") and not is_norm(module)}
        groups = [part for group in groups for part in _split(group, biases, config.weight_decay)]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises."""
    return isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase)


def _split(group: dict[str, Any], chosen: set[int], weight_decay: float) -> list[dict[str, Any]]:
    """A parameter group, and apart from it those of its parameters whose ids are among `chosen`, with decay."""
    kept, apart = (
        [parameter for parameter in group["params"] if (id(parameter) in chosen) is wanted] for wanted in (False, True)
    )
    parts = [group | {"params": kept}, group | {"params": apart, "weight_decay": weight_decay}]
    return [part for part in parts if part["params"]]


def build_lars(model: nn.Module, config: LarsConfig) -> torch.optim.Optimizer:
    """LARS without decay; as in the authors' code one-dimensional parameters get plain momentum SGD."""
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "always_adapt": True},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "always_adapt": False},
    ]
    optimizer: torch.optim.Optimizer = Lars(
        groups, lr=config.learning_rate, momentum=config.momentum, trust_coeff=config.trust_coefficient, eps=0.0
    )
    return optimizer


def set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Sets the learning rate of every parameter group, times the group's `lr_scale`."""
    for group in groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
