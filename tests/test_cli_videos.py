"""`convmae` with the bundle of a video model."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.tasks.clips import ClipViews
from convmae_deploy.tasks.video import VideoClassifier
from tests.bundle_factory import make_bundle, make_video_bundle, open_as, options_of
from tests.media.photo_files import photo
from tests.test_cli import convmae
from tests.video_files import make_video


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_video_bundle(tmp_path / "bundle")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of two videos, one of them deeper, and a photo."""
    folder = tmp_path / "videos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.mp4").write_bytes(make_video(frames=12, size=(48, 96)))
    (folder / "deeper" / "a.webm").write_bytes(make_video("webm", frames=8, size=(64, 48)))
    photo().save(folder / "photo.png")
    return folder


def test_a_video_s_classes_are_those_of_the_predictor_with_as_many_views(
    bundle: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, predictor = [videos / "b.mp4", videos / "deeper" / "a.webm"], open_as(VideoClassifier, bundle, device="cpu")
    answers = []
    for flags, views in (
        ((), ClipViews()),
        (("--temporal-views", "5", "--spatial-views", "3"), ClipViews(temporal=5, spatial=3)),
    ):
        assert convmae("predict", bundle, *files, "--top-k", "2", "--json", "--device", "cpu", *flags) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["file"] for line in lines] == [str(file) for file in files]
        for line, file in zip(lines, files, strict=True):
            expected = predictor(file, **options_of(views), top_k=2)
            assert line["predictions"] == [dataclasses.asdict(item) for item in expected]
        answers.append(lines)
    assert answers[0] != answers[1]


def test_the_table_shows_videos_too(
    bundle: Path, videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert convmae("predict", bundle, videos / "b.mp4") == 0
    output = capsys.readouterr().out
    assert "b.mp4" in output and all(label in output for label in ("left", "right", "up"))


def test_a_photo_for_a_video_model_and_a_video_for_a_model_of_photos_are_one_sentence(
    bundle: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convmae("predict", bundle, videos / "photo.png") == 1
    message = capsys.readouterr().err
    assert "photo.png: expected a video, found a still picture (PNG); send a video" in message
    assert message.count("\n") == 1
    assert convmae("predict", make_bundle(tmp_path / "photos"), videos / "b.mp4") == 1
    message = capsys.readouterr().err
    assert re.search(
        "b.mp4: found MP4 or QuickTime video, accepted are JPEG.*; videos are for models of videos", message
    )
    assert message.count("\n") == 1


@pytest.mark.parametrize("views", [1, 2])
def test_features_of_a_folder_are_those_of_its_videos(
    bundle: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], views: int
) -> None:
    (videos / "aa.mp4").write_bytes(b"hello")
    out, predictor = tmp_path / "x.npz", open_as(VideoClassifier, bundle, device="cpu")
    levels = ("pooled", "pooled_frames", "e2") if views == 1 else ("pooled",)
    flags = ("--temporal-views", str(views)) if views > 1 else ()
    assert convmae("features", bundle, videos, "--out", out, "--levels", *levels, *flags, "--device", "cpu") == 0
    captured = capsys.readouterr()
    error, passed = captured.err.splitlines()
    assert passed == f"passed over: 1 .png (first: {videos / 'photo.png'})"
    assert error.startswith(f"error: {videos / 'aa.mp4'}: ")
    assert "2 videos; 1 left out; pooled (2, 8)" in captured.out
    files = [videos / "b.mp4", videos / "deeper" / "a.webm"]
    with np.load(out) as found:
        assert found["files"].tolist() == [str(file) for file in files]
        for row, file in enumerate(files):
            expected = predictor(file, levels=levels, **options_of(ClipViews(temporal=views)))
            for level, values in expected.items():
                np.testing.assert_allclose(found[level][row], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "BUNDLE", "VIDEO", "--threshold", "0.5"], "--threshold says nothing to a video-classification"),
        (["predict", "BUNDLE", "VIDEO", "--out", "x.d"], "--out says nothing to a video-classification model"),
        (["predict", "BUNDLE", "VIDEO", "--top-k", "0"], "--top-k must be at least 1; got 0"),
        (["predict", "BUNDLE", "VIDEO", "--temporal-views", "0"], "views must be at least 1 x 1; got 0 x 1"),
        (["features", "BUNDLE", "EMPTY", "--out", "x.npz"], "expected videos"),
        (
            ["features", "BUNDLE", "VIDEO", "--out", "x.npz", "--levels", "e3", "--spatial-views", "3"],
            "of 1 x 3 views only pooled can be averaged; got e3",
        ),
    ],
)
def test_a_wrong_request_is_one_sentence_with_status_2(
    bundle: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"BUNDLE": bundle, "VIDEO": videos / "b.mp4", "EMPTY": tmp_path / "empty", "x.npz": tmp_path / "x.npz"}
    assert convmae(*[places.get(argument, argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("command", [("predict",), ("features", "--out", "x.npz")])
def test_without_pyav_the_extra_is_named_once(
    bundle: Path,
    videos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    verb, *options = command
    assert convmae(verb, bundle, videos / "b.mp4", videos / "b.mp4", *options) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "pip install '.[video]'" in captured.err


def test_info_says_how_a_video_is_looked_at(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert convmae("info", bundle) == 0
    output = capsys.readouterr().out
    for words in (
        "video-classification",
        "clip, float32 (B, 3, 4, 64, 64)",
        "4 frames, 1 apart, resize to cover 64 x 64, centre crop 64 x 64",
        "(B, 8, 2, 4, 4)",
        "2 frames, 16",
        "pooled_frames",
    ):
        assert words in output
    segments = {"resize": [64, 64], "crop": [64, 64], "frames": 4, "stride": None}
    assert convmae("info", make_video_bundle(tmp_path / "other", preprocessing=segments)) == 0
    assert "4 frames, one of each of 4 equal parts" in capsys.readouterr().out
