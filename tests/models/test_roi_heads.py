"""Region pooling, losses and detections against numbers computed by hand from detectron2's conventions."""

import math

import pytest
import torch
from torch import Tensor

from convmae_deploy.models.roi_heads import (
    DetectionHeads,
    PyramidRoIAlign,
    box_losses,
    cut_masks,
    mask_losses,
    pyramid_level,
)

SIZES = [(64, 64)]


def levels_of(map_hw: Tensor, index: int) -> list[Tensor]:
    """P2..P5 of a 64 x 64 image, zero but for one level."""
    levels = [torch.zeros(1, 1, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    levels[index] = map_hw[None, None]
    return levels


def heads(num_classes: int = 3) -> DetectionHeads:
    torch.manual_seed(0)
    model = DetectionHeads(channels=4, fc_width=8, norm="layer", num_classes=num_classes)
    model.eval()
    return model


def test_a_pixel_of_a_map_stands_for_its_middle() -> None:
    columns = torch.arange(16.0).expand(16, 16)
    found = PyramidRoIAlign(7)(levels_of(columns, 0), [torch.tensor([[8.0, 8.0, 36.0, 36.0]])], SIZES)
    # 8 to 36 pixels are 2 to 9 cells; pixel k of the map is at k + 0.5; so the first bin's middle, 2.5, is pixel 2
    torch.testing.assert_close(found[0, 0], torch.arange(2.0, 9.0).expand(7, 7))
    rows = PyramidRoIAlign(7)(levels_of(columns.t().contiguous(), 0), [torch.tensor([[8.0, 8.0, 36.0, 36.0]])], SIZES)
    torch.testing.assert_close(rows[0, 0], torch.arange(2.0, 9.0)[:, None].expand(7, 7))


def test_a_bin_is_the_mean_of_two_by_two_samples_whatever_its_size() -> None:
    squares = torch.arange(16.0).square().expand(16, 16)
    (found,) = PyramidRoIAlign(2)(levels_of(squares, 0), [torch.tensor([[2.0, 2.0, 34.0, 34.0]])], SIZES)
    # -0.5 + 2 / 4 = 0 to 8 cells: bins of 4 with samples at 1 and 3, then at 5 and 7
    torch.testing.assert_close(found[0], torch.tensor([(1 + 9) / 2, (25 + 49) / 2]).expand(2, 2))


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(1, 1, 2), (0, 9, 2), (111.9, 112, 2), (112, 112, 3), (223.9, 224, 3), (224, 224, 4), (447, 448, 4), (448, 448, 5)]
    + [(56, 224, 3), (5000, 5000, 5)],
)
def test_a_region_belongs_to_the_level_of_its_area(width: float, height: float, level: int) -> None:
    boxes = torch.tensor([[10.0, 20.0, 10 + width, 20 + height]])
    assert pyramid_level(boxes).tolist() == [level - 2]


def test_regions_are_pooled_from_their_own_image_and_level_in_their_order() -> None:
    values = torch.arange(1.0, 9.0).reshape(4, 2)  # of each level and image
    levels = [
        values[index].reshape(2, 1, 1, 1).expand(2, 1, 1024 // stride, 1024 // stride).contiguous()
        for index, stride in enumerate((4, 8, 16, 32))
    ]
    sides = torch.tensor([500.0, 30, 250, 120, 900])
    boxes = torch.stack((sides * 0 + 7, sides * 0 + 9, sides + 7, sides + 9), dim=1)
    found = PyramidRoIAlign(3)(levels, [boxes[:2], boxes[2:]], [(1024, 1024)] * 2)
    expected = torch.tensor([values[3, 0], values[0, 0], values[2, 1], values[1, 1], values[3, 1]])
    assert torch.equal(found, expected[:, None, None, None].expand(5, 1, 3, 3))


def test_no_region_gives_no_features() -> None:
    levels = [level.requires_grad_() for level in levels_of(torch.zeros(16, 16), 0)]
    found = PyramidRoIAlign(7)(levels, [torch.zeros(0, 4)], SIZES)
    assert found.shape == (0, 1, 7, 7)
    found.sum().backward()
    assert all(level.grad is not None for level in levels)


def test_box_losses_are_sums_over_all_regions() -> None:
    logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # background first
    deltas = torch.arange(24.0).reshape(3, 8)  # of two classes
    targets = torch.zeros(3, 4)
    targets[2] = torch.tensor([20.5, 21.0, 22.0, 20.0])
    classifier, box = box_losses(logits, deltas, torch.tensor([1, 0, 2]), targets)
    expected = -2 + math.log(2 + math.exp(2)) - 1 + math.log(2 + math.exp(1)) + math.log(3)
    assert classifier.item() == pytest.approx(expected / 3)
    # region 0 is of the first class: |0| + |1| + |2| + |3|; region 2 of the second: 0.5 + 0 + 0 + 3
    assert box.item() == pytest.approx((6 + 3.5) / 3)


def test_the_mask_loss_looks_at_the_true_class_alone() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 2], logits[1, 0] = 1.0, -3.0
    logits[0, 0] = logits[0, 1] = logits[1, 1] = logits[1, 2] = 99.0
    targets = torch.stack((torch.ones(2, 2), torch.zeros(2, 2)))
    loss = mask_losses(logits, torch.tensor([2, 0]), targets)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2)


def test_mask_targets_are_the_objects_cut_out_as_zeros_and_ones() -> None:
    masks = torch.zeros(2, 56, 56, dtype=torch.uint8)
    masks[1, 14:42, 28:] = 1
    found = cut_masks(masks, torch.tensor([1, 0]), torch.tensor([[0.0, 0, 56, 56], [0, 0, 56, 56]]))
    expected = torch.zeros(2, 28, 28)
    expected[0, 7:21, 14:] = 1
    assert torch.equal(found, expected)
    assert cut_masks(masks[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)).shape == (0, 28, 28)


def test_detections_leave_the_background_out_and_take_the_deltas_of_their_class() -> None:
    model = heads()
    logits = torch.tensor([[0.0, 0, 0, 9], [9.0, 0, 0, 0], [0.0, 0, 8, 0]])  # class 2, background, class 1
    deltas = torch.zeros(3, 12)
    deltas[0, 8:] = torch.tensor([10.0, 0, 5 * math.log(2), 0])  # one width to the right, twice as wide
    deltas[2, :4] = 99.0  # of another class
    regions = torch.tensor([[10.0, 10, 20, 30], [0, 0, 9, 9], [40, 40, 70, 50]])
    (boxes,), (scores,), (labels,) = model.postprocess_detections(logits, deltas, [regions], SIZES)
    assert labels.tolist() == [2, 1]
    torch.testing.assert_close(boxes, torch.tensor([[15.0, 10, 35, 30], [40, 40, 64, 50]]))  # the second one is clipped
    torch.testing.assert_close(scores, logits.softmax(dim=1)[[0, 2], [3, 2]])


def test_detections_overlap_only_with_those_of_their_class_and_are_at_most_a_hundred() -> None:
    model = heads(2)
    regions = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10]])
    logits = torch.tensor([[0.0, 5, 0], [0.0, 4, 0], [0.0, 0, 3]])
    (boxes,), _, (labels,) = model.postprocess_detections(logits, torch.zeros(3, 8), [regions], SIZES)
    assert labels.tolist() == [0, 1] and torch.equal(boxes, regions[[0, 2]])
    places = torch.arange(150.0)
    apart = torch.stack((places, places * 0, places + 0.5, places * 0 + 1), dim=1)
    (boxes,), _, _ = model.postprocess_detections(
        torch.tensor([[0.0, 5, 0]]).expand(150, 3), torch.zeros(150, 8), [apart], [(200, 200)]
    )
    assert len(boxes) == 100


def test_low_scores_are_no_detections() -> None:
    (boxes,), _, _ = heads(2).postprocess_detections(
        torch.tensor([[5.0, 0, 0]]), torch.zeros(1, 8), [torch.tensor([[0.0, 0, 9, 9]])], SIZES
    )
    assert boxes.shape == (0, 4)


def test_masks_are_those_of_the_class_that_was_found() -> None:
    model = heads()
    levels = [torch.randn(2, 4, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    boxes = [torch.tensor([[3.0, 5, 20, 30]]), torch.tensor([[0.0, 0, 60, 60], [9, 9, 20, 40]])]
    labels = [torch.tensor([2]), torch.tensor([0, 1])]
    with torch.no_grad():
        first, second = model.masks_of(levels, boxes, labels, SIZES * 2)
        logits = model.mask_logits(levels, boxes, SIZES * 2)
    assert torch.equal(first, logits[:1, 2].sigmoid())
    assert torch.equal(second, torch.stack((logits[1, 0], logits[2, 1])).sigmoid())
