import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.bundle.manifest import Letterbox, Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.preprocess import preprocess
from export.verification.inputs import (
    Samples,
    constant_images,
    data_of_run,
    made_photos,
    read_photos,
    verification_batches,
    verification_photos,
)

SPEC = Preprocessing(resize=(73, 73), crop=(64, 64))


def save_photos(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (index, 0, 0)).save(folder / name)


def test_batches_cover_every_kind_at_one_two_and_the_largest_and_sizes_in_between() -> None:
    batches = verification_batches(SPEC, Samples("photos", made_photos(2)), 32)
    sizes = {kind: [len(b.images) for b in batches if b.name.startswith(kind)] for kind in ("random", "photos")}
    assert sizes == {"random": [1, 2, 32, 3, 17], "photos": [1, 2, 32]}
    constants = [len(b.images) for b in batches if not b.name.startswith(("random", "photos"))]
    assert constants == [1, 1, 1, 1, 2, 2, 32]
    assert len({b.name for b in batches}) == len(batches)
    assert all(b.images.shape[1:] == (3, 64, 64) and b.images.dtype == np.float32 for b in batches)


@pytest.mark.parametrize(("largest", "sizes"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (4, {1, 2, 3, 4})])
def test_no_batch_is_larger_than_the_largest(largest: int, sizes: set[int]) -> None:
    assert {
        len(batch.images) for batch in verification_batches(SPEC, Samples("photos", made_photos(1)), largest)
    } == sizes


def test_batches_are_the_same_every_time() -> None:
    first, second = (verification_batches(SPEC, Samples("photos", made_photos(2)), 2) for _ in range(2))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_photo_batches_hold_what_the_runtime_makes_of_the_photos() -> None:
    photos = made_photos(2)
    (batch,) = (b for b in verification_batches(SPEC, Samples("photos", photos), 2) if b.name == "photos batch 2")
    assert np.array_equal(batch.images, np.stack([preprocess(photo, SPEC) for photo in photos]))


def test_black_and_white_are_the_extremes_that_a_photo_can_have() -> None:
    constants = constant_images(SPEC)
    for name, colour in (("black", (0, 0, 0)), ("white", (255, 255, 255))):
        np.testing.assert_allclose(constants[name], preprocess(Image.new("RGB", (90, 80), colour), SPEC), rtol=1e-6)
    assert (constants["zeros"] == 0).all() and (constants["ones"] == 1).all()


def test_made_photos_differ_and_use_the_whole_range() -> None:
    photos = [np.asarray(photo) for photo in made_photos(4)]
    assert len({photo.shape for photo in photos}) > 1
    assert all(photo.std() > 20 for photo in photos)
    assert not np.array_equal(photos[0][:160, :240], photos[2][:160, :240])


def test_photos_are_spread_over_the_folder_in_order_of_their_paths(tmp_path: Path) -> None:
    save_photos(tmp_path, "a/0.png", "a/1.png", "b/2.png", "b/3.png", "c/4.png", "c/5.png")
    reds = [photo.getpixel((0, 0)) for photo in read_photos(tmp_path, 3)]
    assert reds == [(0, 0, 0), (2, 0, 0), (4, 0, 0)]
    assert len(read_photos(tmp_path, 50)) == 6


def test_photos_of_the_checkpoints_own_run_are_the_default(tmp_path: Path) -> None:
    save_photos(tmp_path / "data", "val/a/0.png", "train/a/1.png")
    run = tmp_path / "run"
    run.mkdir()
    assert verification_photos(None, run, 2).name == "made pictures"
    (run / "run.json").write_text(json.dumps({"config": {"data": str(tmp_path / "data")}}))
    found = verification_photos(None, run, 2)
    assert (found.name, len(found.images)) == ("photos", 1)
    assert verification_photos(tmp_path / "data", run, 4).name == "photos"


def make_run(run: Path, record: object) -> Path:
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return run


def test_which_photos_are_used_without_having_been_named_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photos(tmp_path / "data", "val/a/0.png")
    run = make_run(tmp_path / "run", {"config": {"data": str(tmp_path / "data")}})
    verification_photos(tmp_path / "data", run, 2)
    assert capsys.readouterr().err == ""
    verification_photos(None, run, 2)
    told = f"Trying the graph on photos of {tmp_path}/data/val, which {run}/run.json names; --data takes others."
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"config": 3},
        {"config": {"data": None}},
        {"config": {"data": ["a"]}},
        {"config": {"data": "pipe:touch pwned #"}},
        {"config": {"data": "https://host/{000..146}.tar"}},
        {"config": {"data": "data-{0..9999999999}.tar"}},
        {"config": {"data": "//host/share"}},
        {"config": {"data": "\\\\host\\share"}},
        {"config": {"data": "a\0b"}},
        {"config": {"data": "a" * 5000}},
    ],
)
def test_a_run_that_names_no_folder_of_this_machine_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: object
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", record)
    assert data_of_run(run) is None
    assert verification_photos(None, run, 2).name == "made pictures"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_share_of_another_machine_is_not_even_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", {"config": {"data": "//host/share"}})
    monkeypatch.setattr("os.path.isdir", lambda path: pytest.fail(f"looked for {path}"))
    assert data_of_run(run) is None


@pytest.mark.parametrize("record", ['{"config": {"da', "[" * 100_000, '{"config": NaN}'])
def test_a_damaged_record_of_a_run_is_one_sentence(tmp_path: Path, record: str) -> None:
    with pytest.raises(ConvMAEError, match=r"run.json is not valid JSON .*, or give --data FOLDER"):
        verification_photos(None, make_run(tmp_path / "run", record), 2)


def test_photos_of_a_run_that_cannot_be_read_are_replaced_and_nobody_is_blamed(tmp_path: Path) -> None:
    (tmp_path / "data" / "val").mkdir(parents=True)
    run = make_run(tmp_path / "run", {"config": {"data": str(tmp_path / "data")}})
    assert verification_photos(None, run, 2).name == "made pictures"
    (tmp_path / "data" / "val" / "a.png").write_bytes(b"not a photo")
    assert verification_photos(None, run, 2).name == "made pictures"


def test_a_photo_that_does_not_decode_is_skipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_photos(tmp_path, "b.png")
    (tmp_path / "a.jpg").write_bytes(b"not a photo")
    assert len(read_photos(tmp_path, 5)) == 1
    assert "a.jpg" in caplog.text


def test_a_folder_without_photos_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ConvMAEError, match="found none"):
        read_photos(tmp_path, 5)
    with pytest.raises(ConvMAEError, match="must be a folder of photos; found nothing"):
        read_photos(tmp_path / "missing", 5)


def test_a_detector_is_tried_on_more_photos_than_the_largest_batch_takes() -> None:
    batches = verification_batches(Letterbox(size=(32, 64)), Samples("photos", made_photos(10)), 3)
    sizes = {batch.name: len(batch.images) for batch in batches if batch.name.startswith("photos")}
    assert sizes == {
        "photos batch 1": 1,
        "photos batch 2": 2,
        "photos batch 3": 3,
        "photos 4 to 6": 3,
        "photos 7 to 8": 2,
    }
    pixels = np.concatenate([batch.images for batch in batches if " to " in batch.name])
    assert len(np.unique(pixels.reshape(5, -1), axis=0)) == 5
