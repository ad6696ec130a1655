"""The pins: each with hashes, and those of a bento are the same."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
BENTOS = [ROOT / f"serving/requirements{runtime}.txt" for runtime in ("", "-openvino", "-gpu")]
KSERVE = ROOT / "tests/serving/clients/kserve.txt"  # of an environment of its own

Pins = dict[tuple[str, str], set[str]]  # name and version of a package -> hashes of its files


def pins_of(file: Path) -> Pins:
    """The pins of a file that holds nothing else: a line of name, version and perhaps a marker, then one a hash."""
    text = file.read_text().replace(" \\\n", "")
    pins: Pins = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; .*?)?((?:    --hash=sha256:[0-9a-f]{64})+)", line)
        assert found is not None, f"not a pin with hashes: {line}"
        pins[found[1], found[2]] = set(found[3].split())
    return pins


def names_of(requirements: list[str]) -> set[str]:
    """The packages that requirements are for, but the project itself."""
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements} - {"convmae-deploy"}


@pytest.mark.parametrize("file", [CONSTRAINTS, *BENTOS, KSERVE], ids=lambda file: file.name)
def test_every_pin_has_hashes_and_no_file_names_a_registry(file: Path) -> None:
    assert len(pins_of(file)) > 50
    assert "://" not in file.read_text() and "--index" not in file.read_text()


@pytest.mark.parametrize("bento", BENTOS, ids=lambda file: file.name)
def test_a_bento_installs_the_versions_and_the_files_that_the_tests_ran_with(bento: Path) -> None:
    pins = pins_of(CONSTRAINTS)
    others = {pin: hashes for pin, hashes in pins_of(bento).items() if pins.get(pin) != hashes}
    assert all(name.startswith("nvidia-") for name, _ in others) and bool(others) == ("gpu" in bento.name)


def test_whatever_is_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [requirement for name, extra in extras.items() if name != "tensorrt" for requirement in extra]
    assert names_of([*project["dependencies"], *optional]) <= {name for name, _ in pins_of(CONSTRAINTS)}
    for bento in BENTOS:
        asked = [line for line in bento.with_suffix(".in").read_text().splitlines() if line[0] not in "#-"]
        assert names_of(asked) <= {name for name, _ in pins_of(bento)}


def test_make_installs_nothing_without_a_hash_but_the_project_itself() -> None:
    command = ["make", "--dry-run", "--always-make", ".venv/.serve", ".venv/.dev"]
    steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    installs = [step for step in steps if " pip install " in step]
    own = [step for step in installs if "--require-hashes" not in step]
    assert len(installs) == 6 and len(own) == 2  # uv, a client's, then packages and project of server and tests
    assert all(step.endswith("--no-deps --editable .") for step in own)
