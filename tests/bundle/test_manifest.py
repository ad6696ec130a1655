"""What a manifest must say, whatever its task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from convmae_deploy.bundle.manifest import InputSpec, Manifest, SideRange
from convmae_deploy.bundle.preprocessing import (
    ClipPreprocessing,
    Letterbox,
    SlidingWindow,
    standard_clips,
    standard_windows,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle

Change = Callable[[dict[str, Any]], None]


def classifier_fields(tmp_path: Path) -> dict[str, Any]:
    text = (make_bundle(tmp_path) / "manifest.json").read_text(encoding="utf-8")
    return Manifest.model_validate_json(text).model_dump()


def test_windows_that_leave_pixels_out_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be at most the window"):
        SlidingWindow(window=(64, 64), stride=(64, 65))


def test_the_standard_windows_are_the_authors() -> None:
    assert standard_windows((512, 512), 512) == SlidingWindow(window=(512, 512), stride=(341, 341), short_side=512)
    assert standard_windows((96, 160), None).stride == (64, 106)


def with_field(path: tuple[str, ...], value: object) -> Change:
    """Sets a field inside of others."""

    def change(fields: dict[str, Any]) -> None:
        for name in path[:-1]:
            fields = fields[name]
        fields[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("preprocessing", "resize"), [10**6, 10**6]),
        (("preprocessing", "resize"), [0, 64]),
        (("preprocessing", "mean"), [float("nan"), 0, 0]),
        (("preprocessing", "mean"), [float("-inf"), 0, 0]),
        (("preprocessing", "std"), [0, 1, 1]),
        (("preprocessing", "std"), [1e-40, 1, 1]),
        (("preprocessing", "std"), [float("inf"), 1, 1]),
        (("preprocessing", "std"), [float("nan"), 1, 1]),
        (("preprocessing", "std"), [-1, 1, 1]),
        (("input", "max_batch"), 10**9),
        (("input", "min_batch"), 0),
        (("input", "min_batch"), 9),
        (("input", "shape"), [3, 10**6, 10**6]),
        (("input", "shape"), [3, -64, -64]),
        (("input", "shape"), [1] * 100),
        (("input", "name"), "x" * 10**6),
        (("outputs", "e1", "shape"), [10**6, 10**6]),
        (("outputs", "e1", "shape"), [-1]),
        (("outputs", "e1", "stride"), 0),
        (("outputs", "x" * 10**6), {"shape": [1]}),
        (("variant",), "x" * 10**6),
        (("classes",), ["x" * 10**6, "b", "c"]),
        (("classes",), ["x"] * 10**6),
        (("licence", "name"), "x" * 10**6),
        (("tools",), {str(index): "1" for index in range(10**5)}),
        (("provenance",), {str(index): "1" for index in range(10**5)}),
        (("files", "model.onnx", "bytes"), 10**15),
    ],
)
def test_numbers_and_lists_without_end_are_refused(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    fields = classifier_fields(tmp_path)
    with_field(path, value)(fields)
    with pytest.raises(ValidationError):
        Manifest.model_validate(fields)


def test_files_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    fields = classifier_fields(tmp_path)
    file = fields["files"]["model.onnx"]
    fields["files"] = {f"{index}.onnx": file | {"bytes": 2**35} for index in range(3)}
    with pytest.raises(ValidationError, match="files must have at most 68719476736 bytes together"):
        Manifest.model_validate(fields)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"window": (64, 64), "stride": (1, 1)}, "must be at least 1/8 of the window"),
        ({"window": (64, 64), "stride": (32, 32), "short_side": 10**6}, "short_side"),
        ({"window": (64, 64), "stride": (32, 32), "long_side": 10**6}, "long_side"),
    ],
)
def test_windows_without_number_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SlidingWindow.model_validate(spec)


@pytest.mark.parametrize("field", ["frames", "stride"])
def test_clips_without_end_are_refused(field: str) -> None:
    spec = standard_clips((64, 64)).model_dump()
    with pytest.raises(ValidationError, match=field):
        ClipPreprocessing.model_validate(spec | {field: 10**6})


def test_the_largest_models_that_there_are_fit(tmp_path: Path) -> None:
    """ImageNet-21k, and a detector's input of 1333 pixels with which the authors' code tests."""
    names = [f"a name of a class with several synonyms, number {index}" for index in range(21_843)]
    text = (make_bundle(tmp_path, classes=names) / "manifest.json").read_text(encoding="utf-8")
    assert len(Manifest.model_validate_json(text).classes) == 21_843
    assert Letterbox(size=(1344, 1344)).input_size == (1344, 1344)


def test_a_bundle_for_every_size_says_what_it_is_at_each(tmp_path: Path) -> None:
    manifest = load_bundle(make_bundle(tmp_path, size=(64, 64), max_batch=8, largest=192)).manifest
    wide = manifest.at((96, 160))
    assert wide.input.shape == (3, 96, 160) and wide.outputs["e1"].shape == (4, 24, 40)
    assert wide.outputs["pooled"] == manifest.outputs["pooled"]
    assert (wide.preprocessing.crop, wide.preprocessing.resize) == ((96, 160), (109, 182))  # type: ignore[union-attr]
    assert wide.input.max_batch == 2 and manifest.at((32, 32)).input.max_batch == 8  # as many pixels at most
    assert manifest.at((64, 64)) is manifest and manifest.open_shape(manifest.outputs["e1"]) == (4, -1, -1)
    for size in ((48, 64), (64, 224), (0, 32)):
        with pytest.raises(ConvMAEError, match="takes heights and widths of multiples of 32 from 32 to 192; got"):
            manifest.at(size)
    alone = load_bundle(make_bundle(tmp_path / "alone")).manifest
    with pytest.raises(ConvMAEError, match="of 64 x 64 alone; export it with dynamic sizes to have others; got 96"):
        alone.at((96, 96))


@pytest.mark.parametrize("sides", [{"largest": 100}, {"smallest": 96, "largest": 64}, {"smallest": 96, "largest": 128}])
def test_a_range_of_sides_that_cannot_be_is_refused(sides: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        InputSpec(shape=(3, 64, 64), sides=SideRange.model_validate(sides), max_batch=1)
