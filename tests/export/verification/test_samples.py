"""The photos and clips that a graph is tried on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.clips import read_clips
from export.verification.samples import (
    data_of_run,
    made_clips,
    made_photos,
    read_photos,
    read_videos,
    verification_clips,
    verification_photos,
)
from tests.video_folders import make_motion_folder

SPEC = standard_clips((32, 64), frames=4, stride=1)


def save_photos(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (index, 0, 0)).save(folder / name)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_motion_folder(tmp_path_factory.mktemp("videos"), train=1, val=2)


def test_made_clips_move_and_differ() -> None:
    first, second = made_clips(SPEC, 2)
    assert first.shape == (3, 4, 32, 64) and first.dtype == np.float32
    assert not np.array_equal(first, second)
    for clip in (first, second):
        assert all(np.abs(clip[:, t] - clip[:, t + 1]).mean() > 0.1 for t in range(3))
        assert clip.std() > 0.3


def test_clips_are_those_that_the_runtime_makes_of_the_videos(videos: Path) -> None:
    files = sorted(videos.rglob("*.mp4"))
    assert len(files) == 6
    for clip, path in zip(read_videos(videos, SPEC, 2), (files[0], files[3]), strict=True):
        assert np.array_equal(clip, read_clips(path, SPEC)[0])


def test_videos_of_the_checkpoint_s_own_run_are_the_default(videos: Path, tmp_path: Path) -> None:
    assert verification_clips(SPEC, None, tmp_path, 2).name == "made clips"
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": str(videos)}}))
    found = verification_clips(SPEC, None, tmp_path, 8)
    assert (found.name, len(found.images)) == ("videos", 4)
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": str(tmp_path / "gone")}}))
    assert verification_clips(SPEC, None, tmp_path, 2).name == "made clips"


def test_videos_of_a_list_are_found_too(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(videos / "val")
    lines = [f"clips/{path.relative_to(videos / 'val')},0" for path in sorted((videos / "val").rglob("*.mp4"))]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": str(tmp_path)}}))
    assert len(verification_clips(SPEC, None, tmp_path, 3).images) == 3


def test_a_list_of_a_run_that_leads_out_of_its_folder_is_not_followed(videos: Path, tmp_path: Path) -> None:
    path = sorted((videos / "val").rglob("*.mp4"))[0]
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": str(data)}}))
    for name in (str(path), f"../{path.name}"):
        (data / "val.csv").write_text(f"{name},0\n")
        assert verification_clips(SPEC, None, tmp_path, 3).name == "made clips"


def test_a_folder_without_videos_is_refused_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConvMAEError, match="must be a folder of videos; found nothing"):
        read_videos(tmp_path / "missing", SPEC, 1)
    with pytest.raises(ConvMAEError, match="found none"):
        read_videos(tmp_path, SPEC, 1)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(ConvMAEError, match="no readable video"):
        read_videos(tmp_path, SPEC, 1)
    assert "broken.mp4" in caplog.text


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


@pytest.mark.slow
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
