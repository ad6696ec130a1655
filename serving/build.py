"""Builds a bento: `python -m serving.build [BUNDLE ...]`.

The bento holds `serving/`, `convmae_deploy/` and the bundles named (by default those in `serving/bundles`), nothing
else. It is built from a temporary folder with just these in it, so that what lies about in a checkout cannot slip in.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.printing import printable
from convmae_deploy.tasks import load_bundle, task_of
from serving.settings import BUNDLES, default_bundles

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("convmae_deploy", "serving")
LEFT_OUT: Final = ("__pycache__", "*.pyc")
BENTOFILE: Final = Path("serving/bentofile.yaml")
REQUIREMENTS: Final = Path("serving/requirements.txt")
CONSTRAINTS: Final = ROOT / "constraints.txt"
VIDEO_PACKAGES: Final = ("av",)  # the extra `video`, for bentos with a video model only: it is 100 MB


def build(bundles: Sequence[Path]) -> str:
    """Builds a bento and stores it in BentoML's store.

    Args:
        bundles: bundle folders; the first of each task becomes the default of that task.

    Returns:
        The bento's tag, `convmae:VERSION`.

    Raises:
        ConvMAEError: a bundle is not in order, or BentoML fails.
    """
    has_videos = any([task_of(load_bundle(bundle).manifest).MEDIUM == "video" for bundle in bundles])
    with tempfile.TemporaryDirectory(prefix="convmae-bento-") as folder:
        context = Path(folder)
        copy_sources(context, bundles)
        if has_videos:
            add_packages(context / REQUIREMENTS, VIDEO_PACKAGES)
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


def main() -> int:
    """Builds from the command line; 1 with one sentence on failure."""
    try:
        tag = build([Path(argument).resolve() for argument in sys.argv[1:]] or default_bundles())
    except ConvMAEError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    print(f"built {tag}; start it with: bentoml serve {tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
