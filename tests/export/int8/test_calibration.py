"""Photos to calibrate with, pictures that are none, and the ranges."""

import io
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from convmae_deploy.bundle.manifest import standard_preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.classification import Classifier
from export.graphs.to_onnx import ExportedGraph
from export.int8.calibration import activation_ranges, picture_flaw, read_calibration
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


def test_a_folder_of_noise_or_blank_pictures_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "noise", [noise(120, 90, seed) for seed in range(8)])
    with pytest.raises(ConvMAEError, match=r"real photos; 8 of 8 looked at in .*noise are noise, whose ranges"):
        read_calibration(folder, Classifier, SPEC, 16)
    folder = folder_of(tmp_path / "blank", [Image.new("RGB", (64, 64), (level, 0, 0)) for level in range(8)])
    with pytest.raises(ConvMAEError, match="8 of 8 .* are blank"):
        read_calibration(folder, Classifier, SPEC, 16)


def test_a_few_bad_pictures_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "mixed", [*made_photos(6), noise(120, 90), Image.new("RGB", (64, 64))])
    (folder / "08.png").write_bytes(b"no picture")
    found = read_calibration(folder, Classifier, SPEC, 16)
    assert [path.name for path in found.files] == [f"{index:02}.png" for index in range(6)]
    assert len(caplog.messages) == 3
    assert "06.png is left out of the calibration: it is noise" in caplog.text
    assert "07.png is left out of the calibration: it is blank" in caplog.text


def test_too_few_photos_and_no_folder_are_one_sentence(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "few", made_photos(3))
    with pytest.raises(ConvMAEError, match=r"at least 4 readable photos, and 100 are better; .* has 3"):
        read_calibration(folder, Classifier, SPEC, 16)
    with pytest.raises(ConvMAEError, match="found nothing at"):
        read_calibration(tmp_path / "none", Classifier, SPEC, 16)
    with pytest.raises(ConvMAEError, match="found a file at"):
        read_calibration(folder / "00.png", Classifier, SPEC, 16)


def test_photos_to_compare_with_are_not_those_to_calibrate_with(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", made_photos(12))
    found = read_calibration(folder, Classifier, SPEC, 5, hold_out=True)
    assert (len(found.files), len(found.others)) == (5, 5)
    assert not set(found.files) & set(found.others)
    assert read_calibration(folder, Classifier, SPEC, 5).others == ()


def test_inputs_are_the_manifests_preprocessing_one_at_a_time(tmp_path: Path) -> None:
    pictures = made_photos(4)
    found = read_calibration(folder_of(tmp_path / "photos", pictures), Classifier, SPEC, 4)
    for image, picture in zip(found.inputs(), pictures, strict=True):
        assert np.array_equal(image, Classifier.pixels(picture, SPEC)[None])


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
