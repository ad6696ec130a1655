"""Features of inputs of other shapes than the bundle's, and of photos in tiles."""

from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from convmae_deploy import FeatureExtractor
from convmae_deploy.extraction.command import read_origin
from convmae_deploy.extraction.origin import compare
from convmae_deploy.extraction.tiles import Tiles
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.preprocess import normalise
from tests.bundle_factory import make_bundle, open_as
from tests.media.photo_files import photo
from tests.test_cli import convmae


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", largest=192)


def features(*arguments: str | Path) -> int:
    return convmae("features", *arguments, "--device", "cpu", "--threads", "1")


def test_a_size_crops_photos_to_its_shape(tmp_path: Path, bundle: Path) -> None:
    picture = photo(width=300, height=150)
    picture.save(tmp_path / "a.png")
    out = tmp_path / "out.safetensors"
    assert features(bundle, tmp_path / "a.png", "--out", out, "--levels", "pooled", "e1", "--size", "96x192") == 0
    found, predictor = load_file(out), open_as(Classifier, bundle, device="cpu", threads=1)
    assert found["e1"].shape == (1, 4, 24, 48)
    expected = predictor.at((96, 192)).features([picture], ["pooled", "e1"])
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    extractor = FeatureExtractor(bundle, levels=["pooled", "e1"], size=(96, 192), device="cpu", threads=1)
    table = extractor({"path": [str(tmp_path / "a.png")]})
    assert all(np.array_equal(np.ravel(table[name][0].as_py()), np.ravel(found[name])) for name in expected)
    assert np.abs(expected["pooled"] - predictor.features([picture])["pooled"]).max() > 1e-3
    assert not compare(read_origin(str(out)), read_origin(str(bundle)))[0].together  # they are other vectors


def test_each_tile_is_a_row_with_its_place_and_the_features_of_its_pixels(tmp_path: Path, bundle: Path) -> None:
    large, small = photo(seed=1, width=230, height=100), photo(seed=2, width=40, height=50)
    (tmp_path / "photos").mkdir()
    large.save(tmp_path / "photos" / "a.png")
    small.save(tmp_path / "photos" / "b.png")
    tiling = ("--tile", "96", "--overlap", "32", "--levels", "pooled", "e4", "--batch-size", "2")
    assert features(bundle, tmp_path / "photos", "--out", tmp_path / "shards", *tiling) == 0
    table = parquet.read_table(tmp_path / "shards")
    places = [(Path(row["path"]).name, row["x"], row["y"]) for row in table.to_pylist()]
    corners = [(left, top) for top in (0, 4) for left in (0, 64, 128, 134)]
    assert places == [*(("a.png", *corner) for corner in corners), ("b.png", 0, 0)]
    predictor = open_as(Classifier, bundle, device="cpu", threads=1).at((96, 96))
    spec = predictor.manifest.preprocessing
    padded = np.zeros((1, 3, 96, 96), np.float32)
    padded[0, :, :50, :40] = normalise(np.asarray(small), spec.mean, spec.std)
    cut = [normalise(np.asarray(large.crop((x, y, x + 96, y + 96))), spec.mean, spec.std)[None] for x, y in corners]
    expected = predictor.run(np.concatenate([*cut, padded]), ("pooled", "e4"))
    for name, values in expected.items():
        found = np.array(table[name].to_pylist(), np.float32).reshape(values.shape)
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5)
    assert features(bundle, tmp_path / "photos", "--out", tmp_path / "one.npz", *tiling) == 0
    with np.load(tmp_path / "one.npz") as arrays:
        assert list(zip(arrays["x"].tolist(), arrays["y"].tolist(), strict=True)) == [*corners, (0, 0)]


def test_tiles_cover_every_pixel_and_overlap_as_asked() -> None:
    tiles = Tiles.of(64, None)
    assert tiles.overlap == 8
    covered = np.zeros((64, 201), int)
    for left, top in tiles.places(201, 64):
        covered[top : top + 64, left : left + 64] += 1
    assert covered.min() == 1 and tiles.places(201, 64)[:2] == [(0, 0), (56, 0)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--size", "square"), "a size must be HEIGHTxWIDTH in pixels, such as 384x640; got 'square'"),
        (("--size", "100x96"), "takes heights and widths of multiples of 32 from 32 to 192; got 100 x 96"),
        (("--tile", "256"), "takes heights and widths of multiples of 32 from 32 to 192; got 256 x 256"),
        (
            ("--tile", "64", "--overlap", "64"),
            "overlap by 0 pixels or more, and less than their side; got 64 of 64",
        ),
        (("--overlap", "8"), "--overlap is of tiles; give --tile, or leave it out"),
        (("--tile", "64", "--size", "64x64"), "so that a size says nothing"),
    ],
)
def test_what_makes_no_input_is_one_sentence(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    photo().save(tmp_path / "a.png")
    assert features(bundle, tmp_path / "a.png", "--out", tmp_path / "out.npz", *arguments) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out.npz").exists()
