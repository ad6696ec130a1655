import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks.preprocess import cropped_views, preprocess

SIZES = [(1, 1), (1, 100), (99, 1), (7, 3), (500, 375), (333, 501), (224, 224), (256, 256), (257, 255), (640, 64)]


def specification(crop: tuple[int, int], share: float, interpolation: str = "bicubic") -> Preprocessing:
    height, width = (math.floor(side / share) for side in crop)
    return Preprocessing.model_validate({"resize": (height, width), "crop": crop, "interpolation": interpolation})


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("crop", "share"), [((224, 224), 0.875), ((64, 64), 1.0), ((96, 160), 0.875), ((160, 96), 0.9), ((64, 224), 1.0)]
)
def test_random_photos_equal_timms_evaluation_transform_bit_for_bit(
    crop: tuple[int, int], share: float, interpolation: str
) -> None:
    random = np.random.default_rng(0)
    transform = create_transform((3, *crop), is_training=False, crop_pct=share, interpolation=interpolation)
    spec = specification(crop, share, interpolation)
    for width, height in [*SIZES, *random.integers(1, 400, (8, 2)).tolist()]:
        photo = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.array_equal(preprocess(photo, spec), transform(photo).numpy()), (width, height)


@pytest.mark.slow
@pytest.mark.skipif("CONVMAE_DATA" not in os.environ, reason="CONVMAE_DATA does not name the folder of the data packs")
@pytest.mark.parametrize("pattern", ["imagenet_sample/images/*", "cls_imagenette160/val/*/*"])
def test_real_photos_equal_timms_evaluation_transform_bit_for_bit(pattern: str) -> None:
    files = sorted(Path(os.environ["CONVMAE_DATA"]).glob(pattern))
    files = files[:: max(1, len(files) // 110)][:110]
    assert len(files) >= 100
    transform = create_transform((3, 224, 224), is_training=False, crop_pct=0.875, interpolation="bicubic")
    spec = specification((224, 224), 0.875)
    for file in files:
        ours = preprocess(decode_image(file.read_bytes(), apply_orientation=False).image, spec)
        with Image.open(file) as photo:
            assert np.array_equal(ours, transform(photo.convert("RGB")).numpy()), file


def test_all_256_levels_are_normalised_as_torch_does() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    photo = Image.fromarray(np.stack([levels] * 3, axis=-1))
    spec = Preprocessing(resize=(16, 16), crop=(16, 16), mean=mean, std=std)
    scaled = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255).reshape(16, 16)
    for channel in range(3):
        expected = (scaled - torch.tensor(mean[channel])) / torch.tensor(std[channel])
        assert np.array_equal(preprocess(photo, spec)[channel], expected.numpy())


def test_the_result_is_float32_channels_first_and_contiguous() -> None:
    result = preprocess(Image.new("RGB", (50, 40)), specification((32, 64), 1.0))
    assert result.shape == (3, 32, 64)
    assert result.dtype == np.float32 and result.flags.c_contiguous


@pytest.mark.parametrize(("size", "axis"), [((90, 40), 1), ((40, 90), 0)])
def test_several_views_go_from_end_to_end_of_the_longer_side(size: tuple[int, int], axis: int) -> None:
    ramp = np.indices((size[1], size[0]))[axis].astype(np.uint8)
    photo = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    spec = Preprocessing(resize=(40, 40), crop=(32, 32))
    views = cropped_views(photo, spec, 3)
    assert [(int(view[0, 0, 0]), int(view[-1, -1, 0])) for view in views] == [(0, 31), (29, 60), (58, 89)]
    assert np.array_equal(views[1], cropped_views(photo, spec, 1)[0])
    assert len(cropped_views(photo, spec, 5)) == 5
