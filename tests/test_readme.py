"""The README's commands, run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.connection_checker import FONT_CACHE, Watch, assert_quiet, missing_checker
from tests.photo_folders import make_photo_folder
from tests.serving.running_server import run_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PAGES = (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"))
ONE_EPOCH = " --epochs 1 --warmup-epochs 0 --workers 0"  # proves the command
FOR_A_TEST = {"training.pretrain": ONE_EPOCH, "training.finetune": ONE_EPOCH}
MINUTES = 10


def run_line(line: str, folder: Path, watch: Watch | None = None) -> str:
    """Runs one line of a shell block in `folder` with the tools of this environment first on the PATH.

    Under the watch it opens no connection and leaves nothing at home.
    """
    for program, flags in FOR_A_TEST.items():
        line = re.sub(rf"(-m {re.escape(program)}.*?)(\s+#|$)", rf"\1{flags}\2", line)
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    command = [*(watch.command(settings) if watch else ()), "bash", "-ec", line]
    environment = os.environ | settings
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    if watch:
        assert_quiet(watch.seen(done.returncode, done.stdout), FONT_CACHE)
    return done.stdout


def lines_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def write_photo(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save(path)


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
@pytest.mark.slow
def test_the_requests_of_the_first_screen_answer_as_shown(tmp_path: Path) -> None:
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    with run_server(tmp_path, {}) as server:  # no CONVMAE_BUNDLE: the models that ship
        classify, features, segments = (
            run_line(line.replace("http://127.0.0.1:3000", server.url), tmp_path) for line in lines_of(BLOCKS[0])
        )
    predictions = json.loads(classify)
    assert len(predictions) == 5 and predictions[0].keys() == {"label", "score"}
    assert predictions[0]["label"] == "golf_ball" and 0.865 < predictions[0]["score"] < 0.88
    assert features == segments == ""
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert labels.shape == (360, 480) and (labels[:60, 150:450] == 0).mean() > 0.9  # sky
    maps = load_file(tmp_path / "features.safetensors")
    assert maps.keys() == {"e1", "e2", "e3", "e4", "pooled"}
    assert maps["e1"].shape == (1, 32, 32, 32)


@needs_curl
@pytest.mark.slow
def test_the_road_from_photos_to_a_bundle_runs_as_shown(tmp_path: Path) -> None:
    make_photo_folder(tmp_path / "photos", per_class=4)
    for name in ("a.jpg", "b.png"):
        write_photo(tmp_path / name)
    *lines, serve = lines_of(BLOCKS[1])
    watch = None if missing_checker() else Watch(tmp_path / "watch")
    pretrained, drawn, finetuned, _, predicted, explained, _, described = (
        run_line(line, tmp_path, watch) for line in lines
    )
    assert "pretrained encoder" in pretrained
    assert "mean loss" in drawn and (tmp_path / "picture.png").exists()
    assert "best validation top-1" in finetuned
    assert "a.jpg" in predicted and "b.png" in predicted
    assert "not a cause" in explained and (tmp_path / "map.png").exists() and (tmp_path / "map.json").exists()
    assert load_file(tmp_path / "features.safetensors")["pooled"].shape == (16, 192)
    assert "classification" in described
    assert serve.split() == ["CONVMAE_BUNDLE=bundles/mine", "make", "serve"]
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(tmp_path / "bundles" / "mine")}) as server:
        answer = run_line(f"curl -s --data-binary @a.jpg {server.url}/v1/classify", tmp_path)
    assert {prediction["label"] for prediction in json.loads(answer)} == {"blue", "red"}


def test_every_file_that_the_readme_links_to_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page} links to {target}"


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def python_blocks(page: str) -> list[str]:
    return blocks_of(page, "python")


def test_the_library_s_first_lines_run_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    for name in ("a.jpg", "b.png"):
        write_photo(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(python_blocks("README.md")[0], "README.md", "exec"), names)
    predictions = names["model"]("serving/golf-ball.jpg", top_k=3)
    assert len(predictions) == 3 and predictions[0].label == "golf_ball" and 0.865 < predictions[0].score < 0.88


@pytest.mark.slow
def test_the_block_about_timm_prints_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(python_blocks("training/README.md")[0], "README.md", "exec"), {})
    assert capsys.readouterr().out == "[4, 8, 16, 32]\n"


def test_the_check_of_the_data_prints_what_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import finetune

    (tmp_path / "serving").symlink_to(ROOT / "serving")
    monkeypatch.chdir(tmp_path)
    for line in lines_of(blocks_of("training/README.md", "bash")[0]):
        if not line.startswith("python "):
            run_line(line, tmp_path)
            continue
        _, _, module, *arguments = line.split()
        assert module == "training.finetune"
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        assert finetune.main() == 0
    assert capsys.readouterr().out == blocks_of("training/README.md", "text")[0]


@pytest.mark.slow
def test_publishing_a_model_runs_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
    from convmae_deploy.models.classifier import build_classifier
    from convmae_deploy.models.convmae import nano

    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("blue", "red"))
    save_checkpoint(tmp_path / "runs/mine/best", build_classifier(nano(), num_classes=2).state_dict(), record)
    (command,) = lines_of(blocks_of("training/README.md", "bash")[1])
    assert "image-classification" in run_line(command, tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(python_blocks("training/README.md")[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == "[40, 20, 10, 5]\n"
