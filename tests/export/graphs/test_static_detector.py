"""The static detector against the model's own inference, its suppression against torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.models.roi_heads import BOX_SIZE, MASK_SIZE, POOLED_STRIDES, PyramidRoIAlign, pyramid_level
from export.graphs.static_detector import OUTPUTS, PROBES, GridPool, StaticDetector, suppress
from tests.export.tiny_detectors import SIZE, tiny_detector

IMAGES = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


class RoiAlignPool(GridPool):
    """Every region on every level by the operator RoiAlign; its own level's result is taken."""

    def forward(self, levels: list[Tensor], regions: Tensor) -> Tensor:
        """See `GridPool`."""
        align = PyramidRoIAlign(self.output_size)
        images = torch.arange(regions.shape[0], device=regions.device)[:, None].expand(-1, regions.shape[1])
        rois = torch.cat((images.reshape(-1, 1).to(regions.dtype), regions.reshape(-1, 4)), dim=1)  # (B * R, 5)
        level_of = pyramid_level(regions).reshape(-1, 1, 1, 1)
        pooled = align.pool(levels[0], rois, 0)
        for index in range(1, len(POOLED_STRIDES)):
            pooled = torch.where(level_of == index, align.pool(levels[index], rois, index), pooled)
        return pooled


@pytest.fixture(scope="module")
def model() -> ConvMAEDetector:
    return tiny_detector()


@torch.inference_mode()
def own(model: ConvMAEDetector, images: Tensor) -> list[dict[str, Tensor]]:
    """What the model itself finds."""
    found = model(images)
    assert isinstance(found, list)
    return found


@torch.inference_mode()
def static(model: ConvMAEDetector, images: Tensor, pool: type[GridPool] = GridPool) -> dict[str, Tensor]:
    """What the static form finds, by name."""
    detector = StaticDetector(model, SIZE)
    detector.box_pool, detector.mask_pool = pool(SIZE, BOX_SIZE), pool(SIZE, MASK_SIZE)
    return dict(zip((*OUTPUTS, *PROBES), detector(images), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "tolerance", "batch"), [(RoiAlignPool, 1e-6, 3), (GridPool, 2e-4, 1), (GridPool, 2e-4, 3)]
)
def test_the_static_detector_finds_what_the_model_finds(
    model: ConvMAEDetector, batch: int, pool: type[GridPool], tolerance: float
) -> None:
    images = IMAGES[:batch]
    found = static(model, images, pool)
    assert found["converged"].tolist() == [1] * batch
    for index, expected in enumerate(own(model, images)):
        count = len(expected["scores"])
        assert 20 < count and found["num"][index] == count
        assert torch.equal(found["labels"][index, :count], expected["labels"])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(found[name][index, :count], expected[name], atol=tolerance, rtol=tolerance)
            assert not found[name][index, count:].any()


def test_the_scores_of_the_comparison_differ(model: ConvMAEDetector) -> None:
    (found,) = own(model, IMAGES[:1])
    assert found["scores"].std() > 0.01 and len(set(found["labels"].tolist())) > 1 and found["masks"].std() > 0.01


@pytest.mark.slow
def test_nothing_found_is_zeros(model: ConvMAEDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.roi_heads, "score_thresh", 1.0)
    found = static(model, IMAGES)
    assert found["num"].tolist() == [0, 0, 0] and found["converged"].tolist() == [1, 1, 1]
    assert not any(found[name].any() for name in ("boxes", "scores", "labels", "masks"))
    assert [tuple(found[name].shape) for name in OUTPUTS] == [
        (3, 100, 4),
        (3, 100),
        (3, 100),
        (3, 100, 28, 28),
        (3,),
        (3,),
    ]


def random_boxes(generator: torch.Generator, count: int, crowding: float) -> Tensor:
    """Boxes within an image whose side falls with `crowding`, all without duplicates."""
    corners = torch.rand(count, 2, generator=generator) * 400 / crowding
    return torch.cat((corners, corners + 8 + torch.rand(count, 2, generator=generator) * 90), dim=1)


@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_suppression_is_torchvisions(overlap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        boxes = random_boxes(generator, 20 + 10 * case, 1 + case % 8)
        kept, settled = suppress(boxes, torch.ones(len(boxes), dtype=torch.bool), overlap, 32)
        expected = nms(boxes, torch.arange(len(boxes), 0, -1).float(), overlap)
        assert settled and torch.equal(torch.where(kept)[0], expected)


def test_groups_are_suppressed_apart_and_unusable_boxes_suppress_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 4)
    kept, settled = suppress(boxes, torch.tensor([False, True, True, True]), 0.5, 1, torch.tensor([0, 0, 1, 0]))
    assert settled and kept.tolist() == [False, True, True, False]


def test_a_chain_longer_than_the_rounds_is_not_settled() -> None:
    starts = torch.arange(60.0)
    boxes = torch.stack((3 * starts, torch.zeros(60), 3 * starts + 10, torch.full((60,), 10.0)), dim=1)
    expected = nms(boxes, torch.arange(60, 0, -1).float(), 0.5)
    assert len(expected) == 30  # each suppresses only the next
    long, short = (suppress(boxes[:count], torch.ones(count, dtype=torch.bool), 0.5, 16) for count in (60, 15))
    assert not long[1] and len(torch.where(long[0])[0]) != 30
    assert short[1] and torch.where(short[0])[0].tolist() == list(range(0, 15, 2))


@pytest.mark.slow
def test_a_detector_that_does_not_settle_says_so(model: ConvMAEDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.graphs.static_detector.PROPOSAL_ROUNDS", 0)
    assert static(model, IMAGES)["converged"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("bins", [7, 14])
def test_both_forms_of_pooling_agree_on_every_level_and_at_the_border(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (512, 640)
    levels = [torch.randn(2, 4, size[0] // stride, size[1] // stride, generator=generator) for stride in (4, 8, 16, 32)]
    sides = torch.tensor([2.0, 50, 120, 230, 300, 470])[:, None].expand(-1, 2)
    corners = torch.rand(2, 6, 2, generator=generator) * (torch.tensor([640.0, 512]) - sides)
    corners[0, :3] = 0.0
    corners[1] = torch.tensor([640.0, 512]) - sides
    regions = torch.cat((corners, corners + sides), dim=2)
    expected = RoiAlignPool(size, bins)(levels, regions)
    assert expected.shape == (12, 4, bins, bins)
    torch.testing.assert_close(GridPool(size, bins)(levels, regions), expected, atol=2e-4, rtol=2e-4)
