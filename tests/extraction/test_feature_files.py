import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.feature_files import encode_npz, encode_safetensors, origin_in_file, write_features
from convmae_deploy.extraction.origin import Origin
from convmae_deploy.extraction.stream import Rows
from tests.extraction.test_origin import origin

NAMES = ["a.jpg", "ordner/ü b.png", 'quote".webp']
RANDOM = np.random.default_rng(0)
FEATURES: dict[str, NDArray[np.float32]] = {
    "pooled": RANDOM.standard_normal((3, 8), dtype=np.float32),
    "e1": RANDOM.standard_normal((3, 4, 5, 6), dtype=np.float32),
}
LEVELS = {
    name: origin().levels["pooled"].model_copy(update={"shape": values.shape[1:]}) for name, values in FEATURES.items()
}
ORIGIN: Origin = origin(levels=LEVELS)


def parts(names: list[str] = NAMES) -> Iterator[Rows]:
    """The features, in two parts."""
    for part in (slice(0, 2), slice(2, 3)):
        features = {name: values[part] for name, values in FEATURES.items()}
        yield Rows(names=names[part], features=features, failures=())


def assert_same(found: dict[str, NDArray[np.float32]]) -> None:
    assert set(found) == set(FEATURES)
    for level, values in FEATURES.items():
        assert found[level].dtype == np.float32 and np.array_equal(found[level], values)


def test_safetensors_come_back_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "features.safetensors"
    assert write_features(path, ORIGIN, parts()) == 3
    assert_same(safetensors.numpy.load_file(path))
    with safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["files"]) == NAMES
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_npz_comes_back_with_its_names(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    write_features(path, ORIGIN, parts())
    with np.load(path, allow_pickle=False) as file:
        content = dict(file)
    assert content.pop("files").tolist() == NAMES
    assert Origin.model_validate_json(str(content.pop("convmae_deploy"))) == ORIGIN
    assert_same(content)


def test_parquet_comes_back_with_its_names_and_shapes(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "features.parquet"
    write_features(path, ORIGIN, parts())
    table = parquet.read_table(path)
    assert table["path"].to_pylist() == NAMES
    found = {}
    for level in FEATURES:
        shape = json.loads(table.schema.field(level).metadata[b"shape"])
        found[level] = np.array(table[level].to_pylist(), dtype=np.float32).reshape(-1, *shape)
    assert_same(found)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
def test_each_format_says_what_its_vectors_were_made_by(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"features{suffix}"
    write_features(path, ORIGIN, parts())
    assert origin_in_file(path) == ORIGIN
    content = path.read_bytes()
    for damaged in (b"something else", b"", content[:100], content[:-100], content[:30] + b"x" * 60 + content[90:]):
        path.write_bytes(damaged)
        assert origin_in_file(path) in (None, ORIGIN)
    path.unlink()
    with pytest.raises(ConvMAEError, match="cannot be read"):
        origin_in_file(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
def test_nothing_is_written_where_there_are_no_rows_or_the_work_ends_early(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"features{suffix}"
    with pytest.raises(ConvMAEError, match=r"none of the files could be read, so .*features.* was not written"):
        write_features(path, ORIGIN, [])

    def broken() -> Iterator[Rows]:
        yield from parts()
        raise KeyError

    with pytest.raises(KeyError):
        write_features(path, ORIGIN, broken())
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_memory_is_one_sentence(tmp_path: Path) -> None:
    def too_large() -> Iterator[Rows]:
        yield from parts()
        raise MemoryError

    with pytest.raises(
        ConvMAEError, match="features of 3 files or more do not fit into memory; write shards to a folder"
    ):
        write_features(tmp_path / "features.npz", ORIGIN, too_large())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_encoded_bytes_are_read_by_the_formats_own_libraries(dtype: type[np.floating]) -> None:
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
    for name in ("a", "ab", "abc"):
        content = encode_safetensors({name: FEATURES["pooled"]})
        assert int.from_bytes(content[:8], "little") % 8 == 0


def test_file_names_that_are_not_utf_8_are_made_readable(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    write_features(path, ORIGIN, parts(["b\udcff.jpg", "c", "d"]))
    with np.load(path) as file:
        assert file["files"].tolist() == ["b\ufffd.jpg", "c", "d"]


def test_other_suffixes_folders_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"\.safetensors, \.npz, \.parquet, or as shards to a folder; got .*\.csv"):
        write_features(tmp_path / "features.csv", ORIGIN, parts())
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConvMAEError, match="is a folder"):
        write_features(tmp_path / "folder.npz", ORIGIN, parts())
    with pytest.raises(ConvMAEError, match="is int64"):
        encode_safetensors({"pooled": np.zeros((1, 2), dtype=np.int64)})
    assert [item.name for item in tmp_path.iterdir()] == ["folder.npz"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConvMAEError, match=r"pip install '\.\[parquet\]'"):
        write_features(tmp_path / "features.parquet", ORIGIN, parts())
