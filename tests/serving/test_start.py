"""Starting the server: what it says, and how it fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle_factory import make_bundle
from tests.serving.running_server import ROOT, RunningServer


def start(command: tuple[str, ...] = ("-m", "serving"), **settings: str) -> "subprocess.CompletedProcess[str]":
    """Starts a server that is expected to end by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVMAE_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment | {"BENTOML_DO_NOT_TRACK": "true", "CONVMAE_DEVICE": "cpu", "CONVMAE_PORT": "0"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_one_sentence(finished: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.startswith("error: ")
    assert all(word in finished.stderr for word in words), finished.stderr


def test_it_says_its_address_its_model_and_the_licence_of_the_weights(server: RunningServer) -> None:
    said = server.log.read_text()
    assert server.url in said
    assert "tiny" in said
    assert "test weights" in said


def test_nothing_but_that_is_said_when_all_is_well(server: RunningServer) -> None:
    assert "WARNING" not in server.log.read_text()


def test_a_missing_bundle_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(start(CONVMAE_BUNDLE=str(tmp_path / "none")), str(tmp_path / "none"))


def test_a_changed_bundle_is_one_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert_one_sentence(start(CONVMAE_BUNDLE=str(bundle)), "model.onnx")


def test_two_bundles_of_one_name_are_one_sentence(tmp_path: Path) -> None:
    paths = [make_bundle(tmp_path / folder, name="same") for folder in ("a", "b")]
    assert_one_sentence(start(CONVMAE_BUNDLE=":".join(map(str, paths))), "same")


def test_a_bad_setting_is_one_sentence_that_names_it() -> None:
    assert_one_sentence(start(CONVMAE_THREADS="none"), "CONVMAE_THREADS")


def test_a_port_in_use_is_one_sentence(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_sentence(start(CONVMAE_BUNDLE=str(bundle), CONVMAE_PORT=port), port)


@pytest.mark.slow
def test_bentoml_serve_does_not_start_with_a_bad_bundle(tmp_path: Path) -> None:
    command = ("-m", "bentoml", "serve", "serving.service:SERVICE")
    finished = start(command, CONVMAE_BUNDLE=str(tmp_path / "none"), CONVMAE_PORT="39999")
    assert finished.returncode != 0
    assert f"error: a bundle is a folder with a manifest.json; found nothing at {tmp_path}/none" in finished.stderr
