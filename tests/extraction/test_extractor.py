import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest

import convmae_deploy
from convmae_deploy import ConvMAEError, FeatureExtractor
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.features import FeaturePredictor
from tests.bundle_factory import make_feature_bundle
from tests.extraction.photos import write_photos

LEVELS = ("pooled", "e4")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_feature_bundle(tmp_path / "bundle")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [str(path) for path in write_photos(tmp_path / "photos", 5, bad=(2,))]


def batches(files: list[str]) -> dict[str, Any]:
    contents = [Path(file).read_bytes() for file in files]
    return {
        "Ray's numpy": {"bytes": np.array(contents, dtype=object), "path": np.array(files, dtype=object)},
        "lists": {"path": files},
        "pandas": pandas.DataFrame({"bytes": contents, "path": files}),
        "batch": pyarrow.record_batch({"bytes": contents, "path": files}),
        "arrow": pyarrow.table({"image": [{"bytes": each, "path": None} for each in contents], "path": files}),
    }


@pytest.mark.parametrize("kind", ["Ray's numpy", "lists", "pandas", "batch", "arrow"])
def test_batches_of_other_libraries_get_a_list_for_each_level_and_keep_their_rows(
    bundle: Path, files: list[str], kind: str
) -> None:
    extractor = pickle.loads(pickle.dumps(FeatureExtractor(str(bundle), levels=LEVELS, batch_size=2, device="cpu")))
    table = extractor(batches(files)[kind])
    assert table.column_names == ["path", *LEVELS, "error"]
    assert table["path"].to_pylist() == files
    assert [error is None for error in table["error"].to_pylist()] == [True, True, False, True, True]
    predictor = open_predictor(bundle, device="cpu")
    assert isinstance(predictor, FeaturePredictor)
    expected = predictor.features([file for index, file in enumerate(files) if index != 2], LEVELS)
    for level in LEVELS:
        kind_of_level = table.schema.field(level).type
        assert pyarrow.types.is_fixed_size_list(kind_of_level)
        assert table[level].is_null().to_pylist() == [False, False, True, False, False]
        found = np.stack(table[level].drop_null().to_numpy())
        np.testing.assert_allclose(found, expected[level].reshape(4, -1), rtol=1e-5, atol=1e-5)


def test_an_extractor_that_was_used_can_be_sent_on(bundle: Path, files: list[str]) -> None:
    extractor = FeatureExtractor(bundle, dtype="f16", device="cpu")
    first = extractor({"path": files})
    assert first.schema.field("pooled").type.value_type == pyarrow.float16()
    assert pickle.loads(pickle.dumps(extractor))({"path": files}).equals(first)


def test_a_batch_of_bad_or_no_rows_has_the_same_columns(bundle: Path, files: list[str]) -> None:
    extractor = FeatureExtractor(bundle, device="cpu")
    for names in ([], [files[2]], [None]):
        table = extractor({"path": names})
        assert table.column_names == ["path", "pooled", "error"]
        assert table["pooled"].null_count == len(names) == table.num_rows


def test_a_batch_without_the_column_is_refused_with_those_that_it_has(bundle: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected the column one of image, .* in a batch; got label, give its name"):
        FeatureExtractor(bundle)({"label": [1]})
    for name in ("error", "pooled"):
        with pytest.raises(ConvMAEError, match=f"must not have a column {name} yet, which would be lost; rename it"):
            FeatureExtractor(bundle, levels="pooled")({"path": ["a"], name: [1]})
    with pytest.raises(ConvMAEError, match="expected the column photo in a batch; got path"):
        FeatureExtractor(bundle, column="photo")({"path": ["a"]})


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Extractor'"):
        _ = convmae_deploy.Extractor
