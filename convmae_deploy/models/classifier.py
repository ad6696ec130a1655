"""The ConvMAE classifier with timm's model interface: features, head, intermediates, parameter groups.

Shapes: B batch, C channels, H W grid of a map, D width of stage 3, K classes. With a video encoder inputs and maps have
a time axis in front of the grid, and tokens are those of all its slots.
"""

from collections.abc import Sequence
from typing import Any, Literal

from timm.models._input import update_model_input_size
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import (
    PATCH_SIZE,
    STRIDES,
    TRANSFORMER_NORM_EPS,
    ConvMAE,
    ConvMAEConfig,
    check_image_size,
)
from convmae_deploy.models.initialisation import initialise_scratch
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.video import VideoConfig, VideoConvMAE, build_video_convmae
from convmae_deploy.models.vit import build_encoder

GlobalPool = Literal["avg", "token"]  # mean over all tokens, or the top-left token (the authors' linear-probe default)
# what timm asks for besides: the largest value of each channel, its mean with the average, and none: maps stay maps
Pooling = GlobalPool | Literal["max", "avgmax", ""]
POOLINGS: tuple[Pooling, ...] = ("avg", "token", "max", "avgmax", "")


class ConvMAEClassifier(nn.Module):
    """Encoder, global pooling, LayerNorm (`fc_norm`), dropout, linear head.

    Pooling and norm commute for `token`, so the authors' `norm` of a token-pooled probe is `fc_norm` here.
    """

    def __init__(
        self,
        encoder: ConvMAE | VideoConvMAE,
        *,
        num_classes: int,
        global_pool: Pooling = "avg",
        drop_rate: float = 0.0,
        head_init_std: float = 0.02,
    ) -> None:
        """
        Args:
            encoder: the backbone, of images or of videos.
            num_classes: size of the logits; 0 makes the pooled vector the output.
            global_pool: how tokens become one vector; "" leaves them a map.
            drop_rate: dropout in front of the head while training.
            head_init_std: standard deviation of the head's initial weights; the authors finetune from 2e-5.
        """
        super().__init__()
        width = encoder.embed_dims[2]
        self.encoder = encoder
        self.in_chans = encoder.in_chans
        self.fc_norm = nn.LayerNorm(width, eps=TRANSFORMER_NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_features = self.head_hidden_size = width
        self.head_init_std = head_init_std
        channels = (*encoder.embed_dims, width)
        modules = ("encoder.blocks1", "encoder.blocks2", "encoder.blocks3", "encoder")
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": num_channels, "reduction": stride, "module": module}
            for num_channels, stride, module in zip(channels, STRIDES, modules, strict=True)
        ]
        self.reset_classifier(num_classes, global_pool)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """(B, 3, H, W), normalised, sides multiples of 32, to logits (B, K)."""
        return self.forward_head(self.forward_features(images_bchw))

    def forward_features(self, images_bchw: Tensor) -> Tensor:
        """(B, 3, H, W) to E3 (B, D, H/16, W/16)."""
        return self.encoder(images_bchw)[2]  # type: ignore[no-any-return]

    def forward_head(self, e3_bdhw: Tensor, pre_logits: bool = False) -> Tensor:
        """E3 to logits (B, K), or with `pre_logits` to the pooled and normalised vector (B, D).

        Without pooling every token gets its own: maps (B, K, H/16, W/16) or (B, D, H/16, W/16).
        """
        if self.global_pool:
            hidden = self.fc_norm(pool_tokens(e3_bdhw.flatten(2), self.global_pool))  # (B, D)
        else:
            hidden = self.fc_norm(e3_bdhw.movedim(1, -1))  # (B, H, W, D)
        hidden = self.head_drop(hidden)
        output: Tensor = hidden if pre_logits else self.head(hidden)
        return output if self.global_pool else output.movedim(-1, 1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Tensor | list[Tensor]]:
        """timm's getter of feature maps.

        Args:
            x: images (B, 3, H, W).
            indices: which of E1..E4 (0..3); the last n for an int, all for None.
            norm: must be False: no map of this model has a final norm.
            stop_early: accepted for timm; all maps come from one pass and E4 costs nothing.
            output_fmt: layout of the maps asked for, "NCHW" or "NHWC".
            intermediates_only: leave out E3, the final features.
            output_dict: give `image_intermediates` and, unless left out, `image_features` by name.

        Returns:
            The maps asked for, or E3 (B, D, H/16, W/16) and these.

        Raises:
            ConvMAEError: another layout or a norm was asked for.
        """
        if norm or output_fmt not in ("NCHW", "NHWC"):
            raise ConvMAEError(
                f"features are un-normalised maps in NCHW or NHWC; got norm={norm}, output_fmt={str(output_fmt)!r}"
            )
        maps = self.encoder(x)
        chosen = [maps[index] for index in taken_indices(indices)]
        intermediates = chosen if output_fmt == "NCHW" else [level.movedim(1, -1) for level in chosen]
        if output_dict:
            features = {} if intermediates_only else {"image_features": maps[2]}
            return {"image_intermediates": intermediates, **features}
        return intermediates if intermediates_only else (maps[2], intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's request to drop what the chosen maps do not need: the head, its norm, the blocks of later stages."""
        chosen = taken_indices(indices)
        if max(chosen) < 2:
            self.encoder.blocks3 = nn.ModuleList()
        if max(chosen) < 1:
            self.encoder.blocks2 = nn.ModuleList()
        if prune_norm:
            self.fc_norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0)
        return chosen

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """A fresh head for `num_classes` classes (0: none), and another pooling if given.

        Raises:
            ConvMAEError: `global_pool` is none of `POOLINGS`.
        """
        if global_pool is not None:
            if global_pool not in POOLINGS:
                raise ConvMAEError(f"global_pool must be one of {POOLINGS}; got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.encoder.pos_embed  # a new head goes where the model is
        self.head = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=self.head_init_std)
            nn.init.zeros_(self.head.bias)

    def set_input_size(self, img_size: int | Sequence[int] | None = None, patch_size: object = None) -> None:
        """timm's request for another size of the stored position embedding; the model takes any size before and after.

        Args:
            img_size: side or (height, width) in pixels; None keeps it.
            patch_size: must be 16 where it is given.

        Raises:
            ConvMAEError: a size that no ConvMAE has, or the model is one of videos.
        """
        encoder = self.encoder
        if isinstance(encoder, VideoConvMAE) or patch_size not in (None, PATCH_SIZE, (PATCH_SIZE, PATCH_SIZE)):
            raise ConvMAEError(
                f"the input size of a model of images with patches of {PATCH_SIZE} pixels can be set; got "
                f"a {type(encoder).__name__} and patch_size={patch_size}"
            )
        if img_size is None:
            return
        height, width = image_size_of(img_size)
        grid_size = height // PATCH_SIZE, width // PATCH_SIZE
        if grid_size != encoder.grid_size:
            resized = resize_position_embedding(encoder.pos_embed.detach(), encoder.grid_size, grid_size)
            encoder.pos_embed = nn.Parameter(resized, requires_grad=encoder.pos_embed.requires_grad)
            encoder.grid_size = grid_size
        update_model_input_size(self, (height, width))  # what timm saves of the model

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay leaves alone besides one-dimensional ones."""
        return {"encoder.pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups by depth, in the authors' layer order: everything before stage 3 is the stem."""
        return {
            "stem": r"^encoder\.(?:pos_embed|patch_embed\d|blocks[12])",
            "blocks": r"^encoder\.blocks3\.(\d+)",  # fc_norm and head match nothing: timm puts them last, together
        }


def pool_tokens(tokens_bdn: Tensor, global_pool: Pooling) -> Tensor:
    """Tokens (B, D, N) to one vector (B, D); what each way means stands at `GlobalPool` and `Pooling`."""
    if global_pool == "token":
        return tokens_bdn[:, :, 0]
    if global_pool == "avg":
        return tokens_bdn.mean(dim=2)
    largest = tokens_bdn.amax(dim=2)
    return largest if global_pool == "max" else 0.5 * (largest + tokens_bdn.mean(dim=2))


def image_size_of(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels of what timm calls `img_size`: a side or both.

    Raises:
        ConvMAEError: no multiples of 32.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    check_image_size((height, width))
    return height, width


def taken_indices(indices: int | Sequence[int] | None) -> list[int]:
    """Which of E1..E4, by timm's convention: None all, n the last n, negative ones counted from the end.

    Raises:
        ConvMAEError: there is no such map.
    """
    levels = range(len(STRIDES))
    wanted = levels if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
    try:
        return [levels[index] for index in wanted]
    except IndexError:
        raise ConvMAEError(
            f"feature indices must be 0 to {len(levels) - 1}, negative from the end, or a number of maps; got {indices}"
        ) from None


def build_classifier(
    config: ConvMAEConfig,
    *,
    num_classes: int,
    global_pool: Pooling = "avg",
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    head_init_std: float = 0.02,
) -> ConvMAEClassifier:
    """The classifier of a configuration, with fresh weights."""
    encoder = build_encoder(config, in_chans=in_chans, drop_path_rate=drop_path_rate)
    initialise_scratch(encoder)
    return ConvMAEClassifier(
        encoder, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate, head_init_std=head_init_std
    )


def build_video_classifier(
    config: ConvMAEConfig,
    video: VideoConfig,
    *,
    num_classes: int,
    drop_path_rate: float = 0.0,
    head_init_std: float = 0.02,
) -> ConvMAEClassifier:
    """The same for clips: the mean over the tokens of all slots, as in VideoMAE, with fresh weights."""
    encoder = build_video_convmae(config, video, drop_path_rate=drop_path_rate)
    initialise_scratch(encoder)
    return ConvMAEClassifier(encoder, num_classes=num_classes, head_init_std=head_init_std)
