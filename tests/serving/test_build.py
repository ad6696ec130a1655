"""A bento: what is in it, and that it serves."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.bundle.loading import read_bundle
from convmae_deploy.errors import ConvMAEError
from serving.build import build, choose_requirements, copy_sources, readme
from serving.settings import SHIPPED_BUNDLE
from tests.bundle_factory import make_bundle
from tests.serving.clients.bentoml_client import connect
from tests.serving.running_server import ROOT, caller_environment, post_head, read_response, run_server
from tests.serving.sample_images import jpeg


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """BentoML's home with one bento in it, and the bento's tag."""
    home = tmp_path_factory.mktemp("bentoml")
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "boxed", name="boxed")
    finished = subprocess.run(
        [sys.executable, "-m", "serving.build", str(bundle)],
        cwd=ROOT,
        env=caller_environment() | {"BENTOML_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    yield home, finished.stdout.split()[1].rstrip(";")


@pytest.mark.slow
def test_a_bento_holds_the_two_packages_and_the_bundle_only(store: tuple[Path, str]) -> None:
    home, tag = store
    source = home / "bentos" / tag.replace(":", "/") / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}

    assert {name.split("/")[0] for name in files} == {"serving", "convmae_deploy", "bentofile.yaml"}
    bundles = {name for name in files if name.startswith("serving/bundles/")}
    assert bundles == {f"serving/bundles/boxed/{name}" for name in ("manifest.json", "model.onnx", "LICENSE-WEIGHTS")}
    assert {"serving/service.py", "serving/page/index.html", "convmae_deploy/tasks/base.py"} <= files
    assert not [name for name in files if name.endswith(".pyc")]


@pytest.mark.slow
def test_a_bento_installs_what_is_pinned_and_hashed(store: tuple[Path, str]) -> None:
    home, tag = store
    packed = (home / "bentos" / tag.replace(":", "/") / "env/python/requirements.txt").read_text()
    wanted = (ROOT / "serving/requirements.txt").read_text()
    wanted = wanted.replace(" ;", ";").replace("'", '"')  # as BentoML writes markers
    # BentoML adds itself once more; the version is that of the pin, whose hashes hold for both.
    bentoml = wanted[wanted.index("bentoml==") :].split(maxsplit=1)[0]
    assert packed.split() == [*wanted.split(), bentoml]


@pytest.mark.slow
def test_a_bento_shows_its_routes_its_model_and_a_readme(store: tuple[Path, str]) -> None:
    home, tag = store
    command = [sys.executable, "-m", "bentoml", "get", tag, "--output", "json"]
    environment = caller_environment() | {"BENTOML_HOME": str(home)}
    shown = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert {route["name"] for route in shown["schema"]["routes"]} >= {"classify", "detect", "segment", "features"}
    assert shown["labels"] == {"models": "boxed", "tasks": "classification", "runtime": "cpu"}
    folder = home / "bentos" / tag.replace(":", "/")
    assert "| boxed | classification |" in (folder / "README.md").read_text()
    assert "/v1/classify" in (folder / "apis/openapi.yaml").read_text()


@pytest.mark.parametrize("extra", ["cpu", "openvino", "gpu"])
def test_a_bento_pins_what_its_runtime_needs(tmp_path: Path, extra: Any) -> None:
    copy_sources(tmp_path, [])
    choose_requirements(tmp_path, extra)
    files = {path.name for path in (tmp_path / "serving").glob("requirements*.txt")}
    packages = re.findall(r"^[a-z0-9-]+(?===)", (tmp_path / "serving/requirements.txt").read_text(), re.MULTILINE)
    assert files == {"requirements.txt"}
    runtimes = {"cpu": {"onnxruntime"}, "openvino": {"onnxruntime", "openvino"}, "gpu": {"onnxruntime-gpu"}}
    assert {"onnxruntime", "onnxruntime-gpu", "openvino"} & set(packages) == runtimes[extra]


def test_a_bundles_words_cannot_write_into_the_readme() -> None:
    manifest = read_bundle(SHIPPED_BUNDLE).manifest
    licence = manifest.licence.model_copy(update={"name": "<b>|MIT|\n# [x](http://y)"})
    text = readme([manifest.model_copy(update={"licence": licence})])
    assert "<b>" not in text and "\n# [" not in text and text.count("\n#") == 0


@pytest.mark.slow
def test_the_server_starts_from_a_bento(store: tuple[Path, str], tmp_path: Path) -> None:
    home, tag = store
    with run_server(tmp_path, {"BENTOML_HOME": str(home)}, ("-m", "bentoml", "serve", tag), cwd=tmp_path) as running:
        assert [model["id"] for model in running.request("/v1/models").json()["data"]] == ["boxed"]
        assert len(running.request("/v1/classify", jpeg()).json()) == 3
        photo = tmp_path / "a.jpg"
        photo.write_bytes(jpeg())
        with connect(running.url) as client:
            assert len(client.classify(image=photo, top_k=2)) == 2
        with running.connect() as connection:  # our protocol's limits hold in BentoML's worker too
            connection.sendall(post_head("/v1/classify", f"X-Filler: {'a' * 200_000}")[:-4])
            assert read_response(connection).code == "headers_too_large"
        assert running.request("/docs.json").code == "not_found"  # BentoML's own pages are out of reach
        assert running.stop() == 0


def test_a_bento_installs_pyav_only_for_a_video_model(
    bundle: Path, video_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []

    def build_nothing(command: list[str], cwd: Path, **_: object) -> "subprocess.CompletedProcess[str]":
        packed.append((cwd / "serving/requirements.txt").read_text())
        return subprocess.CompletedProcess(command, 0, "__tag__:convmae:1", "")

    monkeypatch.setattr(subprocess, "run", build_nothing)
    assert build([bundle]) == build([bundle, video_bundle]) == "convmae:1"
    added = packed[1].removeprefix(packed[0])
    names = [requirement.partition(">")[0] for requirement in extras("video")]
    assert re.findall("^([a-z]+)==", added, re.MULTILINE) == names == ["av"]
    assert added in (ROOT / "constraints.txt").read_text() and "--hash=sha256:" in added
    assert set(extras("serve")).isdisjoint(extras("video"))


def test_several_bundles_keep_their_order(tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / name, name=name) for name in ("zebra", "ant")]
    copy_sources(tmp_path / "context", bundles)
    assert sorted(path.name for path in (tmp_path / "context/serving/bundles").iterdir()) == ["00-zebra", "01-ant"]


@pytest.mark.slow
def test_a_broken_bundle_is_one_sentence(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "serving.build", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1


def test_two_bundles_of_one_name_are_one_sentence(bundle: Path) -> None:
    with pytest.raises(ConvMAEError, match="different names, got tiny, tiny"):
        build([bundle, bundle])


def test_the_packages_of_the_bento_are_those_of_the_serve_extra() -> None:
    lines = (ROOT / "serving/requirements.in").read_text().splitlines()
    packed = {line for line in lines if not line.startswith("#")}
    assert set(extras("serve")) <= packed
    core = {requirement.partition(";")[0].strip() for requirement in project()["dependencies"]}
    assert packed - set(extras("serve")) <= core


@pytest.mark.slow
def test_whatever_the_server_imports_is_declared() -> None:
    # The extra `parquet` is for the command line; the server imports the module that would need it, and not what it is.
    # Other extras are only for who serves a video model, or with OpenVINO or TensorRT.
    chosen = [
        name for extra in ("serve", "tracing", "parquet", "video", "openvino", "tensorrt-rtx") for name in extras(extra)
    ]
    requirements = [*project()["dependencies"], *chosen]
    declared = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}
    owners = importlib.metadata.packages_distributions()
    folders = ("serving", *(f"convmae_deploy/{room}" for room in ("backends", "bundle", "media", "tasks")))
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    imported = {name for file in files for name in imported_packages(file)}

    outside = imported - sys.stdlib_module_names - {"serving", "convmae_deploy"}
    assert {"starlette", "uvicorn", "numpy"} <= outside
    undeclared = {
        name for name in outside if not declared & {owner.lower().replace("_", "-") for owner in owners.get(name, ())}
    }
    assert not undeclared


def project() -> Any:
    """The project's table in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def extras(name: str) -> list[str]:
    """The requirements of an extra."""
    requirements: list[str] = project()["optional-dependencies"][name]
    return requirements


def imported_packages(file: Path) -> set[str]:
    """Top-level names of the packages that a source file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
