"""Mask R-CNN on the ConvMAE encoder: boxes, classes and masks of objects.

Papers: Mask R-CNN (arXiv 1703.06870), ViTDet (arXiv 2203.16527), and section 3.2 of arXiv 2205.03892. Authors' code:
the DET folder of Alpha-VL/ConvMAE (MIT; FPN, BatchNorm) and Alpha-VL/Official-ConvMAE-Det (Apache-2.0; simple pyramid,
LayerNorm), both on detectron2. This is an independent implementation from torchvision's parts under detectron2's
conventions, so that the authors' files give the authors' numbers. One thing differs on purpose: ROIAlign takes 2x2
samples a bin, where theirs takes as many as the region has pixels, so that training and a static graph agree.

Shapes: B batch, K classes, n objects or detections of an image. Boxes XYXY in pixels of the input; labels from 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import (
    ConvMAE,
    ConvMAEConfig,
    DenseConfig,
    base,
    build_convmae,
    nano,
    tiny,
)
from convmae_deploy.models.proposals import ProposalNetwork
from convmae_deploy.models.pyramid import PYRAMIDS, NormKind, PyramidKind
from convmae_deploy.models.roi_heads import DetectionHeads

AUTHORS_IMAGE_SIZE = (1024, 1024)  # (height, width) in pixels of the authors' inputs
UNDECAYED = ("pos_embed", ".table")  # how their names end; decomposed relative positions decay, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What a detector has besides its encoder. Boxes and masks are predicted for each class separately.

    Raises:
        ConvMAEError: a number is not positive.
    """

    pyramid: PyramidKind = "fpn"  # fpn: from E1..E4; simple: from E3 alone
    channels: int = 256  # width of the pyramid and the heads' convolutions
    fc_width: int = 1024  # width of the vector that class and box are predicted from
    norm: NormKind = "batch"  # behind the convolutions of pyramid and heads; layer: over channels
    rpn_convolutions: int = 2  # 3x3, in front of the proposals
    regions_per_image: int = 512  # that the heads learn from, a quarter of them with objects; training alone

    def __post_init__(self) -> None:
        for name in ("channels", "fc_width", "rpn_convolutions", "regions_per_image"):
            if getattr(self, name) < 1:
                raise ConvMAEError(f"{name} of a detector must be at least 1; got {getattr(self, name)}")


def base_fpn() -> tuple[ConvMAEConfig, DetectorConfig]:
    """The paper's Mask R-CNN (DET folder): 110.17M parameters with 80 classes; 53.2 box AP, 47.1 mask AP."""
    dense = DenseConfig(relative_position="shared", window_size=16, global_blocks=(0, 3, 6, 10))
    return replace(base(), image_size=AUTHORS_IMAGE_SIZE, dense=dense), DetectorConfig()


def base_fpn_shifted() -> tuple[ConvMAEConfig, DetectorConfig]:
    """As the paper describes it: windows of 7x7, every second one shifted, by Swin's cyclic shift with its mask.

    The code behind the weights has neither.
    """
    encoder, detector = base_fpn()
    dense = replace(encoder.dense, window_size=7, shifted_windows=True)
    return replace(encoder, dense=dense), detector


def base_simple() -> tuple[ConvMAEConfig, DetectorConfig]:
    """The authors' ViTDet (Official-ConvMAE-Det): 109.70M parameters with 80 classes; 53.9 box AP, 47.6 mask AP."""
    dense = DenseConfig(
        relative_position="decomposed",
        relative_size=AUTHORS_IMAGE_SIZE,
        window_size=14,
        global_blocks=(1, 4, 7, 10),
        conv_norm_eps=1e-6,
    )
    return replace(base(), dense=dense), DetectorConfig(pyramid="simple", norm="layer")


def tiny_fpn() -> tuple[ConvMAEConfig, DetectorConfig]:
    """Ours: between nano and base."""
    detector = DetectorConfig(channels=128, fc_width=512, norm="layer", regions_per_image=256)
    return replace(tiny(), image_size=(512, 512)), detector


def nano_fpn() -> tuple[ConvMAEConfig, DetectorConfig]:
    """Ours: 3.8M parameters with 80 classes, for CPUs and tests; LayerNorm, as its batches are small."""
    detector = DetectorConfig(channels=64, fc_width=128, norm="layer", regions_per_image=128)
    return replace(nano(), image_size=(256, 256)), detector


DETECTORS: dict[str, Callable[[], tuple[ConvMAEConfig, DetectorConfig]]] = {
    "nano_fpn": nano_fpn,
    "tiny_fpn": tiny_fpn,
    "base_fpn": base_fpn,
    "base_fpn_shifted": base_fpn_shifted,
    "base_simple": base_simple,
}


class ConvMAEDetector(nn.Module):
    """Encoder, feature pyramid, proposals, box and mask heads."""

    def __init__(self, encoder: ConvMAE, pyramid: nn.Module, rpn: ProposalNetwork, roi_heads: DetectionHeads) -> None:
        """
        Args:
            encoder: images to E1..E4.
            pyramid: E1..E4 to P2..P6.
            rpn: P2..P6 to proposals.
            roi_heads: P2..P5 and proposals to detections or losses.
        """
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images_bchw: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images_bchw: (B, 3, H, W), normalised, sides multiples of 32.
            targets: of each image `boxes` (n, 4) float with positive sides, `labels` (n,) int64, `masks` (n, H, W)
                uint8 of 0 and 1; n may be 0.

        Returns:
            Training: loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg, loss_mask; their sum is to be
            minimised. Evaluation: of each image `boxes` (n, 4), `scores` (n,), `labels` (n,), best first, n at most
            100, and `masks` (n, 28, 28), probabilities within the box.

        Raises:
            ConvMAEError: in training without targets.
        """
        if self.training and targets is None:
            raise ConvMAEError("a detector in training needs targets; give them, or call eval() first")
        levels = self.pyramid(self.encoder(images_bchw))
        height, width = images_bchw.shape[-2:]
        sizes = [(height, width)] * len(images_bchw)
        proposals, proposal_losses = self.rpn(ImageList(images_bchw, sizes), dict(enumerate(levels)), targets)
        shifted = None if targets is None else [{**target, "labels": target["labels"] + 1} for target in targets]
        detections, losses = self.roi_heads(levels, proposals, sizes, shifted)
        return {**proposal_losses, **losses} if self.training else detections

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of the encoder in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay leaves alone besides one-dimensional ones: positions and tables of them."""
        return {name for name, _ in self.named_parameters() if name.endswith(UNDECAYED)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups by depth, in the authors' layer order: everything before stage 3 is the stem.

        But for the position embedding: their code gives it the learning rate of the heads (ViTDet's, that of the stem).
        """
        return {
            "stem": r"^encoder\.(?:patch_embed\d|blocks[12])",
            "blocks": r"^encoder\.blocks3\.(\d+)",  # the rest matches nothing: timm puts it last, together
        }


def build_detector(
    config: ConvMAEConfig, detector: DetectorConfig, *, num_classes: int, drop_path_rate: float = 0.0
) -> ConvMAEDetector:
    """The detector of two configurations, with fresh weights.

    Raises:
        ConvMAEError: no class.
    """
    if num_classes < 1:
        raise ConvMAEError(f"a detector needs at least one class; got {num_classes}")
    return ConvMAEDetector(
        build_convmae(config, drop_path_rate=drop_path_rate),
        PYRAMIDS[detector.pyramid](config.embed_dims, detector.channels, detector.norm),
        ProposalNetwork(detector.channels, detector.rpn_convolutions),
        DetectionHeads(
            channels=detector.channels,
            fc_width=detector.fc_width,
            norm=detector.norm,
            num_classes=num_classes,
            regions_per_image=detector.regions_per_image,
        ),
    )
