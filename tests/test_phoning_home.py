"""No program opens a connection that its user did not ask for, nor leaves anything in the home folder.

tests/test_readme.py watches the programs of the README's road from photos to a bundle.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connection_checker import FONT_CACHE, Watch, Watched, assert_quiet, missing_checker
from tests.serving.running_server import RunningServer, run_server
from tests.serving.sample_images import jpeg
from tests.test_layers import ROOT, imported_packages

SHIPPED = str(ROOT / "serving/bundles/imagenette-nano")
PROBLEM = missing_checker()
needs_checker = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

NATIVE_CALLS = """
import ctypes, socket, struct
library = ctypes.CDLL(None)
library.getaddrinfo(b"name.invalid", None, None, ctypes.byref(ctypes.c_void_p()))
there = struct.pack("!HHI", socket.htons(socket.AF_INET), 443, 0xC0000201) + bytes(8)
library.connect(library.socket(socket.AF_INET, socket.SOCK_STREAM, 0), there, len(there))
library.sendto(library.socket(socket.AF_INET, socket.SOCK_DGRAM, 0), b"", 0, 0, b"not an address", 0)
"""


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path / "watch")


@needs_checker
def test_the_checker_sees_what_native_code_looks_up_and_connects_to(watch: Watch) -> None:
    watched = watch.run("-c", NATIVE_CALLS)
    assert any("htons(53)" in call for call in watched.attempts)
    assert sum("192.0.2.1" in call for call in watched.attempts) == 1
    assert all("INJECTED" in call for call in watched.attempts)  # nothing has left


@pytest.mark.slow
@needs_checker
def test_what_a_user_has_set_stays_and_the_checker_sees_what_onnx_runtime_then_leaves(watch: Watch) -> None:
    watched = watch.run("-m", "convmae_deploy.cli", "info", SHIPPED, settings={"ORT_DISABLE_TELEMETRY": "0"})
    assert [file for file in watched.at_home if "onnxruntime" in file]


@pytest.mark.slow
@needs_checker
def test_the_checker_sees_what_openvino_leaves_without_our_import(watch: Watch) -> None:
    pytest.importorskip("openvino_telemetry")
    assert "intel/openvino_ga_cid" in watch.run("-c", "import openvino").at_home


@needs_checker
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("predict", "PHOTO", "--runtime", "openvino"), ("features", "PHOTO", "--out", "FOLDER", "--shard-rows", "1")],
    ids=" ".join,
)
def test_the_command_reports_nothing(arguments: tuple[str, ...], watch: Watch, tmp_path: Path) -> None:
    if "openvino" in arguments:
        pytest.importorskip("openvino")
    files = {"PHOTO": str(ROOT / "serving/golf-ball.jpg"), "FOLDER": f"{tmp_path}/features/"}
    command, *others = (files.get(argument, argument) for argument in arguments)
    assert_quiet(watch.run("-m", "convmae_deploy.cli", command, SHIPPED, *others))


@needs_checker
@pytest.mark.slow
def test_verifying_and_measuring_report_nothing(watch: Watch, tmp_path: Path) -> None:
    assert_quiet(Watch(tmp_path / "verify").run("-m", "export.verify", SHIPPED), FONT_CACHE)
    short = ("--batch-sizes", "1", "--rounds", "1", "--warm-up", "1", "--threads", "1")
    runtimes = ("--runtimes", "onnxruntime", "openvino")
    assert_quiet(watch.run("-m", "export.benchmark", SHIPPED, *short, *runtimes), FONT_CACHE)


@needs_checker
@pytest.mark.slow
def test_the_server_reports_nothing(watch: Watch, tmp_path: Path) -> None:
    with run_server(tmp_path, {}, under=watch.command()) as server:
        assert_quiet(asked_and_stopped(server, watch))


@needs_checker
@pytest.mark.slow
def test_a_bento_reports_nothing_and_its_user_types_no_variable(watch: Watch, tmp_path: Path) -> None:
    built = watch.run("-m", "serving.build", SHIPPED)
    assert_quiet(built, "bentoml/bentos/convmae/")
    command = built.output.partition("start it with: ")[2].split()
    assert command[:2] == ["bentoml", "serve"]
    with run_server(tmp_path, {}, ("-m", *command), cwd=tmp_path, under=watch.command()) as server:
        assert_quiet(asked_and_stopped(server, watch), "bentoml/bentos/convmae/")


def asked_and_stopped(server: RunningServer, watch: Watch) -> Watched:
    """What a server did, which was asked once."""
    assert server.request("/v1/classify", jpeg()).status == 200
    return watch.stop(server)


@pytest.mark.parametrize("package", ["convmae_deploy", "training", "export", "serving", "benchmarks", "tests"])
def test_every_package_turns_reports_off_before_it_imports_a_runtime(package: str) -> None:
    code = f"import os, sys, {package}; print(os.environ.get('ORT_DISABLE_TELEMETRY'), 'onnxruntime' in sys.modules)"
    without = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=without, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr


@pytest.mark.slow
def test_openvino_is_imported_only_where_its_reports_are_turned_off() -> None:
    folders = [ROOT / folder for folder in ("convmae_deploy", "training", "export", "serving", "benchmarks", "tests")]
    found = {file for folder in folders for file, names in imported_packages(folder).items() if "openvino" in names}
    alone = {ROOT / "export/reproduce.py", ROOT / "benchmarks/run_elsewhere.py"}  # run without this package
    assert found == {ROOT / "convmae_deploy/backends/openvino_backend.py"} | alone
    for file in found:
        assert 'modules.setdefault("openvino_telemetry", None)' in file.read_text()
