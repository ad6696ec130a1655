"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("training", "export", "serving")
TORCHLESS = ("backends", "bundle", "extraction", "media", "tasks")  # rooms of the library that run without torch
# What each room of the library may import of the others; the modules beside the rooms are open to all.
MAY_IMPORT: dict[str, set[str]] = {
    "media": set(),
    "bundle": set(),
    "models": set(),
    "backends": {"bundle"},
    "tasks": {"backends", "bundle", "media"},
    "extraction": {"media", "tasks"},
    "data": {"bundle", "media", "tasks"},
    "checkpoints": {"bundle", "models"},
    "engine": {"bundle", "checkpoints", "data", "models", "tasks"},
}


def imported_packages(folder: Path) -> dict[Path, set[str]]:
    """Top-level packages that each file of a folder imports, anywhere in it."""
    found = {}
    for file in folder.rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
        found[file] = names
    assert found
    return found


@pytest.mark.parametrize("package", ["convmae_deploy", *PROGRAMS])
def test_the_library_imports_no_program_and_programs_do_not_import_each_other(package: str) -> None:
    forbidden = {*PROGRAMS, "benchmarks", "tests"} - {package}
    for file, names in imported_packages(ROOT / package).items():
        assert not names & forbidden, f"{file.relative_to(ROOT)} imports {names & forbidden}"


def test_rooms_of_the_library_import_only_what_lies_below_them() -> None:
    library = ROOT / "convmae_deploy"
    rooms = {folder.name for folder in library.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)
    for room, below in MAY_IMPORT.items():
        for file in (library / room).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
            named = {module.split(".")[1] for module in modules if module and module.startswith("convmae_deploy.")}
            above = (named & rooms) - below - {room}
            assert not above, f"{file.relative_to(ROOT)} imports {above}"


def test_rooms_without_torch_and_the_server_name_no_training_library() -> None:
    for folder in (*(f"convmae_deploy/{room}" for room in TORCHLESS), "serving"):
        for file, names in imported_packages(ROOT / folder).items():
            assert not names & {"torch", "torchvision", "timm", "onnx"}, file.relative_to(ROOT)


def test_a_runtime_is_imported_in_one_room_of_the_library() -> None:
    for file, names in imported_packages(ROOT / "convmae_deploy").items():
        if file.parent.name != "backends":
            assert not names & {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}, file.relative_to(ROOT)


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, convmae_deploy.cli, convmae_deploy.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
