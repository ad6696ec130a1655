import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import stores
from convmae_deploy.extraction import stream as streaming
from convmae_deploy.extraction.pieces import Item, Names, Readable
from convmae_deploy.extraction.stores import StoreError
from convmae_deploy.extraction.stream import Failure, FeatureStream, Rows
from convmae_deploy.tasks.base import NO_OPTIONS, ModelOutputError, PredictOptions
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.features import FeaturePredictor
from tests.bundle_factory import make_bundle, open_as
from tests.extraction.photos import encoded, write_photos
from tests.waiting import wait_for

LEVELS = ("pooled", "e2")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_as(Classifier, make_bundle(tmp_path_factory.mktemp("bundle")), device="cpu", threads=1)


class Items:
    """A piece in memory, which counts what was asked of it."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items, self.asked = items, 0

    def items(self) -> Iterator[Item]:
        for item in self._items:
            self.asked += 1
            yield item


def run(predictor: FeaturePredictor, pieces: Sequence[Readable], **options: Any) -> list[tuple[int, Rows | None]]:
    with FeatureStream(predictor, LEVELS, **options) as stream:
        return list(stream.run(enumerate(pieces)))


def rows_of(found: list[tuple[int, Rows | None]], piece: int) -> list[Rows]:
    return [rows for number, rows in found if number == piece and rows is not None]


@pytest.mark.parametrize("batch_size", [1, 3, 100, None])
def test_rows_are_those_of_each_photo_in_order_and_bad_ones_are_kept_apart(
    tmp_path: Path, predictor: Classifier, batch_size: int | None
) -> None:
    files = write_photos(tmp_path, 8, bad=(0, 4, 7))
    items = [
        Item(name=file.name, content=file.read_bytes() if index % 2 else str(file)) for index, file in enumerate(files)
    ]
    found = run(predictor, [Items(items)], batch_size=batch_size)
    assert found[-1] == (0, None)
    parts = rows_of(found, 0)
    good = [files[index] for index in (1, 2, 3, 5, 6)]
    assert [name for part in parts for name in part.names] == [file.name for file in good]
    failures = [failure for part in parts for failure in part.failures]
    assert [failure.name for failure in failures] == [files[index].name for index in (0, 4, 7)]
    assert all("expected an image file, found text" in failure.error for failure in failures)
    expected = predictor.features(good, LEVELS)
    for level in LEVELS:
        values = np.concatenate([part.features[level] for part in parts if part.names])
        np.testing.assert_allclose(values, expected[level], rtol=1e-5, atol=1e-5)


def test_no_batch_holds_rows_of_two_pieces_and_each_piece_has_an_end(tmp_path: Path, predictor: Classifier) -> None:
    names = tuple(map(str, write_photos(tmp_path, 5)))
    found = run(predictor, [Names(names[:3]), Names(()), Names(names[3:])], batch_size=2)
    shape = [(number, None if rows is None else len(rows.names)) for number, rows in found]
    assert shape == [(0, 2), (0, 1), (0, None), (1, None), (2, 2), (2, None)]


def test_many_bad_files_do_not_pile_up(predictor: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_MAX_FAILURES", 3)
    items = [Item(name=str(index), content=ConvMAEError("bad")) for index in range(7)]
    found = run(predictor, [Items(items)])
    assert [len(part.failures) for part in rows_of(found, 0)] == [3, 3, 1]


def test_f16_is_the_rounded_f32_and_what_does_not_fit_is_refused(tmp_path: Path, predictor: Classifier) -> None:
    names = Names(tuple(map(str, write_photos(tmp_path, 2))))
    wide, narrow = (rows_of(run(predictor, [names], dtype=dtype), 0)[0] for dtype in ("f32", "f16"))
    for level in LEVELS:
        assert narrow.features[level].dtype == np.float16
        assert np.array_equal(narrow.features[level], wide.features[level].astype(np.float16))

    class Loud(Classifier):
        def interpret(self, *arguments: Any) -> list[Any]:
            return [{level: values * 1e6 for level, values in each.items()} for each in super().interpret(*arguments)]

    (rows,) = rows_of(run(Loud(predictor.bundle, predictor.backend), [names], dtype="f16"), 0)
    assert not rows.names and [failure.name for failure in rows.failures] == list(names.names)
    assert "does not fit into f16; ask for f32" in rows.failures[0].error


def test_a_row_whose_numbers_are_no_good_spoils_no_other(tmp_path: Path, predictor: Classifier) -> None:
    files = write_photos(tmp_path, 5)
    expected = rows_of(run(predictor, [Names(tuple(map(str, files)))]), 0)[0]
    spoilt = predictor.prepare(files[2]).rows.sum()

    class Spoiling(Classifier):
        def interpret(self, prepared: Any, *others: Any) -> list[Any]:
            if any(each.rows.sum() == spoilt for each in prepared):
                raise ModelOutputError("output 'pooled' holds values that are not finite")
            return super().interpret(prepared, *others)

    (rows,) = rows_of(run(Spoiling(predictor.bundle, predictor.backend), [Names(tuple(map(str, files)))]), 0)
    assert list(rows.names) == [str(files[index]) for index in (0, 1, 3, 4)]
    assert rows.failures == [Failure(str(files[2]), "output 'pooled' holds values that are not finite")]
    np.testing.assert_allclose(rows.features["e2"], np.delete(expected.features["e2"], 2, axis=0), rtol=1e-5, atol=1e-5)


def test_several_batches_side_by_side_come_in_order(tmp_path: Path, predictor: Classifier) -> None:
    names = tuple(map(str, write_photos(tmp_path, 9)))
    found = run(predictor, [Names(names[:7]), Names(names[7:])], batch_size=2, lanes=3, readers=2)
    assert [name for _, rows in found if rows is not None for name in rows.names] == list(names)
    assert [number for number, rows in found if rows is None] == [0, 1]


def test_a_store_that_does_not_answer_ends_the_work(predictor: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, limit: int) -> bytes:
        raise StoreError(f"{name} cannot be reached")

    monkeypatch.setattr(stores, "read", fails)
    with pytest.raises(StoreError, match="s3://b/0 cannot be reached"):
        run(predictor, [Names(("s3://b/0",))])

    class Broken:
        def items(self) -> Iterator[Item]:
            raise StoreError("the archive cannot be reached")

    with pytest.raises(StoreError, match="the archive cannot be reached"):
        run(predictor, [Broken()])


def test_what_is_read_ahead_has_a_bound_and_who_stops_early_leaves_no_thread(predictor: Classifier) -> None:
    photo, ahead, before = encoded(0), 0, set(threading.enumerate())
    piece = Items([Item(name=str(index), content=photo) for index in range(300)])
    with FeatureStream(predictor, LEVELS, batch_size=4) as stream:
        rows = stream.run([(0, piece)])
        for done in range(5):
            next(rows)
            ahead = max(ahead, piece.asked - 4 * (done + 1))
        rows.close()  # type: ignore[attr-defined]
    # one batch that runs, one that is put together, what waits in the queue and one on either side of it
    assert ahead <= 4 + 4 + stream._ahead + 2 < 100
    assert set(threading.enumerate()) <= before


def test_contents_that_wait_have_a_bound_in_bytes_and_a_larger_one_goes_alone() -> None:
    waiting = streaming._Bytes(10)
    waiting.take(100)
    entered = threading.Event()

    def take() -> None:
        waiting.take(1)
        entered.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not entered.is_set()
    waiting.give_back(100)
    wait_for(entered)
    thread.join()


def test_unknown_levels_options_and_empty_batches_are_refused(predictor: Classifier) -> None:
    with pytest.raises(ConvMAEError, match="got e7"):
        FeatureStream(predictor, ("e7",))
    with pytest.raises(ConvMAEError, match="batch size must be at least 1; got 0"):
        FeatureStream(predictor, LEVELS, batch_size=0)
    with pytest.raises(ConvMAEError, match="temporal_views says nothing"):
        FeatureStream(predictor, LEVELS, options=PredictOptions(temporal_views=2))
    assert NO_OPTIONS.levels is None
