"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("training", "export", "serving")


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


def test_the_runtime_and_the_server_name_no_training_library() -> None:
    for folder in ("convmae_deploy/runtime", "serving"):
        for file, names in imported_packages(ROOT / folder).items():
            assert not names & {"torch", "torchvision", "timm", "onnx"}, file.relative_to(ROOT)


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, convmae_deploy.cli, convmae_deploy.runtime.predictor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
