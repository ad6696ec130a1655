"""Photos to calibrate with, pictures that are none, and the ranges."""

import io
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.classification import Classifier
from export.graphs.to_onnx import ExportedGraph
from export.int8 import calibration
from export.int8.calibration import activation_ranges, cached_ranges, picture_flaw, read_calibration
from export.verification.divergence import cut
from export.verification.samples import made_photos
from tests.export.conftest import SIZE

SPEC = standard_preprocessing(SIZE)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def folder_of(folder: Path, pictures: list[Image.Image]) -> Path:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index:02}.png")
    return folder


@pytest.mark.parametrize(
    "picture",
    [
        noise(500, 375),
        noise(96, 64),
        noise(32, 32),
        as_jpeg(noise(500, 375), 20),
        noise(2000, 1500).resize((500, 375), Image.Resampling.BICUBIC),
        noise(125, 94).resize((500, 375), Image.Resampling.BICUBIC),
        Image.fromarray(np.random.default_rng(0).normal(128, 8, (375, 500, 3)).clip(0, 255).astype(np.uint8)),
    ],
    ids=["uniform", "small", "tiny", "jpeg", "shrunk", "enlarged", "normal"],
)
def test_noise_is_told_from_photos(picture: Image.Image) -> None:
    assert picture_flaw(picture) == "noise"


def test_blank_pictures_are_told_from_photos() -> None:
    assert picture_flaw(Image.new("RGB", (300, 200), (12, 200, 90))) == "blank"


@pytest.mark.slow
def test_smooth_pictures_with_edges_pass_whatever_their_size() -> None:
    for picture in made_photos(8):
        for side in (48, 160, 500):
            assert picture_flaw(picture.resize((side, side * 3 // 4))) is None


@pytest.mark.skipif("CONVMAE_DATA" not in os.environ, reason="needs photos")
def test_real_photos_pass() -> None:
    folder = Path(os.environ["CONVMAE_DATA"]) / "imagenet_sample" / "images"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    assert len(read_calibration(folder, Classifier, SPEC, 50).files) == 50


def test_pictures_like_noise_or_blank_ones_are_used_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = [*made_photos(2), noise(120, 90), noise(120, 90, 1), Image.new("RGB", (64, 64))]
    folder = folder_of(tmp_path / "mixed", pictures)
    for name in ("05.png", "06.png"):
        (folder / name).write_bytes(b"no picture")
    found = read_calibration(folder, Classifier, SPEC, 16)
    assert [path.name for path in found.files] == [f"{index:02}.png" for index in range(5)]
    assert found.odd == "1 of them blank, 2 of them noise"
    unreadable, blank, noisy = caplog.messages
    assert unreadable.startswith("2 of 7 photos to calibrate with cannot be read and are left out; the first: ")
    assert "05.png" in unreadable
    assert "1 of 5 photos to calibrate with look like blank pictures, such as" in blank and "04.png" in blank
    assert "2 of 5 photos to calibrate with look like noise" in noisy and "they are used" in noisy


def test_few_photos_are_told_and_none_is_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "few", made_photos(1))
    assert len(read_calibration(folder, Classifier, SPEC, 16).files) == 1
    assert "has 1 photos to calibrate with, which say little" in caplog.text
    with pytest.raises(ConvMAEError, match=r"photos that can be read, and 100 are good; .*few has 1 of 1$"):
        read_calibration(folder, Classifier, SPEC, 16, hold_out=True)
    (folder / "00.png").write_bytes(b"no picture")
    with pytest.raises(ConvMAEError, match=r"has 0 of 1; the first: .*00.png"):
        read_calibration(folder, Classifier, SPEC, 16)
    with pytest.raises(ConvMAEError, match="found nothing at"):
        read_calibration(tmp_path / "none", Classifier, SPEC, 16)
    with pytest.raises(ConvMAEError, match="found a file at"):
        read_calibration(folder / "00.png", Classifier, SPEC, 16)


@pytest.mark.slow
def test_photos_to_compare_with_are_not_those_to_calibrate_with(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", made_photos(12))
    found = read_calibration(folder, Classifier, SPEC, 5, hold_out=True)
    assert (len(found.files), len(found.others)) == (5, 5)
    assert not set(found.files) & set(found.others)
    assert read_calibration(folder, Classifier, SPEC, 5).others == ()


@pytest.mark.slow
def test_inputs_are_the_manifests_preprocessing_one_at_a_time(tmp_path: Path) -> None:
    pictures = made_photos(4)
    found = read_calibration(folder_of(tmp_path / "photos", pictures), Classifier, SPEC, 4)
    for image, picture in zip(found.inputs(), pictures, strict=True):
        assert np.array_equal(image, Classifier.pixels(picture, SPEC)[None])


def test_ranges_are_kept_for_the_same_files_and_graph_alone(
    graph: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = folder_of(tmp_path / "photos", made_photos(4)), tmp_path / "cache"
    data = read_calibration(folder, Classifier, SPEC, 4)
    found = cached_ranges(graph.model, ["pooled"], data, cache)
    assert found == activation_ranges(graph.model, ["pooled"], data.inputs(), 4)
    measured: list[int] = []

    def measure(*_: object) -> dict[str, tuple[float, float]]:
        measured.append(1)
        return {"pooled": (0.0, 1.0)}

    monkeypatch.setattr(calibration, "activation_ranges", measure)
    assert cached_ranges(graph.model, ["pooled"], data, cache) == found and not measured
    (kept,) = cache.iterdir()
    kept.write_text("[]")  # a file that is none of ours is made anew
    assert cached_ranges(graph.model, ["pooled"], data, cache) == {"pooled": (0.0, 1.0)}
    made_photos(5)[4].save(folder / "00.png")
    cached_ranges(graph.model, ["pooled"], data, cache)
    assert len(measured) == 2 and len(list(cache.iterdir())) == 2


def test_ranges_are_the_extremes_over_all_inputs(graph: ExportedGraph) -> None:
    images = [Classifier.pixels(photo, SPEC)[None] for photo in made_photos(3)]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    values = ["layer_norm_1", "gelu", "pooled"]
    found = activation_ranges(model, values, images, 3)
    seen = cut(graph.model, {})
    seen.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in values)
    session = onnxruntime.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(values, {"image": image}) for image in images]
    for index, name in enumerate(values):
        entries = np.concatenate([run[index].ravel() for run in runs])
        assert found[name] == pytest.approx((entries.min(), entries.max()), abs=1e-4)
    assert set(found) == set(values)
