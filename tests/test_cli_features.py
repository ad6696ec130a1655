"""`convmae features` into shards, and `convmae compatible`: as a user runs them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from tests.bundle_factory import make_bundle, make_feature_bundle, make_video_feature_bundle
from tests.extraction.conftest import store, store_server  # noqa: F401
from tests.extraction.photos import encoded, write_photos, write_tar
from tests.test_cli import convmae
from tests.video_files import make_video

ROWS = ("--shard-rows", "3", "--device", "cpu", "--threads", "1")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_feature_bundle(tmp_path / "bundle")


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    files = write_photos(tmp_path / "photos", 8, bad=(4,))
    members = {file.name: file.read_bytes() for file in files[:5]}
    return tmp_path / "photos", write_tar(tmp_path / "x.tar", members)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_shards_are_written_and_kept(
    bundle: Path, sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources[0] / "x.heic").touch()
    out = tmp_path / "out"
    arguments = ("features", bundle, *sources, "--out", out, "--levels", "pooled", "e3", "--dtype", "f16", *ROWS)
    assert convmae(*arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}: 5 shards written; 11 photos, 2 left out\n"
    lines = shown.err.splitlines()
    assert lines[0] == f"passed over: 1 .heic (first: {sources[0]}/x.heic)"
    assert lines[2] == f"error: {sources[0]}/04.png: expected an image file, found text; send the bytes of a photo"
    assert lines[1].startswith("features-00000-of-00005.parquet: 3 photos; ")
    table = parquet.read_table(out)
    names = [f"{sources[0]}/{index:02}.png" for index in (0, 1, 2, 3, 5, 6, 7)]
    assert table["path"].to_pylist() == [*names, *(f"{sources[1]}/{index:02}.png" for index in range(4))]
    before = content(out)
    assert convmae(*arguments) == 0
    assert capsys.readouterr().out == f"{out}: 0 shards written, 5 were there already; 0 photos\n"
    (out / "features-00001-of-00005.parquet").unlink()
    assert convmae(*arguments) == 0
    assert "1 shard written, 4 were there already; 2 photos, 1 left out" in capsys.readouterr().out
    assert content(out) == before
    assert convmae(*arguments[:-1], "2") == 0, "threads do not make another job"
    capsys.readouterr()
    assert convmae("features", bundle, *sources, "--out", out, *ROWS) == 2
    assert "holds another job's features (levels pooled e3, now pooled; dtype f16, now f32)" in capsys.readouterr().err


def test_processes_that_share_a_job_write_what_one_writes(
    bundle: Path, sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convmae("features", bundle, *sources, "--out", tmp_path / "one", *ROWS) == 0
    for index in (1, 0):
        part = ("--shard-index", f"{index}/2")
        assert convmae("features", bundle, *sources, "--out", tmp_path / "two", *part, *ROWS) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert "3 shards written" in capsys.readouterr().out.splitlines()[-1]


def kill_at(command: list[str], listed: Callable[[], set[str]], reached: Callable[[set[str]], bool]) -> None:
    """Runs a command and kills it as soon as the files in its folder are in a state; it may end first."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if reached(listed()):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()


@pytest.mark.slow
def test_a_job_that_is_killed_five_times_ends_as_one_that_was_not(
    bundle: Path, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = [sys.executable, "-m", "convmae_deploy.cli", "features", str(bundle), *map(str, sources)]
    assert convmae("features", bundle, *sources, "--out", whole, *ROWS) == 0
    shards = "features-0000{}-of-00005.parquet"
    states: list[Callable[[set[str]], bool]] = [
        lambda names: any("_job.json" in name for name in names),
        lambda names: any(name.endswith(".tmp") for name in names - {"_job.json"}),
        lambda names: shards.format(0) in names,
        lambda names: "_failures-00001-of-00005.jsonl" in names,
        lambda names: shards.format(3) in names,
    ]
    for state in states:
        kill_at([*command, "--out", str(out), *ROWS], lambda: set(os.listdir(out)) if out.is_dir() else set(), state)
    assert convmae("features", bundle, *sources, "--out", out, *ROWS) == 0
    assert content(out) == content(whole)


def test_objects_are_written_as_files_are(
    bundle: Path,
    sources: tuple[Path, Path],
    tmp_path: Path,
    store: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for file in sorted(sources[0].iterdir()):
        store.put_file(str(file), f"bucket/photos/{file.name}")
    store.put_file(str(write_tar(tmp_path / "y.tar", {"0.heic": b"", "0.png": encoded(0)})), "bucket/photos/y.tar")
    command = ("features", bundle, "s3://bucket/photos/", "--out")
    assert convmae(*command, tmp_path / "here", *ROWS) == 0
    sent: list[str] = []
    put = store.put_file

    def fails_at_the_second_shard(local: str, remote: str, **options: Any) -> None:
        if remote.endswith("00001-of-00004.parquet") and not sent:
            sent.append(remote)
            raise ConnectionResetError("the line is cut")
        put(local, remote, **options)

    monkeypatch.setattr(store, "put_file", fails_at_the_second_shard)
    assert convmae(*command, "s3://bucket/out", *ROWS) == 2
    assert "cannot be reached ('the line is cut')" in capsys.readouterr().err
    names = {name.rsplit("/", 1)[1] for name in store.ls("bucket/out", detail=False)}
    assert "features-00001-of-00004.parquet" not in names and "features-00000-of-00004.parquet" in names
    assert convmae(*command, "s3://bucket/out/", *ROWS) == 0
    shown = capsys.readouterr()
    assert "3 shards written, 1 were there already" in shown.out
    assert "passed over: 1 .heic (first: s3://bucket/photos/y.tar/0.heic)" in shown.err
    found = {name.rsplit("/", 1)[1]: store.cat_file(name) for name in store.ls("bucket/out", detail=False)}
    assert found == content(tmp_path / "here")


@pytest.mark.slow
def test_a_job_that_writes_objects_and_is_killed_ends_as_one_that_was_not(
    bundle: Path,
    sources: tuple[Path, Path],
    tmp_path: Path,
    store: Any,  # noqa: F811
) -> None:
    command = [sys.executable, "-m", "convmae_deploy.cli", "features", str(bundle), *map(str, sources), *ROWS, "--out"]

    def listed() -> set[str]:
        found = store.find("bucket/out")
        return {name.rsplit("/", 1)[1] for name in found}

    shards = "features-0000{}-of-00005.parquet"
    states: list[Callable[[set[str]], bool]] = [
        lambda names: "_job.json" in names,
        lambda names: "_failures-00001-of-00005.jsonl" in names,
        lambda names: shards.format(2) in names,
    ]
    for state in states:
        kill_at([*command, "s3://bucket/out"], listed, state)
        assert all(name.endswith((".json", ".jsonl", ".parquet")) for name in listed())
    assert convmae("features", bundle, *sources, *ROWS, "--out", "s3://bucket/out") == 0
    assert convmae("features", bundle, *sources, *ROWS, "--out", tmp_path / "here") == 0
    assert {name: store.cat_file(f"bucket/out/{name}") for name in listed()} == content(tmp_path / "here")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "x.npz", "--shard-rows", "3"), "shards and Ray need a folder to write to; x.npz is one file"),
        (("--out", "x.npz", "--shard-index", "0/2"), "shards and Ray need a folder"),
        (("--out", "x/", "--shard-rows", "0"), "shard rows must be at least 1; got 0"),
        (("--out", "x/", "--shard-index", "2/2"), "from 0/N to N-1/N for N processes, such as 3/64; got '2/2'"),
        (("--out", "x/", "--shard-index", "-1/2"), "such as 3/64; got '-1/2'"),
        (("--out", "BUNDLE"), "holds no features but"),
        (("--out", "x/", "--ray-cpus", "2"), "--ray-actors, --ray-cpus and --ray-gpus are of --ray"),
        (("--out", "x/", "--ray", "local", "--strict"), "--strict ends with the first bad file, which actors do not"),
        (("--out", "x/", "--levels", "e9"), "got e9"),
    ],
)
def test_what_makes_no_job_is_one_sentence(
    bundle: Path,
    sources: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(bundle) if argument == "BUNDLE" else argument for argument in arguments]
    assert convmae("features", bundle, "photos", *given) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("error: ") == 1 and shown.out == ""
    assert not (tmp_path / "x").exists()


def test_strict_work_ends_with_the_first_bad_file_and_keeps_the_shards_before_it(
    bundle: Path, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convmae("features", bundle, sources[0], "--out", out, "--strict", *ROWS) == 1
    assert set(content(out)) == {"_job.json", "features-00000-of-00003.parquet"}


def test_a_job_of_bad_files_alone_says_so_and_can_be_tried_again(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [tmp_path / f"{index}.jpg" for index in range(30)]
    missing[0].write_text("no photo")
    arguments: tuple[str | Path, ...] = ("features", bundle, *missing, "--out", tmp_path / "out", *ROWS)
    assert convmae(*arguments) == 1
    shown = capsys.readouterr().err
    assert f"why: _failures-*.jsonl in {tmp_path}/out; --retry-failures reads these shards again" in shown
    write_photos(tmp_path, 1)[0].rename(missing[4])
    assert convmae(*arguments) == 0, "what is there is kept"
    assert "10 shards of those that were there lack files that could not be read" in capsys.readouterr().err
    assert convmae(*arguments, "--strict") == 1
    assert convmae(*arguments, "--retry-failures") == 0
    assert "10 shards written; 1 photo, 29 left out" in capsys.readouterr().out
    assert shown.count("the file cannot be read") == 19 and "more files cannot be read" in shown


def test_videos_have_shards_too(tmp_path: Path, make_clips: Path) -> None:
    bundle = make_video_feature_bundle(tmp_path / "videos")
    out = tmp_path / "out"
    views = ("--temporal-views", "2")
    assert convmae("features", bundle, make_clips, "--out", out, *views, "--device", "cpu", "--shard-rows", "1") == 0
    table = parquet.read_table(out)
    assert table["path"].to_pylist() == [str(make_clips / "a.mp4"), str(make_clips / "b.mp4")]
    assert np.stack(table["pooled"].to_numpy()).shape == (2, 8)


@pytest.fixture
def make_clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for index, name in enumerate(("a.mp4", "b.mp4")):
        (folder / name).write_bytes(make_video(frames=8 + index))
    return folder


def test_compatible_says_which_vectors_may_share_an_index(
    bundle: Path, sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bundle(tmp_path / "other", size=(96, 96))
    for name in ("out/", "x.npz", "x.parquet", "x.safetensors"):
        assert convmae("features", bundle, sources[1], "--out", f"{tmp_path}/{name}", "--device", "cpu") == 0
        capsys.readouterr()
        assert convmae("compatible", bundle, tmp_path / name) == 0
        assert "the same fingerprint" in capsys.readouterr().out
    assert convmae("compatible", bundle / "model.onnx", f"file://{tmp_path}/out") == 0
    assert convmae("compatible", tmp_path / "out", other) == 1
    assert "different weights, task, preprocessing" in capsys.readouterr().out
    np.savez(tmp_path / "y.npz", pooled=np.zeros((1, 8)))
    for name, words in (
        ("y.npz", "does not say what its vectors were made by"),
        ("missing", "expected a bundle, a graph in one"),
    ):
        assert convmae("compatible", bundle, tmp_path / name) == 2
        assert words in capsys.readouterr().err
