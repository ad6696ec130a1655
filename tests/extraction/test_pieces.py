import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import pieces
from convmae_deploy.extraction.pieces import (
    Names,
    ParquetRows,
    TarMembers,
    count_members,
    item_of,
    parquet_pieces,
)
from convmae_deploy.folders import PassedOver
from tests.extraction.photos import contents, write_parquet, write_tar

SUFFIXES = (".jpg", ".png")
MEMBERS = {"a/0.png": b"zero", "a/0.json": b"{}", "a/1.JPG": b"one", "._2.png": b"no", "2.png": b"two"}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "x.tar", MEMBERS)


def test_names_are_read_where_they_lead() -> None:
    assert contents(Names(("a.jpg", "s3://b/c"))) == [("a.jpg", "a.jpg"), ("s3://b/c", "s3://b/c")]


def test_the_photos_of_a_tar_file_come_in_order_with_their_names(tar: Path) -> None:
    expected = [(f"{tar}/a/0.png", b"zero"), (f"{tar}/a/1.JPG", b"one"), (f"{tar}/2.png", b"two")]
    assert contents(TarMembers(tar=str(tar), suffixes=SUFFIXES)) == expected
    for start, stop in ((0, 2), (1, 2), (2, 3), (1, None)):
        piece = TarMembers(tar=str(tar), suffixes=SUFFIXES, start=start, stop=stop)
        assert contents(piece) == expected[start:stop]


def test_a_tar_file_that_nobody_counted_says_what_it_passes_over(tar: Path) -> None:
    piece = TarMembers(tar=str(tar), suffixes=SUFFIXES)
    again = pickle.loads(pickle.dumps(piece))
    assert len(contents(piece)) == 3 and piece == again and repr(piece) == repr(again)
    assert str(piece.passed_over) == f"1 .json (first: {tar}/a/0.json), 1 hidden (first: {tar}/._2.png)"
    assert not again.passed_over


def test_what_a_tar_file_holds_is_counted_by_its_headers(tar: Path) -> None:
    passed = PassedOver()
    assert count_members(str(tar), SUFFIXES, passed) == 3
    assert str(passed) == f"1 .json (first: {tar}/a/0.json), 1 hidden (first: {tar}/._2.png)"


def test_a_tar_file_that_is_cut_off_ends_with_what_is_wrong(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[: 512 * 4 + 100])  # in the third header
    found = contents(TarMembers(tar=str(tar), suffixes=SUFFIXES))
    assert found[0] == (f"{tar}/a/0.png", b"zero") and len(found) == 2
    assert found[1][0] == str(tar) and "the archive cannot be read on" in found[1][1]
    assert count_members(str(tar), SUFFIXES, PassedOver()) == 2


def test_a_missing_tar_file_is_one_bad_item(tmp_path: Path) -> None:
    name = str(tmp_path / "missing.tar")
    ((found, error),) = contents(TarMembers(tar=name, suffixes=SUFFIXES))
    assert found == name and "cannot be read (No such file or directory)" in error
    assert count_members(name, SUFFIXES, PassedOver()) == 1


def test_rows_of_bytes_are_called_by_their_number(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "x.parquet", {"id": [1, 2, 3, 4, 5], "jpg": [b"0", b"1", None, b"3", b"4"]}, group=2
    )
    first, second = parquet_pieces(str(file), 3, None)
    assert contents(first)[:2] == [(f"{file}/0", b"0"), (f"{file}/1", b"1")]
    assert contents(first)[2][0] == f"{file}/2" and "the row is empty" in contents(first)[2][1]
    assert contents(second) == [(f"{file}/3", b"3"), (f"{file}/4", b"4")]


def test_rows_of_paths_and_of_hugging_faces_images_are_understood(tmp_path: Path) -> None:
    paths = write_parquet(tmp_path / "p.parquet", {"photo": ["a.jpg", "s3://b/c.jpg"]})
    (piece,) = parquet_pieces(str(paths), 10, "photo")
    assert contents(piece) == [("a.jpg", "a.jpg"), ("s3://b/c.jpg", "s3://b/c.jpg")]
    images = [{"bytes": b"x", "path": "0.jpg"}, {"bytes": None, "path": "1.jpg"}]
    (piece,) = parquet_pieces(str(write_parquet(tmp_path / "i.parquet", {"image": images})), 10, None)
    assert contents(piece) == [(f"{tmp_path}/i.parquet/0", b"x"), ("1.jpg", "1.jpg")]


def test_a_parquet_file_without_such_a_column_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    file = str(write_parquet(tmp_path / "x.parquet", {"label": [1], "caption": ["a"]}))
    with pytest.raises(
        ConvMAEError, match=r"called image, .* found of these types 'caption', give its name with --col"
    ):
        parquet_pieces(file, 10, None)
    with pytest.raises(ConvMAEError, match="expected a column 'label' of bytes, paths or images"):
        parquet_pieces(file, 10, "label")
    with pytest.raises(ConvMAEError, match="found of these types none"):
        parquet_pieces(file, 10, "caption", content_only=True)


def test_a_damaged_parquet_file_is_refused_or_each_of_its_rows_is_bad(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", {"jpg": [bytes([index]) * 5000 for index in range(4)]}, group=2)
    content = bytearray(file.read_bytes())
    content[100:2000] = bytes(1900)  # of the first group
    file.write_bytes(content)
    found = contents(ParquetRows(file=str(file), column="jpg", start=0, stop=4))
    assert [name for name, _ in found] == [f"{file}/{row}" for row in range(4)]
    assert all("cannot be read on" in error for _, error in found)
    file.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ConvMAEError, match="is no Parquet file that can be read"):
        parquet_pieces(str(file), 10, None)


def test_a_footer_that_lies_about_rows_is_refused_and_rows_that_do_not_come_are_bad(tmp_path: Path) -> None:
    file = str(write_parquet(tmp_path / "x.parquet", {"jpg": [b"0", b"1"]}))
    found = contents(ParquetRows(file=file, column="jpg", start=1, stop=4))
    assert found[0] == (f"{file}/1", b"1")
    assert found[1:] == [(f"{file}/{row}", "it ends before this row") for row in (2, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "MAX_PIECES", 1)
        with pytest.raises(ConvMAEError, match="says that it has 2 rows, which cannot be"):
            parquet_pieces(file, 1, None)


def test_a_text_that_is_no_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a.jpg", b"\xff.jpg", b"c.jpg"]).view(pyarrow.string())
    file = str(write_parquet(tmp_path / "x.parquet", {"path": texts}))
    first, second, third = contents(ParquetRows(file=file, column="path", start=0, stop=3))
    assert (first, third) == (("a.jpg", "a.jpg"), ("c.jpg", "c.jpg"))
    assert second[0] == f"{file}/1" and "the row cannot be read" in second[1]


def test_a_damaged_end_is_said_once(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[: 512 * 8 + 100])
    counted = count_members(str(tar), SUFFIXES, PassedOver())
    found = [
        item
        for start in range(counted)
        for item in contents(TarMembers(tar=str(tar), suffixes=SUFFIXES, start=start, stop=start + 1))
    ]
    assert [name for name, _ in found].count(str(tar)) == 1


@pytest.mark.parametrize("value", [None, 1.5, np.nan, {"bytes": None, "path": None}])
def test_cells_that_hold_no_file_are_bad_items(value: object) -> None:
    assert "the row is empty" in str(item_of(value, "x/0").content)


def test_cells_that_are_too_large_are_bad_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_PHOTO_BYTES", 3)
    assert item_of(b"123", "x/0").content == b"123"
    assert "4 bytes are too many" in str(item_of(b"1234", "x/0").content)
