"""Anchors, losses and selection of proposals against numbers computed by hand from detectron2's conventions."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from convmae_deploy.models.proposals import ProposalNetwork, PyramidAnchors, has_area, nms_apart, nms_by_group


def network() -> ProposalNetwork:
    torch.manual_seed(0)
    model = ProposalNetwork(4, 2)
    model.eval()
    return model


def maps_of(height: int, width: int) -> list[Tensor]:
    """Maps of P2..P6 for an image, with P6 rounded up."""
    return [torch.zeros(1, 4, math.ceil(height / stride), math.ceil(width / stride)) for stride in (4, 8, 16, 32, 64)]


def test_anchors_are_not_rounded_and_lie_on_the_corners_of_cells() -> None:
    images = ImageList(torch.zeros(2, 3, 96, 160), [(96, 160)] * 2)
    first, second = PyramidAnchors()(images, maps_of(96, 160))
    assert torch.equal(first, second)
    assert len(first) == 3 * (24 * 40 + 12 * 20 + 6 * 10 + 3 * 5 + 2 * 3)
    wide, high = 32 / math.sqrt(0.5), 32 * math.sqrt(0.5)  # ratio height / width of 0.5: 45.25 by 22.63 pixels
    torch.testing.assert_close(first[0], torch.tensor([-wide / 2, -high / 2, wide / 2, high / 2]))
    torch.testing.assert_close(first[1], torch.tensor([-16.0, -16.0, 16.0, 16.0]))
    torch.testing.assert_close(first[2], torch.tensor([-high / 2, -wide / 2, high / 2, wide / 2]))
    torch.testing.assert_close(first[4], torch.tensor([-12.0, -16.0, 20.0, 16.0]))  # the next column
    torch.testing.assert_close(first[1 + 3 * 40], torch.tensor([-16.0, -12.0, 16.0, 20.0]))  # the next row
    last = torch.tensor([-256 + 128.0, -256 + 64.0, 256 + 128.0, 256 + 64.0])  # P6 has stride 64 though 96 is 1.5 cells
    torch.testing.assert_close(first[-2], last)


def test_anchors_are_float32_for_maps_in_half_precision() -> None:
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (anchors,) = PyramidAnchors()(images, [level.bfloat16() for level in maps_of(64, 64)])
    assert anchors.dtype == torch.float32


def test_deltas_shift_and_scale_an_anchor_and_the_scale_is_bounded() -> None:
    coder = network().box_coder
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 by 40 around (20, 40)
    found = coder.decode_single(torch.tensor([[0.1, -0.5, math.log(2), math.log(0.5)]]), anchor)
    torch.testing.assert_close(found, torch.tensor([[22 - 20.0, 20 - 10.0, 22 + 20.0, 20 + 10.0]]))
    huge = coder.decode_single(torch.tensor([[0.0, 0.0, 100.0, 0.0]]), anchor)
    torch.testing.assert_close(huge, torch.tensor([[20 - 625.0, 20.0, 20 + 625.0, 60.0]]))  # 20 * 1000 / 16 wide
    torch.testing.assert_close(coder.encode_single(found, anchor), torch.tensor([[0.1, -0.5, 0.693147, -0.693147]]))


def test_losses_are_divided_by_the_samples_asked_for() -> None:
    model = network()
    labels = [torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, -1.0, -1.0])]
    logits = torch.tensor([2.0, -1.0, 50.0, 0.5, 50.0, 50.0])[:, None]
    targets = [torch.tensor([[0.5, 0.0, -1.0, 0.0]]).expand(3, 4), torch.full((3, 4), math.inf)]
    objectness, box = model.compute_loss(logits, torch.full((6, 4), 0.25), labels, targets)
    expected = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0)) + math.log1p(math.exp(0.5))
    assert objectness.item() == pytest.approx(expected / (2 * 256))
    assert box.item() == pytest.approx((0.25 + 0.25 + 1.25 + 0.25) / (2 * 256))


def test_at_most_256_anchors_of_an_image_count_and_half_of_them_may_be_objects() -> None:
    labels = [torch.cat((torch.ones(200), torch.zeros(1000)))]
    objectness, _ = network().compute_loss(torch.zeros(1200, 1), torch.zeros(1200, 4), labels, [torch.zeros(1200, 4)])
    assert objectness.item() == pytest.approx(math.log(2))
    positive, negative = network().fg_bg_sampler(labels)
    assert (int(positive[0].sum()), int(negative[0].sum())) == (128, 128)


def test_proposals_are_clipped_ranked_by_logits_and_suppressed_within_their_level() -> None:
    boxes = torch.tensor(
        [
            [-8.0, -8.0, 16.0, 16.0],  # level 0, clipped
            [0.0, 0.0, 16.0, 15.0],  # level 0, IoU 0.94 with the one above: suppressed
            [0.0, 0.0, 16.0, 16.0],  # level 1: stays although it is the same
            [40.0, 0.0, 60.0, 10.0],  # outside of the image: no area is left
            [3.0, 3.0, 3.0005, 3.0005],  # smaller than anything torchvision would keep
        ]
    )
    logits = torch.tensor([30.0, 20.0, 40.0, 50.0, -60.0])  # the sigmoid of the first three is 1 in float32
    found, scores = network().filter_proposals(boxes[None], logits, [(32, 32)], [2, 3])
    assert torch.equal(found[0], torch.stack((boxes[2], torch.tensor([0.0, 0.0, 16.0, 16.0]), boxes[4])))
    assert torch.equal(scores[0], torch.tensor([40.0, 30.0, -60.0]))


def test_training_looks_at_more_proposals_than_evaluation() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 900 * torch.rand(1, 2500, 2, generator=generator)
    boxes = torch.cat((corners, corners + 1), dim=2)
    logits = torch.randn(2500, generator=generator)
    model = network()
    found, scores = model.filter_proposals(boxes, logits, [(1000, 1000)], [1500, 1000])
    assert len(found[0]) == 1000
    assert torch.equal(scores[0], scores[0].sort(descending=True).values)
    assert (model.pre_nms_top_n(), model.train().pre_nms_top_n()) == (1000, 2000)


def test_suppression_by_group_is_suppression_in_each_group() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(300, 2, generator=generator)
    boxes = torch.cat((corners, corners + 5 + 20 * torch.rand(300, 2, generator=generator)), dim=1)
    scores, groups = torch.rand(300, generator=generator), torch.randint(7, (300,), generator=generator)
    found = nms_by_group(boxes, scores, groups, 0.5)
    expected = {
        int(indices[index])
        for group in range(7)
        for indices in [torch.where(groups == group)[0]]
        for index in nms(boxes[indices], scores[indices], 0.5)
    }
    assert set(found.tolist()) == expected and len(found) == len(expected) < 300
    assert torch.equal(scores[found], scores[found].sort(descending=True).values)
    assert not len(nms_by_group(torch.zeros(0, 4), torch.zeros(0), groups[:0], 0.5))


@pytest.mark.parametrize("seed", range(8))
def test_groups_moved_apart_are_suppressed_as_each_by_itself(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = 1024 * torch.rand(400, 2, generator=generator) - 100
    sides = torch.randint(1, 9, (400, 2), generator=generator) * 30.0
    boxes = torch.cat((corners, corners + sides), dim=1)
    boxes[200:] = boxes[:200] + sides[:200].repeat(1, 2) / 3  # IoU of exactly 0.5 or near it, for squares
    scores, groups = torch.rand(400, generator=generator), torch.randint(80, (400,), generator=generator)
    for overlap in (0.05, 0.5, 0.7):
        by_group = nms_by_group(boxes, scores, groups, overlap)
        assert torch.equal(nms_apart(boxes, scores, groups, overlap), by_group)
        assert torch.equal(
            nms_apart(boxes, scores, groups % 3, overlap), nms_by_group(boxes, scores, groups % 3, overlap)
        )
    assert not len(nms_apart(torch.zeros(0, 4), torch.zeros(0), groups[:0], 0.5))


def test_boxes_without_area_are_told() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1], [math.nan, 0, 1, 1]])
    assert has_area(boxes).tolist() == [True, False, False, False, False]
