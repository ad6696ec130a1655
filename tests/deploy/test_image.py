"""The image: what its build does and what runs in it, as far as that can be said without Docker."""

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.running_server import ROOT, run_server
from tests.serving.sample_images import jpeg

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def instruction(name: str) -> list[str]:
    """The arguments of each instruction of a name."""
    return [line.split(maxsplit=1)[1] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def environment() -> dict[str, str]:
    """The variables of the last stage."""
    return dict(part.split("=", 1) for part in shlex.split(instruction("ENV")[-1]))


def test_what_is_copied_is_in_the_checkout_and_let_through_to_the_build() -> None:
    let_through = re.findall(r"^!(\S+)$", (ROOT / "deploy/Dockerfile.dockerignore").read_text(), re.MULTILINE)
    sources = [line.split()[0] for line in instruction("COPY") if not line.startswith("--from")]
    (requirements,) = (source for source in sources if "$" in source)
    choices = ["requirements", "requirements-openvino", "requirements-gpu"]
    for source in [*sources, *(requirements.replace("${REQUIREMENTS}", name) for name in choices)]:
        if source != requirements:
            assert (ROOT / source).exists() and source.split("/")[0] in let_through, source
    assert set(re.findall(r"REQUIREMENTS=([a-z-]+)", DOCKERFILE)) == set(choices)


@pytest.mark.parametrize("name", ["requirements", "requirements-openvino", "requirements-gpu"])
def test_every_package_of_the_image_has_a_pin_and_hashes(name: str) -> None:
    text = (ROOT / f"serving/{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines and all("==" in line and "--hash=sha256:" in line for line in lines)


def test_the_last_stage_is_nobody_special_and_ends_on_sigterm() -> None:
    (user,) = instruction("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert instruction("STOPSIGNAL") == ["SIGTERM"]
    assert len(instruction("FROM")) == 2
    assert instruction("CMD") == ['["python", "-m", "serving"]']  # no shell between the signal and the server


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was changed."""
    found = {str(path): path.stat() for path in folder.rglob("*")}
    return {
        name: (status.st_size, status.st_mtime_ns) for name, status in found.items() if stat.S_ISREG(status.st_mode)
    }


def health(port: int) -> int:
    """The exit status of the image's check of its health."""
    command = re.search(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE)
    assert command is not None
    variables = os.environ | {"CONVMAE_PORT": str(port)}
    return subprocess.run([sys.executable, "-c", command[1]], env=variables, capture_output=True).returncode


@pytest.mark.slow
def test_with_the_variables_of_the_image_the_server_is_healthy_and_writes_only_temporary_files(
    bundle: Path, tmp_path: Path
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    given = {name: value for name, value in environment().items() if name not in ("PATH", "CONVMAE_PORT")}
    folders = {"CONVMAE_BUNDLE": str(bundle), "HOME": str(home), "TMPDIR": str(temporary)}
    before = [files(folder) for folder in (ROOT / "serving", ROOT / "convmae_deploy", bundle)]
    with run_server(temporary, {**given, **folders, "CONVMAE_HOST": "127.0.0.1"}) as server:
        assert server.request("/v1/classify", jpeg()).status == 200
        assert health(server.port) == 0
        assert server.stop() == 0
        assert health(server.port) != 0
    assert [files(folder) for folder in (ROOT / "serving", ROOT / "convmae_deploy", bundle)] == before
    assert list(home.iterdir()) == []
