"""Opt-in registration with timm: after `register_with_timm()` every variant is `timm.create_model("convmae_<name>")`.

All of timm's ways to use a model then work: feature pyramids (`features_only=True`), another number of classes, its
training scripts, its data configuration. Without the call timm does not know these models.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model, resolve_pretrained_cfg
from torch import nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, GlobalPool, build_classifier
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig

PREFIX = "convmae_"


def timm_config(config: ConvMAEConfig) -> dict[str, Any]:
    """timm's description of a variant: data configuration, and the names of its first and last layer."""
    return {
        "num_classes": 1000,
        "input_size": (3, *config.image_size),
        "min_input_size": (3, 32, 32),
        "pool_size": config.grid_size,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "encoder.patch_embed1.proj",
        "classifier": "head",
        "paper_name": "ConvMAE: Masked Convolution Meets Masked Autoencoders",
        "paper_ids": "arXiv:2205.03892",
    }


# timm reads this name from the module of an entry point that registers itself
default_cfgs = generate_default_cfgs({PREFIX + name: timm_config(build()) for name, build in MODELS.items()})


def register_with_timm() -> None:
    """Makes every variant of MODELS known to timm as `convmae_<name>`; calling it again changes nothing."""
    for name, build in MODELS.items():
        if not is_model(PREFIX + name):
            register_model(entry_point(PREFIX + name, build))
    # timm appends the models to this module's __all__, although they are no attributes of it
    __all__[:] = ["register_with_timm"]


def entry_point(name: str, build: Callable[[], ConvMAEConfig]) -> Callable[..., nn.Module]:
    """The function that timm calls to create the model `name`."""

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        source = resolve_pretrained_cfg(name, arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay"))
        if pretrained and not (source.has_weights or source.state_dict):
            raise ConvMAEError(
                f"no weights of {name} are published through timm; create it without pretrained=True and load a "
                "checkpoint with checkpoint_path=.../model.safetensors"
            )

        def build_model(**model_arguments: Any) -> ConvMAEClassifier:
            return build_from_timm(build(), **model_arguments)

        model: nn.Module = build_model_with_cfg(
            build_model,
            name,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **arguments,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"ConvMAE variant {name.removeprefix(PREFIX)}, as a classifier or with features_only=True."
    return create


def build_from_timm(
    config: ConvMAEConfig,
    *,
    num_classes: int = 1000,
    global_pool: GlobalPool = "avg",
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvMAEClassifier:
    """A classifier from timm's argument names.

    Args:
        config: the variant.
        num_classes: size of the logits; 0 makes the pooled vector the output.
        global_pool: how tokens become one vector.
        img_size: side or (height, width) in pixels of the stored position embedding; None: the variant's.
        in_chans: must be 3.
        drop_rate: must be 0; timm's scripts pass it always.
        drop_path_rate: stochastic depth of the last block.

    Raises:
        ConvMAEError: an argument has a value that ConvMAE has no meaning for.
    """
    if in_chans != 3:
        raise ConvMAEError(f"ConvMAE takes RGB images (in_chans=3); got in_chans={in_chans}")
    if drop_rate:
        raise ConvMAEError(f"ConvMAE has no dropout (drop_rate=0), use drop_path_rate; got drop_rate={drop_rate}")
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        config = replace(config, image_size=(height, width))
    return build_classifier(config, num_classes=num_classes, global_pool=global_pool, drop_path_rate=drop_path_rate)


__all__ = ["register_with_timm"]
