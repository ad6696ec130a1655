"""Region proposals: torchvision's network under detectron2's conventions, which the authors' files assume.

What differs from torchvision: anchors are not rounded and lie on fixed strides; losses are L1 (not smooth) and divided
by the number of samples asked for (not found); proposals are ranked by logits; boxes without area are dropped, others
of any size kept; overlaps are computed on the boxes themselves (torchvision shifts them apart by level, which rounds).

Shapes: B batch, A anchors of one image over all levels, P channels, H W grid of a level. Boxes XYXY in input pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image, nms

from convmae_deploy.models.pyramid import PYRAMID_STRIDES

ANCHOR_SIZES = (32, 64, 128, 256, 512)  # square root of an anchor's area in pixels, one for each of P2..P6
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
ANCHORS_PER_CELL = len(ASPECT_RATIOS)
SAMPLES_PER_IMAGE = 256  # anchors in the loss of one image
BEFORE_SUPPRESSION = {"training": 2000, "testing": 1000}  # best proposals of each level
AFTER_SUPPRESSION = {"training": 1000, "testing": 1000}  # best proposals of an image
PROPOSAL_OVERLAP = 0.7  # IoU above which the weaker of two proposals of a level goes


class PyramidAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """Anchors of P2..P6, centred on the top left corners of their cells (offset 0)."""

    def __init__(self) -> None:
        super().__init__(tuple((size,) for size in ANCHOR_SIZES), (ASPECT_RATIOS,) * len(ANCHOR_SIZES))

    def generate_anchors(
        self,
        scales: tuple[int, ...],
        aspect_ratios: tuple[float, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """The anchors (3, 4) of a cell at the origin; not rounded."""
        heights = torch.tensor(aspect_ratios, dtype=torch.float64, device="cpu").sqrt() * scales[0]
        widths = scales[0] ** 2 / heights
        return torch.stack((-widths, -heights, widths, heights), dim=1).to(dtype).div(2)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (A, 4) of each image, float32 whatever the maps are."""
        anchors = self.of_grids([(level.shape[-2], level.shape[-1]) for level in feature_maps], feature_maps[0].device)
        return [torch.cat(anchors)] * len(image_list.image_sizes)

    def of_grids(self, grids: list[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """The anchors (H * W * 3, 4) of each level, by row, then column, then aspect ratio."""
        self.set_cell_anchors(torch.float32, device)
        return self.grid_anchors(grids, [(stride, stride) for stride in PYRAMID_STRIDES])  # type: ignore[no-any-return]


class ProposalHead(RPNHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's head, which is detectron2's; its outputs are float32 under autocast too."""

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """P2..P6 to objectness logits (B, 3, H, W) and box deltas (B, 12, H, W) of each level."""
        objectness, deltas = super().forward(levels)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # torchvision is untyped
    """Up to 1000 boxes of each image that may hold an object."""

    def __init__(self, channels: int, num_convolutions: int) -> None:
        """
        Args:
            channels: P.
            num_convolutions: 3x3 convolutions of the head.
        """
        super().__init__(
            PyramidAnchors(),
            ProposalHead(channels, ANCHORS_PER_CELL, num_convolutions),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=SAMPLES_PER_IMAGE,
            positive_fraction=0.5,
            pre_nms_top_n=BEFORE_SUPPRESSION,
            post_nms_top_n=AFTER_SUPPRESSION,
            nms_thresh=PROPOSAL_OVERLAP,
        )

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best boxes of each image and their logits, best first.

        Args:
            proposals: (B, A, 4), decoded.
            objectness: logits, B * A of them.
            image_shapes: (height, width) in pixels of each image.
            num_anchors_per_level: their sum is A.
        """
        logits = objectness.detach().reshape(len(proposals), -1)  # (B, A)
        best = self._get_top_n_idx(logits, num_anchors_per_level)  # (B, best of each level)
        sizes = torch.tensor(num_anchors_per_level, device=best.device)
        levels = torch.bucketize(best, sizes.cumsum(0), right=True)
        kept_boxes, kept_logits = [], []
        for image, shape in enumerate(image_shapes):
            boxes = clip_boxes_to_image(proposals[image, best[image]], shape)
            usable = torch.where(has_area(boxes))[0]
            boxes, scores, level = boxes[usable], logits[image, best[image]][usable], levels[image][usable]
            kept = nms_by_group(boxes, scores, level, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[kept])
            kept_logits.append(scores[kept])
        return kept_boxes, kept_logits

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The two losses, each a sum over sampled anchors / (256 * B).

        Args:
            objectness: logits (B * A, 1).
            pred_bbox_deltas: (B * A, 4).
            labels: of the anchors of each image: 1 object, 0 background, -1 neither.
            regression_targets: of each image (A, 4).
        """
        masks = [torch.cat(chosen).bool() for chosen in self.fg_bg_sampler(labels)]
        positive, sampled = torch.where(masks[0])[0], torch.where(masks[0] | masks[1])[0]
        normaliser = SAMPLES_PER_IMAGE * len(labels)
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        box_loss = F.l1_loss(pred_bbox_deltas[positive], torch.cat(list(regression_targets))[positive], reduction="sum")
        return objectness_loss / normaliser, box_loss / normaliser


def has_area(boxes: Tensor) -> Tensor:
    """Which of the boxes (..., 4) are wider and higher than nothing; NaN is not."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes that no better box of the same group overlaps by more than `overlap` (IoU), best first.

    A CPU compares each group by itself, which is least work; on other devices that waits for the device once a group.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) integers from 0.
        overlap: IoU.
    """
    if boxes.device.type != "cpu":
        return nms_apart(boxes, scores, groups, overlap)
    members = [torch.where(groups == group)[0] for group in torch.unique(groups)]
    kept = [indices[nms(boxes[indices], scores[indices], overlap)] for indices in members]
    indices = torch.cat(kept) if kept else groups.new_zeros(0, dtype=torch.int64)
    return indices[scores[indices].argsort(descending=True, stable=True)]


def nms_apart(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """`nms_by_group` in one suppression, of groups that are moved apart; arguments as there.

    In float64: torchvision's `batched_nms` does so in float32, where 80 classes at 1024 pixels make coordinates whose
    steps are 0.008 pixels. Here they are at most 2^-34 pixels.
    """
    if not len(boxes):
        return groups.new_zeros(0, dtype=torch.int64)
    exact = boxes.double()
    shift = groups * (exact.max() - exact.min() + 1)
    return nms(exact + shift[:, None], scores.double(), overlap)  # type: ignore[no-any-return]
