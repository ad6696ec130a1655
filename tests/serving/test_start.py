"""Starting the server: what it says, and how it fails."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.errors import ConvMAEError
from serving.__main__ import announce, bind
from serving.settings import Settings
from tests.bundle_factory import make_bundle
from tests.serving.running_server import ROOT, RunningServer, caller_environment, run_server
from tests.serving.sample_images import jpeg
from tests.waiting import PATIENCE_SECONDS


def start(command: tuple[str, ...] = ("-m", "serving"), **settings: str) -> "subprocess.CompletedProcess[str]":
    """Starts a server that is expected to end by itself."""
    own = {"BENTOML_DO_NOT_TRACK": "true", "CONVMAE_DEVICE": "cpu", "CONVMAE_PORT": "0"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=caller_environment() | own | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
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


@pytest.mark.slow
def test_a_changed_bundle_is_one_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert_one_sentence(start(CONVMAE_BUNDLE=str(bundle)), "model.onnx")


@pytest.mark.slow
def test_of_two_bundles_the_first_is_the_default_and_the_model_parameter_chooses(
    bundle: Path, second_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMAE_API_KEY", "of whoever runs the tests")  # not of this server
    with run_server(tmp_path, {"CONVMAE_BUNDLE": f"{bundle}:{second_bundle}"}) as server:
        models = server.request("/v1/models").json()["data"]
        default = server.request("/v1/classify", jpeg())
        chosen = server.request("/v1/classify?model=other", jpeg())
        unknown = server.request("/v1/classify?model=none", jpeg())
    assert [(model["id"], model["default"]) for model in models] == [("tiny", True), ("other", False)]
    assert default.headers["x-model"] == "tiny"
    assert {entry["label"] for entry in default.json()} == {"a", "b", "c"}
    assert chosen.headers["x-model"] == "other"
    assert {entry["label"] for entry in chosen.json()} == {"x", "y"}
    assert (unknown.status, unknown.code) == (404, "unknown_model")


def test_with_openvino_it_says_so_and_answers_as_with_onnx_runtime(
    bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    expected = server.request("/v1/classify", jpeg()).json()
    assert "runs in onnxruntime (CPUExecutionProvider)" in server.log.read_text()
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_RUNTIME": "openvino"}) as other:
        found = other.request("/v1/classify", jpeg()).json()
        model = other.request("/v1/models/tiny").json()
    assert "runs in openvino fp32 (CPU)" in other.log.read_text()
    assert model["backend"] == {"name": "openvino fp32", "providers": ["CPU"]}
    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


@pytest.mark.slow
def test_arguments_are_refused_as_settings_come_from_the_environment() -> None:
    assert_one_sentence(start(("-m", "serving", "--port", "80")), "no arguments", "--port 80", "CONVMAE_")


@pytest.mark.slow
def test_a_setting_that_the_system_refuses_is_one_sentence() -> None:
    assert_one_sentence(start(CONVMAE_BUNDLE="x" * 300), "cannot be used (File name too long)")


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConvMAEError, match=f"127.0.0.1:{port} .*; choose another CONVMAE_HOST or CONVMAE_PORT"):
            bind(Settings(bundle=(Path("none"),), threads=1, host="127.0.0.1", port=port))


@pytest.mark.slow
def test_the_address_of_a_service_of_kubernetes_keeps_no_pod_from_starting(bundle: Path, tmp_path: Path) -> None:
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_PORT": "tcp://127.0.0.1:9"}) as server:
        assert "enableServiceLinks: false" in server.log.read_text()


def addresses(host: str) -> list[tuple[str, int]]:
    """Where a server listens that is told to listen on a host."""
    listeners = bind(Settings(bundle=(Path("none"),), threads=1, host=host, port=0))
    names = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        listener.close()
    return names


def given_addresses(monkeypatch: pytest.MonkeyPatch, *hosts: str, missing: str | None = None) -> list[Any]:
    """Gives every name these addresses, one of which this machine does not have; returns where sockets are bound."""
    families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts]
    found = [(family, socket.SOCK_STREAM, 6, "", (host, 0)) for family, host in zip(families, hosts, strict=True)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    bound: list[Any] = []

    class Listener:
        def __init__(self, family: int, kind: int) -> None:
            self.name = ("", 0)

        def setsockopt(self, *options: int) -> None:
            bound.append(options) if options[0] == socket.IPPROTO_IPV6 else None

        def bind(self, address: tuple[str, int]) -> None:
            if address[0] == missing:
                raise OSError(errno.EADDRNOTAVAIL, "no such address")
            self.name = (address[0], address[1] or 4000)
            bound.append(self.name)

        def getsockname(self) -> tuple[str, int]:
            return self.name

        def close(self) -> None:
            pass

    monkeypatch.setattr(socket, "socket", Listener)
    return bound


def test_it_listens_on_every_address_of_a_name_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    given_addresses(monkeypatch, "::1", "127.0.0.1", "127.0.0.1")
    assert addresses("localhost") == [("127.0.0.1", 4000), ("::1", 4000)]


def test_a_name_with_an_address_that_this_machine_has_not_is_served_on_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_addresses(monkeypatch, "::1", "127.0.0.1", missing="::1")
    assert addresses("localhost") == [("127.0.0.1", 4000)]


def test_a_host_without_an_address_of_this_machine_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given_addresses(monkeypatch, "192.0.2.1", missing="192.0.2.1")
    with pytest.raises(ConvMAEError, match="no such address.*CONVMAE_HOST"):
        addresses("192.0.2.1")


def test_what_is_no_name_of_a_host_is_one_sentence() -> None:
    with pytest.raises(ConvMAEError, match="cannot listen on x*:0 .*; check CONVMAE_HOST"):
        addresses("x" * 70)


@pytest.mark.parametrize(("host", "alone"), [("::", 0), ("::1", 1)])
def test_all_of_ipv6_is_all_of_ipv4_too(monkeypatch: pytest.MonkeyPatch, host: str, alone: int) -> None:
    bound = given_addresses(monkeypatch, host)
    addresses(host)
    assert (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone) in bound


@pytest.mark.slow
def test_bentoml_serve_does_not_start_with_a_bad_bundle(tmp_path: Path) -> None:
    command = ("-m", "bentoml", "serve", "serving.service:SERVICE")
    finished = start(command, CONVMAE_BUNDLE=str(tmp_path / "none"), CONVMAE_PORT="39999")
    assert finished.returncode != 0
    assert f"error: a bundle is a folder with a manifest.json; found nothing at {tmp_path}/none" in finished.stderr


def test_nobody_has_to_read_what_the_start_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", closefd=False) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        announce({}, [], "")
        print("more", flush=True)  # nor does anything later
        sys.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            nobody.close()
    os.close(write_end)
    assert "standard output cannot be written" in caplog.text


@pytest.mark.slow
def test_a_standard_stream_that_is_closed_leaves_its_number_to_no_connection() -> None:
    program = """
import os, sys
from serving.__main__ import fill_standard_streams
os.close(1), os.close(2)
sys.stdout = sys.stderr = None
fill_standard_streams()
print("x", flush=True)
assert all(os.path.sameopenfile(number, os.open(os.devnull, os.O_RDWR)) for number in (1, 2))
"""
    assert start(("-c", program)).returncode == 0


FREED = """
import gc, uvicorn
from convmae_deploy.tasks.base import Predictor

def run(server, sockets):
    from serving import service
    for name in list(service.predictors):
        service.predictors.remove(name)
    gc.collect()
    left = [held for held in gc.get_objects() if isinstance(held, Predictor)]
    print("left:", len(left), flush=True)

uvicorn.Server.run = run
import serving.__main__
serving.__main__.main()
"""


@pytest.mark.slow
def test_a_model_that_is_let_go_leaves_nothing_of_it_in_memory() -> None:
    """The program that starts the server once kept those that it had opened, so the first was there for ever."""
    assert "left: 0" in start(("-c", FREED)).stdout
