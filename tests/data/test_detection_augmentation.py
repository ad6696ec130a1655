"""Large-scale jitter of photos, boxes and masks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.data.coco import CocoObject
from convmae_deploy.data.detection_augmentation import (
    DetectionAugmentation,
    DetectionAugmentationConfig,
    annotated,
    with_boxes_of_what_is_left,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.letterbox import letterbox
from tests.coco_folders import rectangle

SPEC = Letterbox(size=(64, 96))
UNCHANGED = DetectionAugmentationConfig(scale=(1, 1), flip=0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def thing(x: int, y: int, width: int, height: int, label: int = 0) -> CocoObject:
    """An object that fills its box."""
    segmentation = rectangle((x, y, width, height))
    return CocoObject(label=label, box=(x, y, x + width, y + height), segmentation=segmentation)


def augmented(
    photo: Image.Image, objects: list[CocoObject], *, spec: Letterbox = SPEC, seed: int = 0, **config: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    return DetectionAugmentation(DetectionAugmentationConfig(**config), spec)(photo, objects)


def denormalised(image: Tensor) -> Tensor:
    """Levels from 0 to 255, (3, H, W)."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    return (image * std + mean) * 255


@pytest.mark.parametrize(("width", "height"), [(123, 77), (50, 200), (301, 40), (96, 64), (3, 400)])
def test_without_changes_it_is_what_evaluation_and_serving_do(width: int, height: int) -> None:
    photo = noise(width, height)
    image, _ = DetectionAugmentation(UNCHANGED, SPEC)(photo, [])
    assert np.array_equal(image.numpy(), letterbox(photo, SPEC))


def test_boxes_and_masks_are_resized_with_the_photo() -> None:
    image, target = DetectionAugmentation(UNCHANGED, SPEC)(noise(192, 64), [thing(20, 10, 60, 40, label=5)])
    assert image.shape == (3, 64, 96)
    assert target["boxes"].tolist() == [[10, 5, 40, 25]] and target["labels"].tolist() == [5]
    assert target["masks"].shape == (1, 64, 96) and target["masks"].dtype == torch.uint8
    expected = torch.zeros(64, 96, dtype=torch.uint8)
    expected[5:25, 10:40] = 1
    assert torch.equal(target["masks"][0], expected)


def test_a_mask_is_not_shifted_when_it_shrinks() -> None:
    _, target = DetectionAugmentation(UNCHANGED, SPEC)(noise(288, 192), [thing(100, 61, 101, 101)])
    rows, columns = target["masks"][0].nonzero().float().T
    assert rows.mean() + 0.5 == pytest.approx((61 + 101 / 2) / 3, abs=0.2)
    assert columns.mean() + 0.5 == pytest.approx((100 + 101 / 2) / 3, abs=0.2)


def test_everything_is_flipped_together() -> None:
    photo = noise(96, 64)
    image, target = augmented(photo, [thing(20, 10, 40, 30)], scale=(1, 1), flip=1)
    assert np.array_equal(image.numpy(), letterbox(photo, SPEC)[:, :, ::-1])
    assert target["boxes"].tolist() == [[36, 10, 76, 40]]
    assert target["masks"][0, 10:40, 36:76].all() and target["masks"].sum() == 40 * 30


def test_a_small_scale_pads_right_and_below_with_the_level_of_evaluation() -> None:
    image, target = augmented(noise(96, 64), [thing(20, 10, 40, 30)], scale=(0.5, 0.5), flip=0)
    assert target["boxes"].tolist() == [[10, 5, 30, 20]]
    levels = denormalised(image)
    assert torch.allclose(levels[:, 32:], torch.full((3, 32, 96), 128.0), atol=1e-3)
    assert torch.allclose(levels[:, :, 48:], torch.full((3, 64, 48), 128.0), atol=1e-3)
    assert levels[:, :32, :48].std() > 20


def test_crops_of_large_scales_are_of_the_right_place() -> None:
    """The box of a white square, wherever the crop is, holds all that is white."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[20:40, 30:60] = 255
    seen = set()
    for seed in range(20):
        image, target = augmented(Image.fromarray(pixels), [thing(30, 20, 30, 20)], seed=seed, scale=(2, 2), flip=0)
        white = denormalised(image)[0] > 250
        rows, columns = white.nonzero().T
        box = target["boxes"][0]
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box.tolist() == pytest.approx([int(edge) for edge in edges], abs=1.01)
        assert (target["masks"][0].bool() ^ white).float().mean() < 0.05
        seen.add(tuple(box.tolist()))
    assert len(seen) > 10


def test_the_box_of_a_cut_object_is_that_of_the_rest_of_its_mask() -> None:
    triangle = CocoObject(label=0, box=(0, 0, 40, 40), segmentation=[[0, 0, 40, 0, 0, 40]])
    inside = CocoObject(label=1, box=(50.25, 10.5, 60.75, 20.25), segmentation=rectangle((50, 10, 10, 10)))
    target = annotated(noise(64, 64), [triangle, inside])
    target["boxes"][0, 1], target["masks"][0, :30] = 30, 0  # as if cut off 30 pixels below the top
    left = with_boxes_of_what_is_left(target)
    assert left["boxes"][0].tolist() == pytest.approx([0, 30, 10, 40], abs=1)
    assert left["boxes"][1].tolist() == [50.25, 10.5, 60.75, 20.25]


def test_objects_that_the_crop_leaves_nothing_of_are_left_out() -> None:
    corners = [thing(0, 0, 4, 4, label=1), thing(92, 60, 4, 4, label=2)]
    for seed in range(5):
        _, target = augmented(noise(96, 64), corners, seed=seed, scale=(3, 3))
        assert len(target["labels"]) < 2
        assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"])


def test_a_photo_without_objects_gives_empty_targets() -> None:
    _, target = augmented(noise(70, 50), [])
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["masks"].shape == (0, 64, 96)


def test_targets_are_plain_tensors_within_the_input() -> None:
    objects = [thing(5 * index, 3 * index, 30, 25, label=index) for index in range(10)]
    for seed in range(20):
        image, target = augmented(noise(90, 60), objects, seed=seed)
        assert all(type(value) is Tensor for value in (image, *target.values()))
        boxes = target["boxes"]
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([96, 64, 96, 64])).all()


@pytest.mark.parametrize("changes", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"flip": 1.5}])
def test_numbers_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConvMAEError, match="scale must be two positive numbers in ascending order and flip between"):
        DetectionAugmentationConfig(**changes)
