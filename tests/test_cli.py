import importlib.abc
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from convmae_deploy import cli
from tests.bundle_factory import make_bundle, make_detection_bundle, make_segmentation_bundle
from tests.media.photo_files import photo

CLASSES = ("[x]", "[/bold]", "église")
VIEWS = {"--temporal-views", "--spatial-views"}
PHOTOS = {"--max-pixels", "--max-side"}
RUNTIME = {"--runtime", "--file", "--precision", "--hint", "--trust-engine-code"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", classes=CLASSES)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.jpg", "deeper/c.webp")):
        photo(seed=seed).save(folder / name)
    return folder


def convmae(*arguments: str | Path) -> int:
    """Runs the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.slow
def test_predictions_are_one_json_object_a_photo_in_order(bundle: Path, photos: Path) -> None:
    files = [str(photos / name) for name in ("b.png", "a.jpg")]
    command = [sys.executable, "-m", "convmae_deploy.cli", "predict", str(bundle), *files, "--top-k", "2", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["file"] for line in lines] == files
    for line in lines:
        assert set(line) == {"file", "predictions"}
        scores = [prediction["score"] for prediction in line["predictions"]]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True)
        assert {prediction["label"] for prediction in line["predictions"]} < set(CLASSES)


def test_a_folder_is_searched_for_photos_and_what_is_passed_over_is_said(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.HEIC", "b.heic", "notes.txt", ".hidden.jpg"):
        (photos / name).write_bytes(b"none")
    assert convmae("predict", bundle, photos, "--json", "--device", "cpu") == 0
    captured = capsys.readouterr()
    names = [Path(json.loads(line)["file"]).name for line in captured.out.splitlines()]
    assert names == ["a.jpg", "b.png", "c.webp"]
    said = f"passed over: 1 hidden (first: {photos}/.hidden.jpg), 2 .heic (first: {photos}/a.HEIC), 1 .txt"
    assert captured.err.startswith(said)


def test_a_folder_without_photos_is_one_sentence(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_bytes(b"none")
    assert convmae("predict", bundle, tmp_path / "empty") == 2
    assert "found none; passed over 1 .heic" in capsys.readouterr().err


def test_a_large_photo_is_halved_or_refused_or_whole(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(192, 128).save(tmp_path / "a.jpg")
    asked = ("predict", bundle, tmp_path / "a.jpg", "--json", "--device", "cpu", "--max-pixels")
    assert [convmae(*asked, pixels) for pixels in ("6143", "6144", "24576")] == [1, 0, 0]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "at most 24572 are accepted" in lines[0]["error"]
    assert "predictions" in lines[1] and "predictions" in lines[2]


@pytest.mark.slow
def test_an_explanation_is_a_picture_with_its_numbers_beside_it(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "maps" / "map.png"
    asked = ("predict", bundle, photos / "a.jpg", "--device", "cpu", "--json", "--out", picture, "--explain")
    assert convmae(*asked, CLASSES[2]) == 0
    captured = capsys.readouterr()
    (explained,) = json.loads(captured.out)["explanations"]
    assert explained["label"] == CLASSES[2] and explained["index"] == 2
    numbers = np.array(explained["contributions"])
    assert numbers.shape == (4, 4) and numbers.sum() + explained["bias"] == pytest.approx(explained["logit"])
    assert json.loads((tmp_path / "maps" / "map.json").read_text()) == {"file": str(photos / "a.jpg"), **explained}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "an additive decomposition of the average pooling, not a cause" in captured.err
    assert convmae(*asked, "0", "1") == 0
    assert {file.name for file in picture.parent.glob("*.png")} == {"map.png", "map.0.png", "map.1.png"}


@pytest.mark.slow
def test_several_photos_are_explained_in_a_folder_or_in_a_table(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert convmae("predict", bundle, photos, "--explain", "--device", "cpu", "--out", tmp_path / "maps") == 0
    assert {file.name for file in (tmp_path / "maps").glob("*.png")} == {f"{name}.explained.png" for name in "abc"}
    assert convmae("predict", bundle, photos, "--explain", "--device", "cpu") == 0
    assert "strongest cells" in capsys.readouterr().out
    assert convmae("predict", bundle, photos, "--explain", "--out", tmp_path / "one.png") == 2
    assert "expected a folder for the pictures of 3 photos after --out" in capsys.readouterr().err


def test_the_table_shows_labels_as_they_are(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert convmae("predict", bundle, photos / "a.jpg", "--device", "cpu") == 0
    output = capsys.readouterr().out
    assert all(label in output for label in CLASSES) and "a.jpg" in output


def test_a_bad_photo_is_answered_in_its_place_and_ends_with_status_1(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "bad.jpg"
    bad.write_text("hello", encoding="utf-8")
    files = [photos / "a.jpg", bad, photos / "missing.jpg", photos / "b.png"]
    assert convmae("predict", bundle, *files, "--json", "--threads", "1") == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files]
    assert ["predictions" in line for line in lines] == [True, False, False, True]
    assert "found text" in lines[1]["error"] and "cannot be read" in lines[2]["error"]
    assert captured.err.splitlines() == [
        f"error: {file}: {line['error']}" for file, line in zip(files, lines, strict=True) if "error" in line
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "BUNDLE"], "at least one photo"),
        (["predict", "BUNDLE", "PHOTO", "--top-k", "0"], "--top-k must be at least 1; got 0"),
        (["predict", "BUNDLE", "PHOTO", "--out", "x.d"], "--out says nothing to a classification model"),
        (["predict", "BUNDLE", "PHOTO", "--threshold", "0.5"], "--threshold says nothing to a classification model"),
        (["predict", "BUNDLE", "PHOTO", "--spatial-views", "3"], "--spatial-views says nothing to a classification"),
        (["features", "BUNDLE", "PHOTO", "--out", "x.npz", "--temporal-views", "2"], "--temporal-views says nothing"),
        (["predict", "DETECTOR", "PHOTO", "--top-k", "5"], "--top-k says nothing to a detection model"),
        (["predict", "DETECTOR", "PHOTO", "--threshold", "1.5"], "--threshold must be between 0 and 1; got 1.5"),
        (["predict", "DETECTOR", "PHOTO", "PHOTO", "--out", "x.d"], "needs a name of its own"),
        (["predict", "SEGMENTER", "PHOTO", "--threshold", "0.5"], "which takes --max-pixels, --max-side; leave it out"),
        (["predict", "nowhere", "PHOTO"], "a bundle is a folder"),
        (
            ["features", "DETECTOR", "PHOTO", "--out", "x.npz"],
            "boxes is a detection model, which gives no features; give one of: classification",
        ),
        (["features", "BUNDLE", "PHOTO", "--out", "x.csv"], "choose one of these suffixes"),
        (["features", "BUNDLE", "PHOTO", "--out", "x.npz", "--levels", "e9"], "got e9"),
        (["features", "BUNDLE", "PHOTO", "--out", "x.npz", "--batch-size", "0"], "batch size must be at least 1"),
        (["features", "BUNDLE", "--out", "x.npz"], "at least one photo, video, folder or other source"),
        (["features", "BUNDLE", "EMPTY", "--out", "x.npz"], "found none"),
        (["info", "nowhere"], "a bundle is a folder"),
        (["info", "BUNDLE", "--hint", "latency"], "hint latency is for runtime openvino"),
        (["info", "BUNDLE", "--runtime", "tensorrt", "--hint", "latency"], "hint latency is for runtime openvino"),
        (["predict", "BUNDLE", "PHOTO", "--file", "model.fp16.onnx"], "has no graph 'model.fp16.onnx'"),
        (["predict", "BUNDLE", "PHOTO", "--runtime", "tensorrt", "--device", "cpu"], "runs on an NVIDIA GPU"),
        (["info", "BUNDLE", "--runtime", "onnxruntime-tensorrt"], "needs"),
        (["predict", "BUNDLE", "PHOTO", "--precision", "bf16"], "precision bf16 is for runtime openvino"),
    ],
)
def test_a_wrong_request_is_one_sentence_with_status_2(
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_detection_bundle(tmp_path / "detector")
    make_segmentation_bundle(tmp_path / "segmenter")
    places = {
        "BUNDLE": str(bundle),
        "DETECTOR": "detector",
        "SEGMENTER": "segmenter",
        "PHOTO": str(photos / "a.jpg"),
        "EMPTY": str(tmp_path / "empty"),
    }
    assert convmae(*[places.get(argument, argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.slow
def test_features_of_a_folder_are_written_with_the_names_of_its_photos(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.safetensors"
    command = [sys.executable, "-m", "convmae_deploy.cli", "features", str(bundle), str(photos), "--out", str(out)]
    result = subprocess.run([*command, "--levels", "pooled", "e1", "--batch-size", "2"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 photos" in result.stdout
    with safe_open(out, "numpy") as file:
        assert set(file.keys()) == {"pooled", "e1"}
        names = json.loads(file.metadata()["files"])
        assert file.get_tensor("e1").shape == (3, 4, 16, 16)
    assert names == [str(photos / name) for name in ("a.jpg", "b.png", "deeper/c.webp")]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_bad_photos_are_reported_and_left_out_of_the_features(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    (photos / "aa.jpg").write_text("hello", encoding="utf-8")
    out = tmp_path / f"features{suffix}"
    assert convmae("features", bundle, photos, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {photos / 'aa.jpg'}: ")
    assert "3 photos; 1 left out; pooled (3, 8)" in captured.out
    assert out.is_file()
    if suffix == ".npz":
        with np.load(out) as file:
            assert set(file.keys()) == {"files", "pooled", "convmae_deploy"} and len(file["files"]) == 3


def test_strict_features_end_with_the_first_bad_photo_and_write_nothing(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "aa.jpg").write_text("hello", encoding="utf-8")
    assert convmae("features", bundle, photos, "--out", tmp_path / "x.npz", "--strict") == 1
    captured = capsys.readouterr()
    assert "aa.jpg" in captured.err and captured.out == ""
    assert not (tmp_path / "x.npz").exists()


def test_features_of_bad_photos_alone_are_an_error(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_text("no photo", encoding="utf-8")
    assert convmae("features", bundle, tmp_path / "bad.jpg", "--out", tmp_path / "x.npz") == 2
    assert "none of the files could be read" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_parquet_without_pyarrow_is_refused_before_any_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert convmae("features", tmp_path / "no bundle", photos, "--out", tmp_path / "x.parquet") == 2
    assert "pip install '.[parquet]'" in capsys.readouterr().err


@pytest.mark.slow
def test_info_shows_the_whole_bundle(bundle: Path) -> None:
    command = [sys.executable, "-m", "convmae_deploy.cli", "info", str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for words in ("tiny", "classification", "tiny-test", "bicubic", "test weights", "random, seed 0", "onnx", "e4"):
        assert words in result.stdout
    for words in ("(B, 6, 8, 8)", "fp32", "verified", "max_abs <= 1e-5", "1.0000000"):
        assert words in result.stdout


def test_info_lists_the_files_with_their_sizes_and_what_verified_them(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    graph = (bundle / "model.onnx").read_bytes()
    (bundle / "model.bf16.onnx").write_bytes(graph)
    files = manifest["files"]
    report = files["model.onnx"]["numerics"]
    rows = {name: {**row, "snr_db": 34.56} for name, row in report["outputs"].items()}
    files["model.bf16.onnx"] = {
        **files["model.onnx"],
        "precision": "bf16",
        "numerics": {**report, "runtime": "openvino 2026.4 (CPU)", "outputs": rows},
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert convmae("info", bundle) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "model.bf16.onnx" in line and "100%" in line)
    for words in ("bf16", f"{len(graph) / 1e6:.2f}", "verified in openvino 2026.4 (CPU)"):
        assert words in line
    assert convmae("info", bundle) == 0
    assert "34.6" in capsys.readouterr().out


def test_info_says_how_a_detector_and_a_segmenter_see_a_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert convmae("info", make_detection_bundle(tmp_path / "detector")) == 0
    output = capsys.readouterr().out
    for words in ("resize to fit into 64 x 96", "filled with 128", "(B, 100, 28, 28)", "(B) ", "int64"):
        assert words in output
    assert convmae("info", make_segmentation_bundle(tmp_path / "segmenter", short_side=70)) == 0
    output = capsys.readouterr().out
    for words in ("short side 70, windows of 64 x 64 every 43 x 43", "(B, 4, 16, 16)"):
        assert words in output


@pytest.mark.slow
def test_openvino_predicts_writes_features_and_is_shown(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    openvino, photo_file = ("--runtime", "openvino"), photos / "a.jpg"
    answers = []
    for options in ((), openvino, (*openvino, "--hint", "throughput", "--threads", "1")):
        assert convmae("predict", bundle, photo_file, "--json", *options) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    for answer in answers[1:]:
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in answers[0]]
        scores = [[entry["score"] for entry in entries] for entries in (answer, answers[0])]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    found = []
    for name, options in (("a.npz", ()), ("b.npz", openvino)):
        assert convmae("features", bundle, photos, "--out", tmp_path / name, "--levels", "e1", *options) == 0
        found.append(np.load(tmp_path / name)["e1"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert convmae("info", bundle, *openvino) == 0
    assert "runs in openvino fp32 (CPU); started in " in capsys.readouterr().out


def test_an_unverified_bundle_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(bundle, verified=False)
    assert convmae("info", bundle) == 0
    assert "never verified" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["import", "to-hub"])
def test_import_and_to_hub_without_torch_name_the_extra(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name=name)

    # not sys.modules["torch"] = None: tyro takes that entry for an imported torch
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert convmae(command, tmp_path / "original.pth", "--out", tmp_path / "out") == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"error: {command} needs torch") and "pip install '.[train]'" in sentence


def test_import_writes_a_checkpoint_and_reports_one_fact_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.original_files import encoder_only_state, write_pth

    source = write_pth(tmp_path / "original.pth", {"model": encoder_only_state()})
    assert convmae("import", source, "--out", tmp_path / "without") == 2
    assert "--num-heads" in capsys.readouterr().err
    size = ("--image-size", "64", "96")
    assert convmae("import", source, "--out", tmp_path / "out", "--num-heads", "4", *size) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "resized pos_embed: 14 x 14 to 4 x 6, bicubic" in lines
    assert lines[-1] == f"wrote {tmp_path / 'out'}"
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "without").exists()


def test_to_hub_writes_a_folder_or_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
    from convmae_deploy.models.convmae import build_convmae, nano

    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    save_checkpoint(tmp_path / "encoder", build_convmae(nano()).state_dict(), record)
    for written in (True, False):
        assert convmae("to-hub", tmp_path / "encoder", "--out", tmp_path / "hub") == (0 if written else 2)
        said = capsys.readouterr()
        assert f"timm.create_model('local-dir:{tmp_path / 'hub'}', pretrained=True)" in said.out or not written
        assert written or said.err.startswith(f"error: {tmp_path / 'hub'} exists already")
    assert (tmp_path / "hub" / "README.md").is_file()


def test_the_commands_and_their_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "predict": {"--out", "--top-k", "--threshold", "--explain", "--json", "--device", "--threads"}
        | VIEWS
        | PHOTOS
        | RUNTIME,
        "features": (
            {"--out", "--levels", "--dtype", "--shard-rows", "--shard-index", "--column", "--batch-size", "--strict"}
            | {"--retry-failures", "--size", "--tile", "--overlap"}
            | {"--device", "--threads", "--ray", "--ray-actors", "--ray-cpus", "--ray-gpus"}
            | VIEWS
            | PHOTOS
            | RUNTIME
        ),
        "compatible": set(),
        "conform": {"--npz", "--onnx", "--precision", "--api-key-file"},
        "info": RUNTIME | {"--layers", "--sbom"},
        "sign": {"--key"},
        "import": {"--out", "--variant", "--image-size", "--num-heads"},
        "to-hub": {"--out"},
    }
    for command, expected in options.items():
        assert convmae(command, "--help") == 0
        words = capsys.readouterr().out.replace(",", " ").split()
        assert {word for word in words if re.match("--[a-z]", word)} == expected | {"--help"}


def test_names_in_a_bundle_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["\x1b]0;title\x07", "b[red]\u202e\x9b2J", "c\nerror: forged"]
    provenance = {"key\x1b[2J": "value\n\x1b[31m", "note": "[bold]plain[/bold]"}
    bundle = make_bundle(tmp_path / "bundle", classes=labels, provenance=provenance, licence={"name": "x\x1bc[/red]"})
    photo(seed=1).save(tmp_path / "a.png")
    for arguments in (("info", bundle), ("predict", bundle, tmp_path / "a.png", "--device", "cpu")):
        assert convmae(*arguments) == 0
        shown = capsys.readouterr()
        assert all(line.isprintable() for line in (shown.out + shown.err).split("\n"))
        assert "\nerror: forged" not in shown.out and "\\x1b" in shown.out


def test_provenance_is_never_taken_for_what_the_manifest_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", provenance={"licence": "MIT"}, licence={"name": "research use"})
    assert convmae("info", bundle) == 0
    printed = capsys.readouterr().out
    assert "research use" in printed and "provenance: licence" in printed
