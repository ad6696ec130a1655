from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from convmae_deploy.tasks.segmentation import Segmenter
from tests.bundle_factory import make_segmentation_bundle, open_as


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmentation_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def segmenter(bundle: Path) -> Segmenter:
    return open_as(Segmenter, bundle, device="cpu", threads=1)


def random_photo(height: int, width: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(levels, np.ones((8, 8, 1), np.uint8))[:height, :width])


def in_torch(photo: Image.Image, bundle: Path) -> torch.Tensor:
    """Logits of a photo that fits into one window, from the graph's own weights."""
    weight = torch.tensor(numpy_helper.to_array(onnx.load(bundle / "model.onnx").graph.initializer[0]))
    levels = torch.tensor(np.asarray(photo)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = F.pad((levels - mean) / std, (0, 64 - photo.width, 0, 64 - photo.height))
    logits = F.conv2d(F.avg_pool2d(image[None], 4), weight)
    return F.interpolate(logits, (64, 64), mode="bilinear")[0, :, : photo.height, : photo.width]


def test_a_photo_s_labels_are_those_of_the_graph_s_logits(segmenter: Segmenter, bundle: Path) -> None:
    photo = random_photo(51, 62)
    found = segmenter([photo])[0]
    expected = in_torch(photo, bundle)
    assert found.labels.shape == (51, 62) and found.labels.dtype == np.uint8
    assert (found.labels == expected.argmax(0).numpy()).mean() > 0.999
    chosen = torch.from_numpy(found.labels) == 2
    assert chosen.any()
    assert found.scores[2] == pytest.approx(float(expected.softmax(0)[2][chosen].mean()), abs=1e-4)


def test_photos_of_any_size_are_segmented_window_by_window(segmenter: Segmenter) -> None:
    sizes = [(1, 1), (200, 65), (64, 64), (65, 400)]
    for (height, width), found in zip(sizes, segmenter([random_photo(*size) for size in sizes]), strict=True):
        assert found.labels.shape == (height, width)
        assert found.labels.max() < 4 and found.scores.shape == (4,)
    assert segmenter([]) == []


def test_where_windows_meet_no_seam_is_seen(segmenter: Segmenter) -> None:
    photo = random_photo(150, 230)
    labels = segmenter([photo])[0].labels

    def of_the_colour(level: NDArray[np.uint8]) -> int:
        return int(segmenter([Image.new("RGB", (8, 8), tuple(level.tolist()))])[0].labels[4, 4])

    middles = [(y, x) for y in range(4, 144, 16) for x in range(4, 224, 24)]
    agreeing = [labels[y, x] == of_the_colour(np.asarray(photo)[y, x]) for y, x in middles]
    assert np.mean(agreeing) > 0.9
