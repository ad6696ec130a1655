"""Importing this module makes every variant of MODELS known to timm as `convmae_<name>`.

    import timm
    import convmae_deploy.timm

    model = timm.create_model("convmae_base", num_classes=10)

All of timm's ways to use a model then work: feature pyramids (`features_only=True`), another number of classes or
channels, its training scripts, its data configuration, its hubs (`local-dir:`, `hf-hub:`). Without the import timm does
not know these models. Inside this module `timm` is timm: imports here are absolute.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, Pooling, build_classifier, image_size_of
from convmae_deploy.models.convmae import MODELS, PATCH_SIZE, ConvMAEConfig
from convmae_deploy.models.positions import resize_position_embedding

PREFIX = "convmae_"
POSITIONS = "encoder.pos_embed"


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
            pretrained_filter_fn=fit_positions,
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
    global_pool: Pooling = "avg",
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvMAEClassifier:
    """A classifier from timm's argument names.

    Args:
        config: the variant.
        num_classes: size of the logits; 0 makes the pooled vector the output.
        global_pool: how tokens become one vector; "" leaves them a map.
        img_size: side or (height, width) in pixels of the stored position embedding; None: the variant's.
        in_chans: channels of the images.
        drop_rate: dropout in front of the head.
        drop_path_rate: stochastic depth of the last block.

    Raises:
        ConvMAEError: an argument has a value that ConvMAE has no meaning for.
    """
    if img_size is not None:
        config = replace(config, image_size=image_size_of(img_size))
    return build_classifier(
        config,
        num_classes=num_classes,
        global_pool=global_pool,
        in_chans=in_chans,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def fit_positions(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published weights with the position embedding resized for the model, as timm's own models do it.

    The grid that it was stored for follows from the image size in the weights' description; where that does not fit
    the number of tokens it is taken for a square, and where there is none timm refuses the shape.
    """
    assert isinstance(model, ConvMAEClassifier)
    tensors, new = dict(state), model.encoder.grid_size
    if POSITIONS in tensors:
        tokens = tensors[POSITIONS].shape[1]
        saved: Mapping[str, Any] = model.pretrained_model_args  # type: ignore[assignment]
        source: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        height, width = image_size_of(saved.get("img_size") or source["input_size"][1:])
        side = math.isqrt(tokens)
        grids = (height // PATCH_SIZE, width // PATCH_SIZE), (side, side)
        old = next((grid for grid in grids if math.prod(grid) == tokens), new)
        tensors[POSITIONS] = resize_position_embedding(tensors[POSITIONS], old, new)
    return tensors


for _name, _build in MODELS.items():
    register_model(entry_point(PREFIX + _name, _build))
__all__: list[str] = []  # timm put the models into it, although they are no attributes of this module
