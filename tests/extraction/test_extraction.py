from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.extraction import extract_features
from convmae_deploy.media.images import ImageError
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.tasks.classification import Classifier
from tests.bundle_factory import features_of, make_bundle, open_as
from tests.media.photo_files import photo


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_as(Classifier, make_bundle(tmp_path_factory.mktemp("bundle")), device="cpu", threads=1)


def photos_in(folder: Path, count: int, *, bad: tuple[int, ...] = ()) -> list[Path]:
    files = [folder / f"{index:02}.png" for index in range(count)]
    for index, file in enumerate(files):
        if index in bad:
            file.write_text("no photo", encoding="utf-8")
        else:
            photo(seed=index).save(file)
    return files


def test_folders_are_searched_at_any_depth_and_sorted_and_files_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.webp", "a/b/d.tiff", "notes.txt", ".hidden.jpg", "z.jpeg/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    first = tmp_path / "notes.txt"
    found = find_photos([first, tmp_path, tmp_path / "missing.jpg"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["notes.txt", "a/b/d.tiff", "a/c.webp", "b.JPG", "z.jpeg/x.png", "missing.jpg"]


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected photos .* found none"):
        find_photos([tmp_path])


def test_missing_files_and_folders_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(ConvMAEError, match="the file cannot be read"):
            read_photo(path)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_files_are_told_and_the_others_keep_their_rows(
    tmp_path: Path, predictor: Classifier, batch_size: int
) -> None:
    files = photos_in(tmp_path, 8, bad=(0, 4, 7))
    told: list[tuple[Path, bool]] = []

    def on_file(path: Path, error: ConvMAEError | None) -> bool:
        told.append((path, error is None))
        return True

    found = extract_features(predictor, files, ("pooled", "e2"), batch_size=batch_size, on_file=on_file)
    good = [files[index] for index in (1, 2, 3, 5, 6)]
    assert found.files == good
    assert told == [(file, file in good) for file in files]
    assert set(found.failures) == {files[0], files[4], files[7]}
    assert all(isinstance(error, ImageError) for error in found.failures.values())
    expected = features_of(predictor, [read_photo(file).image for file in good], ("pooled", "e2"))
    for level, values in expected.items():
        np.testing.assert_allclose(found.features[level], values, rtol=1e-5, atol=1e-5)
        assert found.features[level].flags.c_contiguous


def test_the_work_ends_early_when_it_is_told_to(tmp_path: Path, predictor: Classifier) -> None:
    told = []

    def on_file(path: Path, error: ConvMAEError | None) -> bool:
        told.append(path)
        return error is None

    files = photos_in(tmp_path, 6, bad=(2,))
    found = extract_features(predictor, files, ("pooled",), batch_size=2, on_file=on_file)
    assert told == files[:3]
    assert (found.files, list(found.failures)) == ([], [files[2]])


def test_unknown_levels_empty_batches_and_too_much_memory_are_refused(
    predictor: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConvMAEError, match="got e7"):
        extract_features(predictor, [], ("e7",), batch_size=1)
    with pytest.raises(ConvMAEError, match="batch size must be at least 1; got 0"):
        extract_features(predictor, [], ("e1",), batch_size=0)

    def no_memory(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(ConvMAEError, match=r"features of 1000000 files need 4\.1 GB"):
        extract_features(predictor, [Path("a")] * 1_000_000, ("e1",), batch_size=1)
