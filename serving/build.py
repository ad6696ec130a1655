"""Builds a bento of the server and bundles.

The bento holds `serving/`, `convmae_deploy/` and the bundles named (by default those in `serving/bundles`), nothing
else. It is built from a temporary folder with just these in it, so that what lies about in a checkout cannot slip in.
Its labels and its README say which models it serves.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import tyro
import yaml

from convmae_deploy.backends.runtimes import RUNTIMES
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle, task_of
from serving.api.routes import ROUTES
from serving.settings import BUNDLES, default_bundles

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("convmae_deploy", "serving")
LEFT_OUT: Final = ("__pycache__", "*.pyc")
BENTOFILE: Final = Path("serving/bentofile.yaml")
README: Final = Path("serving/README.md")
REQUIREMENTS: Final = Path("serving/requirements.txt")
Extra = Literal["cpu", "openvino", "gpu"]
REQUIREMENTS_OF: Final[dict[Extra, Path]] = {
    "cpu": REQUIREMENTS,
    "openvino": Path("serving/requirements-openvino.txt"),
    "gpu": Path("serving/requirements-gpu.txt"),
}
MAX_LABEL: Final = 63  # characters, as BentoML has it
CONSTRAINTS: Final = ROOT / "constraints.txt"
VIDEO_PACKAGES: Final = ("av",)  # the extra `video`, for bentos with a video model only: it is 100 MB


@dataclass(frozen=True)
class Options:
    """Builds a bento of the server and bundles."""

    bundles: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Bundle folders; the first of each task is the default of that task. Without any: those that ship."""
    extra: Extra = "cpu"
    """What runs the models: cpu (ONNX Runtime), openvino, or gpu (ONNX Runtime with CUDA's libraries from PyPI)."""


def build(bundles: Sequence[Path], extra: Extra = "cpu") -> str:
    """Builds a bento and stores it in BentoML's store.

    Args:
        bundles: bundle folders; the first of each task becomes the default of that task.
        extra: which requirements it pins.

    Returns:
        The bento's tag, `convmae:VERSION`.

    Raises:
        ConvMAEError: a bundle is not in order, or BentoML fails.
    """
    manifests = [load_bundle(bundle).manifest for bundle in bundles]
    names = [manifest.name for manifest in manifests]
    if len(set(names)) != len(names):
        raise ConvMAEError(f"expected bundles of different names, got {', '.join(names)}; leave one of a name out")
    has_videos = any(task_of(manifest).MEDIUM == "video" for manifest in manifests)
    with tempfile.TemporaryDirectory(prefix="convmae-bento-") as folder:
        context = Path(folder)
        copy_sources(context, bundles)
        choose_requirements(context, extra)
        if has_videos:
            add_packages(context / REQUIREMENTS, VIDEO_PACKAGES)
        describe(context, manifests, extra)
        command = [sys.executable, "-m", "bentoml", "build", "-f", str(BENTOFILE), "--output", "tag", "."]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("CONVMAE_BUNDLE", None)  # the bento's own bundles are what it serves
        finished = subprocess.run(command, cwd=context, env=environment, capture_output=True, text=True)
    match = re.search(r"__tag__:(\S+)", finished.stdout)
    if finished.returncode != 0 or match is None:
        reason = (finished.stderr or finished.stdout).strip().splitlines()[-1:]
        raise ConvMAEError(f"bentoml build failed ({''.join(reason)}); run it by hand as serving/bentofile.yaml says")
    return match[1]


def copy_sources(context: Path, bundles: Sequence[Path]) -> None:
    """Copies what belongs into the bento to the folder `context`."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, context / package, ignore=_ignore)
    for index, bundle in enumerate(bundles):
        # The server takes the bundles beside it in the order of their names.
        name = bundle.name if len(bundles) == 1 else f"{index:02d}-{bundle.name}"
        shutil.copytree(bundle, context / "serving" / BUNDLES.name / name)


def choose_requirements(context: Path, extra: Extra) -> None:
    """Leaves of the requirements in the folder `context` those of one runtime, under the name that is installed."""
    chosen = context / REQUIREMENTS_OF[extra]
    if chosen != context / REQUIREMENTS:
        chosen.replace(context / REQUIREMENTS)
    for name in REQUIREMENTS_OF.values():
        if name != REQUIREMENTS:
            (context / name).unlink(missing_ok=True)


def describe(context: Path, manifests: Sequence[Manifest], extra: Extra) -> None:
    """Writes which models the bento serves into its labels and its README, and the runtime that it installs."""
    bentofile = context / BENTOFILE
    settings = yaml.safe_load(bentofile.read_text(encoding="utf-8"))
    settings["labels"] = {
        "models": "_".join(manifest.name for manifest in manifests)[:MAX_LABEL],
        "tasks": "_".join(dict.fromkeys(manifest.task for manifest in manifests)),
        "runtime": extra,
    }
    settings["description"] = f"file: ./{README}"
    settings["envs"] += [{"name": "CONVMAE_RUNTIME", "value": extra}] if extra in RUNTIMES else []
    bentofile.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (context / README).write_text(readme(manifests), encoding="utf-8")


def readme(manifests: Sequence[Manifest]) -> str:
    """What people read of a bento: its models, its routes, and how to ask it."""
    served = {manifest.task for manifest in manifests}
    lines = ["# ConvMAE server", "", "| model | task | variant | classes | input | licence of its weights |"]
    lines.append("|---|---|---|---|---|---|")
    for manifest in manifests:
        size = " x ".join(map(str, manifest.input.shape[1:]))
        cells = (manifest.name, manifest.task, manifest.variant, len(manifest.classes), size, manifest.licence.name)
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    lines += ["", "| route | |", "|---|---|"]
    for route in ROUTES:
        if route.task is None or route.task in served:
            lines.append(f"| `POST {route.path}` | {route.summary} |")
    first = next((route for route in ROUTES if route.task in served), ROUTES[-2])
    call = f"client.{first.name}({first.medium_name if first.medium_name == 'video' else 'image'}=Path('FILE'))"
    lines += ["", "```python", "import bentoml", "from pathlib import Path", ""]
    lines += ["client = bentoml.SyncHTTPClient('http://localhost:3000')", f"print({call})", "```", ""]
    lines += ["The page is at `/`, the whole interface at `/docs`. Settings are `CONVMAE_*` variables.", ""]
    return "\n".join(lines)


def _plain(cell: object) -> str:
    """A cell of a table that holds what a bundle's maker wrote: text, and no more of Markdown than that."""
    return re.sub(r"[^\w .,:;()/+-]", " ", str(cell))[:100]


def add_packages(requirements: Path, packages: Sequence[str]) -> None:
    """Adds to what a bento installs, in the versions and with the hashes of constraints.txt."""
    pinned = CONSTRAINTS.read_text(encoding="utf-8")
    with requirements.open("a", encoding="utf-8") as file:
        for package in packages:
            # a pin and, indented, its hashes
            file.writelines(re.findall(rf"^{re.escape(package)}==.*\n(?: .*\n)*", pinned, re.MULTILINE))


def _ignore(folder: str, names: list[str]) -> set[str]:
    left_out = set(shutil.ignore_patterns(*LEFT_OUT)(folder, names))
    return left_out | ({BUNDLES.name} if Path(folder) == BUNDLES.parent else set())


def main(options: Options) -> int:
    """Builds from the command line."""
    bundles = [bundle.resolve() for bundle in options.bundles] or list(default_bundles())
    tag = build(bundles, options.extra)
    print(f"built {tag}; start it with: bentoml serve {tag}")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m serving.build", description=__doc__)))
