import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.feature_files import encode_npz, encode_safetensors, write_features

NAMES = ["a.jpg", "ordner/ü b.png", 'quote".webp']
RANDOM = np.random.default_rng(0)
FEATURES: dict[str, NDArray[np.float32]] = {
    "pooled": RANDOM.standard_normal((3, 8), dtype=np.float32),
    "e1": RANDOM.standard_normal((3, 4, 5, 6), dtype=np.float32),
}


def assert_same(found: dict[str, NDArray[np.float32]]) -> None:
    assert set(found) == set(FEATURES)
    for level, values in FEATURES.items():
        assert found[level].dtype == np.float32 and np.array_equal(found[level], values)


def test_safetensors_come_back_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "features.safetensors"
    write_features(path, NAMES, FEATURES)
    assert_same(safetensors.numpy.load_file(path))
    with safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["files"]) == NAMES
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_npz_comes_back_with_its_names(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    write_features(path, NAMES, FEATURES)
    with np.load(path, allow_pickle=False) as file:
        content = dict(file)
    assert content.pop("files").tolist() == NAMES
    assert_same(content)


def test_parquet_comes_back_with_its_names_and_shapes(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "features.parquet"
    write_features(path, NAMES, FEATURES)
    table = parquet.read_table(path)
    assert table["file"].to_pylist() == NAMES
    found = {}
    for level in FEATURES:
        shape = json.loads(table.schema.field(level).metadata[b"shape"])
        found[level] = np.array(table[level].to_pylist(), dtype=np.float32).reshape(-1, *shape)
    assert_same(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_encoded_bytes_are_read_by_the_formats_own_libraries(dtype: type[np.floating]) -> None:
    import io

    features = {level: values.astype(dtype) for level, values in FEATURES.items()}
    features["odd"] = np.ones((1, 3), dtype=dtype)[:, ::2]
    loaded = safetensors.numpy.load(encode_safetensors(features))
    with np.load(io.BytesIO(encode_npz(features)), allow_pickle=False) as file:
        zipped = dict(file)
    for found in (loaded, zipped):
        assert set(found) == set(features)
        for level, values in features.items():
            assert found[level].dtype == dtype and np.array_equal(found[level], values)


def test_the_numbers_of_a_safetensors_file_are_aligned() -> None:
    content = encode_safetensors(FEATURES, {"x": "1"})
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_file_names_that_are_not_utf_8_are_made_readable(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    write_features(path, ["b\udcff.jpg"], {"pooled": np.zeros((1, 2), dtype=np.float32)})
    with np.load(path) as file:
        assert file["files"].tolist() == ["b\ufffd.jpg"]


def test_other_suffixes_folders_and_unequal_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"\.safetensors, \.npz, \.parquet; got .*features\.csv"):
        write_features(tmp_path / "features.csv", NAMES, FEATURES)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConvMAEError, match="is a folder"):
        write_features(tmp_path / "folder.npz", NAMES, FEATURES)
    with pytest.raises(ConvMAEError, match="one row for each of 2 names; got 3"):
        write_features(tmp_path / "features.npz", NAMES[:2], FEATURES)
    with pytest.raises(ConvMAEError, match="is int64"):
        write_features(tmp_path / "features.safetensors", ["a"], {"pooled": np.zeros((1, 2), dtype=np.int64)})
    assert [item.name for item in tmp_path.iterdir()] == ["folder.npz"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConvMAEError, match=r"pip install '\.\[parquet\]'"):
        write_features(tmp_path / "features.parquet", NAMES, FEATURES)
