"""The detector's inference with every intermediate of a fixed length, from operators that any runtime has.

The model itself sorts out boxes with masks and loops, whose lengths depend on the image: such a graph does not export
with a batch, and TensorRT cannot read it. Here the image size is fixed, the batch is not, and what the model drops is
marked and carried along. The results are the model's own: greedy suppression is computed as the fixed point of rounds
(Cluster-NMS, arXiv 2005.03572), and `converged` tells whether it was reached.

Shapes: B batch, N boxes, R regions (proposals), P channels of the pyramid, K classes, S bins along a side of a region.
Boxes XYXY in pixels of the input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.models.proposals import has_area
from convmae_deploy.models.pyramid import PYRAMID_STRIDES
from convmae_deploy.models.roi_heads import (
    BOX_SIZE,
    MASK_SIZE,
    POOLED_STRIDES,
    SAMPLING_RATIO,
    pyramid_level,
)
from convmae_deploy.tasks.detection import DETECTOR_OUTPUTS

OUTPUTS = tuple(DETECTOR_OUTPUTS)
LEVELS = tuple(f"p{level}" for level in range(2, 2 + len(PYRAMID_STRIDES)))
DENSE = (*LEVELS, *(f"objectness_{level}" for level in LEVELS), *(f"deltas_{level}" for level in LEVELS))
REGIONS = ("proposals", "proposal_valid")  # what the heads are fed; 1 or 0 for a region or padding
HEADS = ("class_logits", "box_deltas")  # what the box head gives
MASK_REGIONS = ("mask_boxes",)  # with `labels` and `num`, what the mask head is fed
PROBES = (*DENSE, *REGIONS, *HEADS, *MASK_REGIONS)  # outputs beside OUTPUTS, for the verification alone
PROPOSAL_ROUNDS = 64  # for suppression; a trained detector's proposals needed up to 31 on photos, its detections 11
DETECTION_ROUNDS = 32
CANDIDATES = 2000  # best pairs of region and class that become boxes; TensorRT takes fewer than 3840
PADDING_BOX = (0.0, 0.0, 16.0, 16.0)  # in place of a box that is none: never without area, for ROIAlign divides by it
NEVER = -1e9  # below every logit


class StaticDetector(nn.Module):
    """A detector in evaluation mode for images of one size. Exists to be exported and to be its reference."""

    def __init__(self, model: ConvMAEDetector, image_size: tuple[int, int]) -> None:
        """
        Args:
            model: in evaluation mode; its score threshold is taken over.
            image_size: (height, width) in pixels, multiples of 32.

        Raises:
            ConvMAEError: the size is none for this model.
        """
        super().__init__()
        check_image_size(image_size)
        self.model = model
        self.image_size = image_size
        grids = [(-(-image_size[0] // stride), -(-image_size[1] // stride)) for stride in PYRAMID_STRIDES]
        for index, anchors in enumerate(model.rpn.anchor_generator.of_grids(grids, torch.device("cpu"))):
            self.register_buffer(f"anchors_{index}", anchors, persistent=False)
        self.box_pool = GridPool(image_size, BOX_SIZE)
        self.mask_pool = GridPool(image_size, MASK_SIZE)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised, to the tensors named by OUTPUTS and then those named by PROBES."""
        levels = self.model.pyramid(self.model.encoder(image))
        objectness, deltas = self.model.rpn.head(levels)
        proposals, valid, settled = self.propose(objectness, deltas)
        logits, box_deltas = self.classify(levels, proposals)
        boxes, scores, labels, num, final = self.detect(logits, box_deltas, proposals, valid)
        rows = torch.arange(boxes.shape[1], device=image.device) < num[:, None]  # (B, 100)
        mask_boxes = torch.where(rows[..., None], boxes, boxes.new_tensor(PADDING_BOX))
        masks = self.masks_of(levels, mask_boxes, labels) * rows[..., None, None]
        converged = (settled & final).to(torch.int64)
        detections = (boxes, scores, labels, masks, num, converged)
        return (*detections, *levels, *objectness, *deltas, proposals, valid, logits, box_deltas, mask_boxes)

    def propose(self, objectness: list[Tensor], deltas: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Regions of each image, best first, after suppression within their level.

        Args:
            objectness: logits (B, 3, H, W) of each level.
            deltas: (B, 12, H, W) of each level.

        Returns:
            Boxes (B, R, 4), padded; 1 for a box and 0 for padding (B, R); whether suppression has settled (B,).
        """
        rpn = self.model.rpn
        best = [self.best_of_level(index, objectness[index], deltas[index]) for index in range(len(objectness))]
        length = max(scores.shape[1] for scores, _ in best)
        scores = torch.stack([F.pad(scores, (0, length - scores.shape[1]), value=NEVER) for scores, _ in best], 1)
        boxes = torch.stack([F.pad(boxes, (0, 0, 0, length - boxes.shape[1])) for _, boxes in best], 1)  # (B, 5, N, 4)
        kept, settled = suppress(boxes, has_area(boxes), rpn.nms_thresh, PROPOSAL_ROUNDS)  # padding has no area
        scores = torch.where(kept, scores, NEVER).flatten(1)  # (B, 5 N)
        scores, chosen = scores.topk(min(rpn.post_nms_top_n(), scores.shape[1]), dim=1)
        valid = scores > NEVER
        proposals = torch.where(valid[..., None], take(boxes.flatten(1, 2), chosen), boxes.new_tensor(PADDING_BOX))
        return proposals, valid.to(boxes.dtype), settled.all(dim=1)

    def best_of_level(self, index: int, objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """The best logits (B, N) of a level, best first, and their boxes (B, N, 4), within the image."""
        anchors = self.get_buffer(f"anchors_{index}")
        logits = objectness.permute(0, 2, 3, 1).flatten(1)  # (B, H * W * 3)
        deltas = deltas.permute(0, 2, 3, 1).reshape(-1, len(anchors), 4)  # (B, H * W * 3, 4)
        logits, chosen = logits.topk(min(self.model.rpn.pre_nms_top_n(), len(anchors)), dim=1)
        return logits, self.decode(self.model.rpn.box_coder, take(deltas, chosen), F.embedding(chosen, anchors))

    def decode(self, coder: BoxCoder, deltas: Tensor, boxes: Tensor) -> Tensor:
        """What deltas (B, N, 4) make of boxes (B, N, 4), within the image."""
        decoded = coder.decode_single(deltas.reshape(-1, 4), boxes.reshape(-1, 4)).reshape(-1, boxes.shape[1], 4)
        return clip_boxes_to_image(decoded, self.image_size)  # type: ignore[no-any-return]

    def classify(self, levels: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, R, 1 + K) and box deltas (B, R, 4 K) of regions (B, R, 4)."""
        heads, regions = self.model.roi_heads, proposals.shape[1]
        logits, deltas = heads.box_predictor(heads.box_head(self.box_pool(levels, proposals)))
        return logits.reshape(-1, regions, logits.shape[1]), deltas.reshape(-1, regions, deltas.shape[1])

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The best detections of each image after suppression within their class.

        Args:
            logits: (B, R, 1 + K).
            deltas: (B, R, 4 K).
            proposals: (B, R, 4).
            valid: (B, R), 1 for a region and 0 for padding.

        Returns:
            Boxes (B, 100, 4), scores (B, 100) and labels (B, 100), zero where there is none; how many there are (B,);
            whether suppression has settled and no pair left out could have become a detection (B,).
        """
        heads, num_classes = self.model.roi_heads, logits.shape[2] - 1
        scores = torch.where(valid[..., None] > 0, logits.softmax(dim=2)[..., 1:], -1.0).flatten(1)  # (B, R * K)
        scores, pairs = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
        regions, labels = pairs // num_classes, pairs % num_classes
        deltas = deltas.reshape(-1, deltas.shape[1] * num_classes, 4)  # (B, R * K, 4)
        boxes = self.decode(heads.box_coder, take(deltas, pairs), take(proposals, regions))
        wanted = scores > heads.score_thresh
        kept, settled = suppress(boxes, wanted, heads.nms_thresh, DETECTION_ROUNDS, labels)
        count, limit = kept.sum(dim=1), min(heads.detections_per_img, scores.shape[1])
        complete = (count >= limit) | ~wanted[:, -1] | (scores.shape[1] == valid.shape[1] * num_classes)
        best, chosen = torch.where(kept, scores, -1.0).topk(limit, dim=1)
        missing = heads.detections_per_img - limit  # an image so small that it has fewer pairs
        rows = best > -1.0
        boxes = F.pad(take(boxes, chosen) * rows[..., None], (0, 0, 0, missing))
        labels = F.pad(labels.gather(1, chosen) * rows, (0, missing))
        return boxes, F.pad(best * rows, (0, missing)), labels, count.clamp(max=limit), settled & complete

    def masks_of(self, levels: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (B, N, 28, 28) within boxes (B, N, 4) for their labels (B, N)."""
        heads = self.model.roi_heads
        logits = heads.mask_predictor(heads.mask_head(self.mask_pool(levels, boxes))).float()  # (B * N, K, 28, 28)
        index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        probabilities: Tensor = logits.gather(1, index).sigmoid()
        return probabilities.reshape(-1, boxes.shape[1], *logits.shape[2:])


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, M, 4) number `index` (B, N) of each image: (B, N, 4)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def suppress(
    boxes: Tensor, usable: Tensor, overlap: float, rounds: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression as a fixed point: a box stays if no box that stays comes before and overlaps it.

    Each round applies that to the boxes that stayed in the last. From the first box on, whose place is certain, every
    round settles at least one more link of the longest chain of suppressions.

    Args:
        boxes: (..., N, 4), best first.
        usable: (..., N), which of them take part.
        overlap: IoU above which the later of two boxes goes.
        rounds: how many; the longest chain of boxes that each suppress the next takes as many.
        groups: (..., N), boxes of different groups do not suppress one another; None: all are of one.

    Returns:
        Which boxes stay (..., N), and whether one more round would change nothing (...,): then it is the greedy result.
    """
    order = torch.arange(boxes.shape[-2], device=boxes.device)
    suppresses = (overlaps(boxes) > overlap) & (order[:, None] < order[None, :])  # (..., N, N): row suppresses column
    if groups is not None:
        suppresses = suppresses & (groups[..., :, None] == groups[..., None, :])
    matrix = suppresses.to(boxes.dtype)
    start = usable.to(boxes.dtype)[..., None, :]  # (..., 1, N), 1 and 0
    kept = start
    for _ in range(rounds):
        kept = one_round(kept, start, matrix)
    settled = (one_round(kept, start, matrix) == kept).all(dim=-1)
    return kept[..., 0, :] > 0.5, settled[..., 0]


def one_round(kept: Tensor, start: Tensor, matrix: Tensor) -> Tensor:
    """Which of the boxes `start` (..., 1, N) are not suppressed by one of `kept` (..., 1, N); 1 and 0."""
    return F.relu(start - kept @ matrix)  # 1 less the number of suppressors


def overlaps(boxes: Tensor) -> Tensor:
    """IoU (..., N, N) of boxes (..., N, 4) with one another, computed as torchvision's `nms` does."""
    left, top, right, bottom = boxes[..., None, :].unbind(-1)  # each (..., N, 1)
    area = (right - left) * (bottom - top)

    def other(value: Tensor) -> Tensor:
        return value.transpose(-1, -2)  # (..., 1, N)

    width = (torch.minimum(right, other(right)) - torch.maximum(left, other(left))).clamp(min=0)
    height = (torch.minimum(bottom, other(bottom)) - torch.maximum(top, other(top))).clamp(min=0)
    common = width * height
    return common / (area + other(area) - common)


class GridPool(nn.Module):
    """One GridSample over P2..P5 side by side: the samples of aligned ROIAlign, averaged over each bin.

    Within 2e-4 of what the detector is fed by the model's own ROIAlign, which is slower and in TensorRT a plugin.
    Regions lie within the image, so no sample lies further than half a cell outside of its level.
    """

    def __init__(self, image_size: tuple[int, int], output_size: int) -> None:
        """
        Args:
            image_size: (height, width) in pixels, multiples of 32.
            output_size: S.
        """
        super().__init__()
        self.image_size = image_size
        self.output_size = output_size

    def forward(self, levels: list[Tensor], regions: Tensor) -> Tensor:
        """P2..P5 and regions (B, R, 4) to (B * R, P, S, S)."""
        bins, samples = self.output_size, SAMPLING_RATIO * self.output_size
        atlas, origins = atlas_of(levels[: len(POOLED_STRIDES)], self.image_size)
        level = pyramid_level(regions)  # (B, R)
        axes = []
        for axis in (0, 1):  # x, y
            size = self.image_size[1 - axis]
            rows = [(s, size // s - 1, origin[axis]) for s, origin in zip(POOLED_STRIDES, origins, strict=True)]
            stride, last, first = torch.split(F.embedding(level, regions.new_tensor(rows)), 1, dim=2)  # each (B, R, 1)
            start, end = (regions[..., side : side + 1] / stride - 0.5 for side in (axis, 2 + axis))
            steps = torch.arange(samples, device=regions.device, dtype=regions.dtype) + 0.5
            points = start + steps * ((end - start) / samples)  # (B, R, 2 S), in cells
            points = torch.minimum(points.clamp(min=0), last) + first
            axes.append(points * (2 / (atlas.shape[3 - axis] - 1)) - 1)
        x = axes[0][:, :, None, :].expand(-1, -1, samples, -1)
        y = axes[1][:, :, :, None].expand(-1, -1, -1, samples)
        grid = torch.stack((x, y), dim=-1).flatten(1, 2)  # (B, R * 2 S, 2 S, 2)
        sampled = F.grid_sample(atlas, grid, mode="bilinear", padding_mode="border", align_corners=True)
        pooled = F.avg_pool2d(sampled, SAMPLING_RATIO)  # (B, P, R * S, S)
        pooled = pooled.reshape(-1, atlas.shape[1], regions.shape[1], bins, bins).transpose(1, 2)
        return pooled.reshape(-1, atlas.shape[1], bins, bins)


def atlas_of(levels: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """P2 with P3, P4, P5 below one another at its right, (B, P, H/4, W/4 + W/8); and (x, y) where each begins."""
    heights, widths = ([side // stride for stride in POOLED_STRIDES] for side in image_size)
    column = [F.pad(level, (0, widths[1] - widths[index])) for index, level in enumerate(levels[1:], start=1)]
    below = torch.cat(column, dim=2)
    below = F.pad(below, (0, 0, 0, heights[0] - sum(heights[1:])))
    origins = [(0, 0)] + [(widths[0], sum(heights[1:index])) for index in range(1, len(levels))]
    return torch.cat((levels[0], below), dim=3), origins
