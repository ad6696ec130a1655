"""The clips that a graph is tried on."""

import json
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.bundle.manifest import standard_clips
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.clips import read_clips
from export.verification.inputs import Samples, constant_images, verification_batches
from export.verification.video_inputs import made_clips, read_videos, verification_clips
from tests.video_folders import make_motion_folder

SPEC = standard_clips((32, 64), frames=4, stride=1)


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


def test_batches_of_clips_have_a_time_axis() -> None:
    batches = verification_batches(SPEC, Samples("made clips", made_clips(SPEC, 2)), 3)
    assert {len(batch.images) for batch in batches} == {1, 2, 3}
    assert {batch.images.shape[1:] for batch in batches} == {(3, 4, 32, 64)}
    (two,) = (batch for batch in batches if batch.name == "made clips batch 2")
    assert np.array_equal(two.images, np.stack(made_clips(SPEC, 2)))
    white = constant_images(SPEC)["white"]
    assert np.ptp(white, axis=(1, 2, 3)).max() == 0 and white[2].max() == pytest.approx((1 - 0.406) / 0.225)


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
