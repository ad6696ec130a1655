"""Box and mask heads on regions: torchvision's under detectron2's conventions, which the authors' files assume.

What differs from torchvision: ROIAlign is aligned (half a pixel) and takes 2x2 samples a bin; the box loss is L1; mask
targets are 0 or 1; boxes and masks are predicted for the classes alone, not for the background; detections of any size
are kept. As in torchvision the background is class 0 of the logits; in the authors' files it is the last.

Shapes: B batch, R regions of all images, P channels, K classes, M side of a mask (28). Boxes XYXY in input pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image, roi_align

from convmae_deploy.models.proposals import nms_by_group
from convmae_deploy.models.pyramid import NORMS, PYRAMID_STRIDES, NormKind

POOLED_STRIDES = PYRAMID_STRIDES[:4]  # of P2..P5; P6 is for proposals alone
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a region of 224 x 224 pixels belongs to P4
LEVEL_EPS = 1e-8
SAMPLING_RATIO = 2  # samples along a side of a bin; the authors' code takes as many as the region has pixels
BOX_SIZE, MASK_SIZE = 7, 14  # side in bins of a region for the two heads
MASK_OUTPUT_SIZE = 2 * MASK_SIZE
CONVOLUTIONS = 4  # in the box head and in the mask head
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # for the deltas x, y, width, height
SCORE_THRESHOLD = 0.05
DETECTION_OVERLAP = 0.5  # IoU above which the weaker of two detections of a class goes
MAX_DETECTIONS = 100  # in each image


class PyramidRoIAlign(nn.Module):
    """ROIAlign on the level of P2..P5 that suits a region's size."""

    def __init__(self, output_size: int) -> None:
        """`output_size`: bins along a side."""
        super().__init__()
        self.output_size = output_size
        self.sampling_ratio = SAMPLING_RATIO

    def forward(self, levels: list[Tensor], regions: list[Tensor], image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, P, side, side) of the regions, a list of (R_b, 4) for each image; the shapes of images do not matter."""
        sizes = [len(boxes) for boxes in regions]
        boxes = torch.cat(regions)  # (R, 4)
        image = torch.cat([boxes.new_full((size, 1), index) for index, size in enumerate(sizes)])
        rois = torch.cat((image, boxes), dim=1)  # (R, 5)
        level_of = pyramid_level(boxes)
        levels_of_pyramid = torch.arange(len(POOLED_STRIDES), device=boxes.device)
        counts = (level_of[:, None] == levels_of_pyramid).sum(0).tolist()  # the one wait for the device
        pooled = levels[0].new_zeros(len(boxes), levels[0].shape[1], self.output_size, self.output_size)
        for index, chosen in enumerate(torch.split(level_of.argsort(stable=True), counts)):
            pooled = pooled.index_copy(0, chosen, self.pool(levels[index], rois[chosen], index))
        return pooled

    def pool(self, level: Tensor, rois: Tensor, index: int) -> Tensor:
        """(R, P, side, side) of rois (R, 5), image and box, all on the one level `index` (0 for P2)."""
        return roi_align(  # type: ignore[no-any-return]
            level, rois, self.output_size, 1 / POOLED_STRIDES[index], self.sampling_ratio, aligned=True
        )


def pyramid_level(boxes: Tensor) -> Tensor:
    """0 for P2 to 3 for P5, for boxes (..., 4): floor(4 + log2(sqrt(area) / 224)), within the pyramid."""
    side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIZE + LEVEL_EPS))
    return level.clamp(2, 1 + len(POOLED_STRIDES)).to(torch.int64) - 2


class BoxPredictor(nn.Module):
    """Class logits (R, 1 + K), background first, and box deltas (R, 4 K) of the classes alone; float32."""

    def __init__(self, width: int, num_classes: int) -> None:
        """
        Args:
            width: of the box head's vector.
            num_classes: K.
        """
        super().__init__()
        self.cls_score = nn.Linear(width, 1 + num_classes)
        self.bbox_pred = nn.Linear(width, 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(R, width) to both."""
        return self.cls_score(vectors).float(), self.bbox_pred(vectors).float()


class DetectionHeads(RoIHeads):  # type: ignore[misc]  # torchvision is untyped
    """Class, box and mask of regions: losses in training, detections in evaluation."""

    def __init__(
        self, *, channels: int, fc_width: int, norm: NormKind, num_classes: int, regions_per_image: int = 512
    ) -> None:
        """
        Args:
            channels: P, and width of the convolutions.
            fc_width: of the vector that class and box are predicted from.
            norm: behind every convolution.
            num_classes: K.
            regions_per_image: that a training step takes at most.
        """
        convolutions = [channels] * CONVOLUTIONS
        super().__init__(
            PyramidRoIAlign(BOX_SIZE),
            FastRCNNConvFCHead((channels, BOX_SIZE, BOX_SIZE), convolutions, [fc_width], NORMS[norm]),
            BoxPredictor(fc_width, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=BOX_WEIGHTS,
            score_thresh=SCORE_THRESHOLD,
            nms_thresh=DETECTION_OVERLAP,
            detections_per_img=MAX_DETECTIONS,
            mask_roi_pool=PyramidRoIAlign(MASK_SIZE),
            mask_head=MaskRCNNHeads(channels, convolutions, 1, NORMS[norm]),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        )
        self._initialise()

    def _initialise(self) -> None:
        """detectron2's initial values where torchvision has others."""
        for layer in self.box_head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.mask_predictor.conv5_mask.bias)
        nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(self.mask_predictor.mask_fcn_logits.bias)

    def forward(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image in evaluation, or losses in training; the other of the two is empty.

        Args:
            features: P2..P5 or more.
            proposals: (R_b, 4) of each image.
            image_shapes: (height, width) in pixels of each image.
            targets: of each image `boxes` (n, 4), `labels` (n,) from 1, `masks` (n, H, W); training only.
        """
        if self.training:
            return [], self.losses(features, proposals, image_shapes, targets or [])
        logits, deltas = self.box_outputs(features, proposals, image_shapes)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = self.masks_of(features, boxes, labels, image_shapes)
        return [
            {"boxes": boxes[image], "scores": scores[image], "labels": labels[image], "masks": masks[image]}
            for image in range(len(boxes))
        ], {}

    def box_outputs(
        self, features: list[Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, 1 + K) and box deltas (R, 4 K)."""
        return self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))  # type: ignore[no-any-return]

    def mask_logits(self, features: list[Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """(R, K, M, M), float32."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))).float()  # type: ignore[no-any-return]

    def losses(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """`loss_classifier`, `loss_box_reg`, `loss_mask`: finite and with gradients for all parameters on any image."""
        regions, matches, labels, box_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_outputs(features, regions, image_shapes)
        classifier_loss, box_loss = box_losses(logits, deltas, torch.cat(labels), torch.cat(list(box_targets)))
        positive = [torch.where(image_labels > 0)[0] for image_labels in labels]
        mask_regions = [boxes[chosen] for boxes, chosen in zip(regions, positive, strict=True)]
        mask_targets = [
            cut_masks(target["masks"], match[chosen], boxes)
            for target, match, chosen, boxes in zip(targets, matches, positive, mask_regions, strict=True)
        ]
        mask_loss = mask_losses(
            self.mask_logits(features, mask_regions, image_shapes),
            torch.cat([image_labels[chosen] for image_labels, chosen in zip(labels, positive, strict=True)]) - 1,
            torch.cat(mask_targets),
        )
        return {"loss_classifier": classifier_loss, "loss_box_reg": box_loss, "loss_mask": mask_loss}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes (n, 4), scores (n,) and labels (n,) from 0 of each image, best first, at most 100.

        Args:
            class_logits: (R, 1 + K).
            box_regression: (R, 4 K).
            proposals: (R_b, 4) of each image.
            image_shapes: (height, width) in pixels of each image.
        """
        counts = [len(regions) for regions in proposals]
        all_scores = torch.split(F.softmax(class_logits, dim=1)[:, 1:], counts)  # (R_b, K)
        all_deltas = torch.split(by_class(box_regression), counts)  # (R_b, K, 4)
        found_boxes, found_scores, found_labels = [], [], []
        for regions, scores, deltas, shape in zip(proposals, all_scores, all_deltas, image_shapes, strict=True):
            region, label = torch.where(scores > self.score_thresh)
            candidates = scores[region, label]
            decoded = self.box_coder.decode_single(deltas[region, label], regions[region])
            boxes = clip_boxes_to_image(decoded, shape)
            kept = nms_by_group(boxes, candidates, label, self.nms_thresh)[: self.detections_per_img]
            found_boxes.append(boxes[kept])
            found_scores.append(candidates[kept])
            found_labels.append(label[kept])
        return found_boxes, found_scores, found_labels

    def masks_of(
        self,
        features: list[Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, ...]:
        """Probabilities (n, M, M) in each box of each image, for the class that was found there (labels from 0)."""
        logits = self.mask_logits(features, boxes, image_shapes)
        of_class = logits[torch.arange(len(logits), device=logits.device), torch.cat(labels)]  # (R, M, M)
        return torch.split(of_class.sigmoid(), [len(image_boxes) for image_boxes in boxes])


def by_class(deltas: Tensor) -> Tensor:
    """Box deltas (R, 4 K) as (R, K, 4)."""
    return deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, and the L1 distance of the deltas of objects; both are sums over regions / R.

    Args:
        logits: (R, 1 + K), background first.
        deltas: (R, 4 K).
        labels: (R,), 0 for background.
        targets: (R, 4).
    """
    count = max(len(labels), 1)
    classifier_loss = F.cross_entropy(logits, labels, reduction="sum")
    objects = torch.where(labels > 0)[0]
    of_class = by_class(deltas)[objects, labels[objects] - 1]  # (objects, 4)
    box_loss = F.l1_loss(of_class, targets[objects], reduction="sum")
    return classifier_loss / count, box_loss / count


def mask_losses(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of the masks (R, K, M, M) of the true classes (R,) against (R, M, M); 0 for none."""
    of_class = logits[torch.arange(len(labels), device=labels.device), labels]  # (R, M, M)
    total = F.binary_cross_entropy_with_logits(of_class, targets, reduction="sum")
    return total / max(targets.numel(), 1)


def cut_masks(masks: Tensor, matches: Tensor, boxes: Tensor) -> Tensor:
    """What the mask head is to give: the masks (n, H, W) number `matches` (R,) within the boxes (R, 4), as 0 and 1.

    Returns:
        (R, M, M) float32.
    """
    rois = torch.cat((matches[:, None].to(boxes), boxes), dim=1)  # (R, 5)
    if not len(rois):
        return boxes.new_zeros(0, MASK_OUTPUT_SIZE, MASK_OUTPUT_SIZE)
    cut = roi_align(masks[:, None].to(boxes.dtype), rois, MASK_OUTPUT_SIZE, 1.0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes.dtype)  # type: ignore[no-any-return]
