"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("training", "export", "serving")
TORCHLESS = ("backends", "bundle", "extraction", "media", "tasks")  # rooms of the library that run without torch
# What each room may import of the others.
ROOMS: dict[str, dict[str, set[str]]] = {
    "convmae_deploy": {
        "media": set(),
        "bundle": set(),
        "models": set(),
        "backends": {"bundle"},
        "tasks": {"backends", "bundle", "media"},
        "extraction": {"media", "tasks"},
        "data": {"bundle", "media", "tasks"},
        "checkpoints": {"bundle", "models"},
        "engine": {"bundle", "checkpoints", "data", "models", "tasks"},
    },
    "export": {
        "engines": set(),
        "graphs": set(),
        "runtimes": set(),
        "triton": set(),
        "verification": {"graphs", "runtimes"},
        "reports": {"runtimes", "verification"},
        "tasks": {"graphs", "runtimes", "verification"},
        "benchmarking": {"runtimes", "tasks", "verification"},
        "int8": {"graphs", "runtimes", "tasks", "verification"},
    },
}
# The modules beside the library's rooms are open to all; beside those of `export` lie programs, and these.
OPEN_MODULES = {"export": {"comma_list", "reproduce", "tool_versions"}}


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


def imported_parts(file: Path, package: str) -> set[str]:
    """Rooms of a package, and modules beside them, that a file imports, anywhere in it."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}."):
            parts.add(node.module.split(".")[1])
    return parts


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_what_lies_below_them(package: str) -> None:
    rooms = {folder.name for folder in (ROOT / package).iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert rooms == set(ROOMS[package])
    modules = {file.stem for file in (ROOT / package).glob("*.py")}
    for room, below in ROOMS[package].items():
        closed = (rooms | modules) - below - {room} - OPEN_MODULES.get(package, modules)
        for file in (ROOT / package / room).rglob("*.py"):
            above = imported_parts(file, package) & closed
            assert not above, f"{file.relative_to(ROOT)} imports {above}"


def test_rooms_without_torch_and_the_server_name_no_training_library() -> None:
    for folder in (*(f"convmae_deploy/{room}" for room in TORCHLESS), "serving"):
        for file, names in imported_packages(ROOT / folder).items():
            assert not names & {"torch", "torchvision", "timm", "onnx"}, file.relative_to(ROOT)


@pytest.mark.parametrize("package", ["convmae_deploy", "export", "serving", "benchmarks"])
def test_a_runtime_is_imported_in_one_room(package: str) -> None:
    runtimes = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}
    if package == "export":
        runtimes.remove("onnxruntime")  # its quantiser is in that package
    for file, names in imported_packages(ROOT / package).items():
        if file.parent.name != "backends" and file.name != "reproduce.py":  # which lies alone beside a failed graph
            assert not names & runtimes, file.relative_to(ROOT)


def test_importing_the_command_loads_no_training_library() -> None:
    code = (
        "import sys, convmae_deploy.cli, convmae_deploy.tasks; "
        "sys.exit(bool({'torch', 'torchvision', 'timm', 'onnx', 'pyarrow', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
