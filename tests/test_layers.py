"""Who may import whom."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("training", "export", "serving")
TORCHLESS = (
    "backends",
    "bundle",
    "conformance",
    "extraction",
    "media",
    "tasks",
)  # rooms of the library that run without torch
# What each room may import of the others. The modules beside the rooms are in OPEN or above all rooms.
ROOMS: dict[str, dict[str, set[str]]] = {
    "convmae_deploy": {
        "media": set(),
        "bundle": set(),
        "models": set(),
        "backends": {"bundle"},
        "tasks": {"backends", "bundle", "media"},
        "conformance": {"backends", "bundle", "media", "tasks"},
        "extraction": {"backends", "bundle", "media", "tasks"},
        "data": {"bundle", "media", "tasks"},
        "checkpoints": {"bundle", "models"},
        "engine": {"bundle", "checkpoints", "data", "models", "tasks"},
    },
    "export": {
        "engines": set(),
        "graphs": set(),
        "runtimes": set(),
        "triton": set(),
        "verification": {"engines", "graphs", "runtimes"},
        "reports": {"runtimes", "verification"},
        "tasks": {"graphs", "runtimes", "verification"},
        "benchmarking": {"runtimes", "tasks", "verification"},
        "int8": {"graphs", "runtimes", "tasks", "verification"},
    },
    "serving": {
        "http": set(),
        "work": set(),
        "page": set(),
        "api": {"work"},
    },
}
# Modules beside the rooms that every room may import; they import no room.
OPEN = {
    "convmae_deploy": {"braces", "errors", "files", "folders", "machine", "printing", "program", "terminal"},
    "export": {"comma_list", "graph_files", "reproduce", "tool_versions"},
    "serving": {"errors", "metrics", "setting_types", "settings"},
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


def imported_parts(file: Path, package: str) -> set[str]:
    """Rooms of a package, and modules beside them, that a file imports, anywhere in it."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.relative_to(ROOT)} has a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}
    return parts


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_what_lies_below_them(package: str) -> None:
    rooms = {file.parent.name for file in (ROOT / package).glob("*/*.py")}
    assert rooms == set(ROOMS[package])
    modules = {file.stem for file in (ROOT / package).glob("*.py")}
    for room, below in ROOMS[package].items():
        closed = (rooms | modules) - below - {room} - OPEN[package]
        for file in (ROOT / package / room).rglob("*.py"):
            above = imported_parts(file, package) & closed
            assert not above, f"{file.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("package", ROOMS)
def test_modules_that_are_open_to_all_rooms_import_none(package: str) -> None:
    for module in OPEN[package]:
        above = imported_parts(ROOT / package / f"{module}.py", package) - OPEN[package]
        assert not above, f"{package}/{module}.py imports {above}"


@pytest.mark.parametrize("package", ["export", "training"])
def test_what_is_run_is_imported_by_no_other_module_of_its_package(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    programs = {
        file.stem for file in files if file.parent == ROOT / package and "run_program(main)" in file.read_text()
    }
    assert programs
    for file in files:
        found = imported_parts(file, package) & programs
        assert not found or file.stem == "ablation", f"{file.relative_to(ROOT)} imports {found}"  # which runs others


@pytest.mark.parametrize("package", ["convmae_deploy", *PROGRAMS, "benchmarks"])
def test_no_two_modules_import_each_other(package: str) -> None:
    """In a circle of any length, imports inside functions included."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / package).rglob("*.py")
    }
    arrows: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                arrows[name] |= (names & files.keys()) or {node.module}
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_rooms_without_torch_and_the_server_name_no_training_library() -> None:
    for folder in (*(f"convmae_deploy/{room}" for room in TORCHLESS), "serving"):
        for file, names in imported_packages(ROOT / folder).items():
            assert not names & {"torch", "torchvision", "timm", "onnx"}, file.relative_to(ROOT)


@pytest.mark.parametrize("package", ["convmae_deploy", "training", "export", "serving", "benchmarks"])
def test_a_runtime_is_imported_in_one_room(package: str) -> None:
    runtimes = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}
    for file, names in imported_packages(ROOT / package).items():
        allowed = {"onnxruntime"} if file.parent.name == "int8" else set()  # its quantiser is in that package
        # two lie alone: beside a failed graph, and in environments of other versions
        if file.parent.name != "backends" and file.name not in ("reproduce.py", "run_elsewhere.py"):
            assert not names & runtimes - allowed, file.relative_to(ROOT)


def test_errors_of_the_package_send_nobody_to_a_program_of_the_checkout() -> None:
    """Whoever has the package from pip has no such program."""
    program = re.compile(r"python -m (export|training|serving|benchmarks)|training\.[a-z]+|(?<![\w-])--opset|--dynamic")
    for file in (ROOT / "convmae_deploy").rglob("*.py"):
        raised = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Raise))
        for node in raised:
            texts = [str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)]
            assert not any(map(program.search, texts)), f"{file.relative_to(ROOT)}:{node.lineno}"


def test_importing_the_command_loads_no_training_library() -> None:
    code = (
        "import sys, convmae_deploy.cli, convmae_deploy.tasks; "
        "sys.exit(bool({'torch', 'torchvision', 'timm', 'onnx', 'pyarrow', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
