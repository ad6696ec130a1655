"""No program opens a connection that its user did not ask for, nor leaves anything in the home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connection_checker import Watch, Watched, missing_checker
from tests.photo_folders import make_photo_folder
from tests.serving.running_server import RunningServer, run_server
from tests.serving.sample_images import jpeg
from tests.test_layers import ROOT, imported_packages

SHIPPED = str(ROOT / "serving/bundles/imagenette-nano")
FONT_CACHE = ".cache/matplotlib/"
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos for two updates."""
    return make_photo_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=4)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """The run folder of two updates, and what the program did."""
    folder = tmp_path_factory.mktemp("training")
    size = ("--image-size", "32", "32", "--train-size", "32", "32")
    arguments = ("--data", str(photos), "--out", str(folder / "run"), "--epochs", "1", "--batch-size", "4", *size)
    # no decoding processes: those pass their batches on through sockets, and none works here
    short = ("--warmup-epochs", "0", "--workers", "0")
    return folder / "run", Watch(folder / "watch").run("-m", "training.finetune", "nano", *arguments, *short)


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Watched], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """The bundle of that run, and what the program did."""
    folder = tmp_path_factory.mktemp("export")
    arguments = (str(trained[0]), "--out", str(folder / "bundle"), "--max-batch", "2")
    return folder / "bundle", Watch(folder / "watch").run("-m", "export", *arguments)


def assert_quiet(watched: Watched, allowed_at_home: str | None = None) -> None:
    """Nothing was tried, and nothing left at home but what starts with `allowed_at_home`."""
    assert watched.status == 0, watched.output
    assert not watched.attempts
    assert not [file for file in watched.at_home if allowed_at_home is None or not file.startswith(allowed_at_home)]


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
    [
        ("info",),
        ("predict", "PHOTO"),
        ("predict", "PHOTO", "--runtime", "openvino"),
        ("features", "PHOTO", "--out", "OUT"),
        ("features", "PHOTO", "--out", "FOLDER", "--shard-rows", "1"),
    ],
    ids=" ".join,
)
def test_the_command_reports_nothing(arguments: tuple[str, ...], photos: Path, watch: Watch, tmp_path: Path) -> None:
    if "openvino" in arguments:
        pytest.importorskip("openvino")
    files = {"PHOTO": str(photos / "val/blue/0.png"), "OUT": str(tmp_path / "features.safetensors")}
    files["FOLDER"] = f"{tmp_path}/features/"
    command, *others = (files.get(argument, argument) for argument in arguments)
    assert_quiet(watch.run("-m", "convmae_deploy.cli", command, SHIPPED, *others))


@needs_checker
@pytest.mark.slow
def test_training_reports_nothing(trained: tuple[Path, Watched]) -> None:
    assert_quiet(trained[1], FONT_CACHE)


@needs_checker
@pytest.mark.slow
def test_exporting_verifying_and_measuring_report_nothing(exported: tuple[Path, Watched], tmp_path: Path) -> None:
    bundle, watched = exported
    assert_quiet(watched)
    assert_quiet(Watch(tmp_path / "verify").run("-m", "export.verify", str(bundle)), FONT_CACHE)
    short = ("--batch-sizes", "1", "--rounds", "1", "--warm-up", "1", "--threads", "1")
    runtimes = ("--runtimes", "onnxruntime", "openvino")
    measured = Watch(tmp_path / "benchmark").run("-m", "export.benchmark", str(bundle), *short, *runtimes)
    assert_quiet(measured, FONT_CACHE)


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
