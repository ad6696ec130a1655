import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.tasks import sliding_window
from convmae_deploy.tasks.sliding_window import (
    averaged_logits,
    resize_and_normalise,
    resized_size,
    segment_normalised,
    segment_photo,
    window_starts,
)

FloatArray = NDArray[np.float32]
SPEC = SlidingWindow(window=(32, 64), stride=(21, 40))
CLASSES = 5


def random_model(classes: int = CLASSES) -> Callable[[FloatArray], FloatArray]:
    """Logits that depend on the pixels and on where they are in the window, and that differ a lot between cells."""
    weight = np.random.default_rng(0).standard_normal((classes, 3)).astype(np.float32)

    def run(windows: FloatArray) -> FloatArray:
        cells = windows[:, :, ::4, ::4]
        position = np.cos(np.arange(cells[0, 0].size, dtype=np.float32)).reshape(cells.shape[2:])
        return np.ascontiguousarray(np.einsum("kc,bchw->bkhw", weight, cells) * (1 + position))

    return run


def literal(image_chw: FloatArray, size: tuple[int, int], spec: SlidingWindow, run: object) -> Tensor:
    """The same with every map at full resolution in torch, one window at a time; (K, *size)."""
    assert callable(run)
    _, height, width = image_chw.shape
    padding = [max(0, window - side) for window, side in zip(spec.window, (height, width), strict=True)]
    image = F.pad(torch.from_numpy(image_chw), (0, padding[1], 0, padding[0]))
    total, count = torch.zeros(1), torch.zeros(image.shape[1:])
    for top in window_starts(height, spec.window[0], spec.stride[0]):
        for left in window_starts(width, spec.window[1], spec.stride[1]):
            place = slice(top, top + spec.window[0]), slice(left, left + spec.window[1])
            logits = torch.from_numpy(run(image[None, :, *place].numpy()))
            upsampled = F.interpolate(logits, spec.window, mode="bilinear", align_corners=False)[0]
            if total.ndim == 1:
                total = torch.zeros(len(upsampled), *image.shape[1:])
            total[:, *place] += upsampled
            count[place] += 1
    averaged = (total / count)[:, :height, :width]
    return F.interpolate(averaged[None], size, mode="bilinear", align_corners=False)[0]


def reader(image_chw: FloatArray) -> Callable[[slice, slice], FloatArray]:
    return lambda rows, columns: image_chw[:, rows, columns]


def photo_size(image_chw: FloatArray) -> tuple[int, int]:
    return image_chw.shape[1], image_chw.shape[2]


def assembled(image_chw: FloatArray, size: tuple[int, int], spec: SlidingWindow, run: object) -> FloatArray:
    assert callable(run)
    final = np.full((CLASSES, *size), np.nan, dtype=np.float32)
    for part, logits in averaged_logits(reader(image_chw), photo_size(image_chw), size, spec, run):
        assert np.isnan(final[:, *part]).all(), "no pixel twice"
        final[:, *part] = logits
    return final


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [
        (512, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (100, 512, 341, [0]),
        (1024, 512, 512, [0, 512]),
    ],
)
def test_windows_end_with_the_photo(side: int, window: int, stride: int, expected: list[int]) -> None:
    assert window_starts(side, window, stride) == expected


@pytest.mark.parametrize(
    ("photo", "final"),
    [
        ((32, 64), (32, 64)),  # one window
        ((75, 131), (75, 131)),  # odd, several windows each way
        ((131, 75), (131, 75)),
        ((20, 30), (20, 30)),  # smaller than the window
        ((20, 200), (20, 200)),  # smaller on one side
        ((200, 20), (200, 20)),
        ((75, 131), (150, 262)),  # enlarged
        ((75, 131), (41, 70)),  # made smaller
        ((60, 100), (97, 33)),  # another shape
        ((90, 300), (3, 10)),  # windows that touch hardly a pixel
        ((1, 1), (1, 1)),
        ((64, 64), (1, 500)),
    ],
)
@pytest.mark.parametrize(("bytes_held", "block"), [(1, 64), (30_000, 17), (32_000_000, 64), (32_000_000, 1000)])
def test_the_final_map_equals_a_literal_computation(
    photo: tuple[int, int], final: tuple[int, int], bytes_held: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "MAX_BYTES", bytes_held)
    monkeypatch.setattr(sliding_window, "BLOCK", block)
    image = np.random.default_rng(1).standard_normal((3, *photo)).astype(np.float32)
    expected = literal(image, final, SPEC, random_model()).numpy()
    assert np.allclose(assembled(image, final, SPEC, random_model()), expected, atol=2e-5)


def test_labels_are_the_largest_logits_and_scores_their_mean_probabilities() -> None:
    image = np.random.default_rng(1).standard_normal((3, 75, 131)).astype(np.float32)
    found = segment_normalised(image, (90, 100), SPEC, random_model())
    logits = literal(image, (90, 100), SPEC, random_model())
    assert found.labels.dtype == np.uint8
    assert (found.labels == logits.argmax(0).numpy()).mean() > 0.999  # ties within rounding
    probabilities = logits.softmax(0)
    for index in range(CLASSES):
        expected = probabilities[index][torch.from_numpy(found.labels) == index].mean()
        assert np.isclose(found.scores[index], expected, atol=1e-5)


def test_a_class_that_is_nowhere_has_score_0_and_more_than_256_classes_need_16_bits() -> None:
    def run(windows: FloatArray) -> FloatArray:
        logits = np.zeros((len(windows), 300, 8, 16), dtype=np.float32)
        logits[:, 299] = 50
        return logits

    found = segment_photo(Image.new("RGB", (70, 40)), SPEC, run)
    assert found.labels.dtype == np.uint16 and (found.labels == 299).all() and found.labels.shape == (40, 70)
    assert np.isclose(found.scores[299], 1) and not found.scores[:299].any()


def test_of_equal_logits_the_first_class_wins() -> None:
    found = segment_photo(
        Image.new("RGB", (70, 40)), SPEC, lambda windows: np.zeros((len(windows), 4, 8, 16), np.float32)
    )
    assert (found.labels == 0).all() and np.isclose(found.scores[0], 0.25)


@pytest.mark.parametrize(("size", "per_call"), [((64, 640), 3), ((640, 128), 3)])
def test_windows_across_the_shorter_side_are_run_together_and_each_once(size: tuple[int, int], per_call: int) -> None:
    calls = []

    def run(windows: FloatArray) -> FloatArray:
        calls.append(windows.shape)
        return random_model()(windows)

    image = np.zeros((3, *size), dtype=np.float32)
    list(averaged_logits(reader(image), size, size, SPEC, run))
    assert set(calls) == {(per_call, 3, 32, 64)}
    sides = zip(size, SPEC.window, SPEC.stride, strict=True)
    assert len(calls) * per_call == math.prod(len(window_starts(*side)) for side in sides)


def test_few_windows_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding_window, "BLOCK", 20)
    asked: list[int] = []

    def run(windows: FloatArray) -> FloatArray:
        asked.append(len(asked))
        return random_model()(windows)

    image = np.zeros((3, 640, 64), dtype=np.float32)
    behind = [(part[0].stop, len(asked)) for part, _ in averaged_logits(reader(image), (640, 64), (640, 64), SPEC, run)]
    assert all((count - 2) * 21 <= row for row, count in behind)  # no window before its rows are wanted


@pytest.mark.parametrize(
    ("photo", "expected"),
    [((333, 500), (512, 769)), ((500, 333), (769, 512)), ((512, 512), (512, 512)), ((1, 2), (512, 1024))],
)
def test_the_short_side_is_exact_and_the_other_rounded(photo: tuple[int, int], expected: tuple[int, int]) -> None:
    spec = SlidingWindow(window=(512, 512), stride=(341, 341), short_side=512)
    assert resized_size(photo, spec) == expected
    assert resize_and_normalise(Image.new("RGB", photo[::-1]), spec).shape == (3, *expected)


def test_labels_have_the_size_of_the_photo_whatever_size_is_looked_at() -> None:
    spec = SPEC.model_copy(update={"short_side": 48})
    levels = np.zeros((101, 67, 3), dtype=np.uint8)
    levels[:, 33:] = 255

    def run(windows: FloatArray) -> FloatArray:
        bright = windows[:, :1, 2::4, 2::4]
        return np.concatenate([-bright, bright], axis=1)

    found = segment_photo(Image.fromarray(levels), spec, run)
    assert found.labels.shape == (101, 67)
    assert (found.labels[:, :31] == 0).all() and (found.labels[:, 36:] == 1).all()


@pytest.mark.parametrize("size", [(75, 131), (131, 75), (20, 30)])
def test_a_photo_gives_what_its_normalised_pixels_give(size: tuple[int, int]) -> None:
    spec = SPEC.model_copy(update={"short_side": 50})
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    found = segment_photo(photo, spec, random_model())
    expected = segment_normalised(resize_and_normalise(photo, spec), size, spec, random_model())
    assert np.array_equal(found.labels, expected.labels) and np.array_equal(found.scores, expected.scores)


def test_a_long_photo_is_looked_at_smaller_than_its_short_side_asks_for() -> None:
    spec = SlidingWindow(window=(512, 512), stride=(341, 341), short_side=512, long_side=2048)
    assert resized_size((400, 600), spec) == (512, 768)
    assert resized_size((100, 1000), spec) == (205, 2048)
    assert resized_size((3, 3000), spec) == (2, 2048)
    own = SlidingWindow(window=(64, 64), stride=(64, 64), long_side=100)
    assert resized_size((50, 90), own) == (50, 90) and resized_size((50, 200), own) == (25, 100)
