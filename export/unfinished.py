"""What an interrupted export had finished, kept for the next one: files that were made and verified, one by one.

They wait in OUT.unfinished, with what they were made from. The same export takes them over and goes on behind them;
another one makes them anew. When an export ends by itself, done or refused, the folder is gone.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from convmae_deploy.bundle.manifest import BundleFile
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import link_or_copy, read_json, sha256_of

SUFFIX = ".unfinished"


@dataclass(frozen=True)
class Unfinished:
    """The folder, for one export."""

    folder: Path
    made_from: str  # a digest: a file that was made from anything else is not taken

    def take(self, name: str, directory: Path) -> BundleFile | None:
        """Puts a file that was finished before into the bundle's folder; None: there is none that is whole."""
        if not self._is_own():
            return None
        try:
            content = read_json(self.folder / f"{name}.json")
            file = BundleFile.model_validate_json(json.dumps(content["file"]))
        except (ConvMAEError, ValidationError, KeyError, TypeError):
            return None
        parts = {name: file, **file.weights}
        if content.get("made_from") != self.made_from:
            return None
        for part, expected in parts.items():
            path = self.folder / part
            if not path.is_file() or sha256_of(path) != expected.sha256:
                return None
        for part in parts:
            link_or_copy(self.folder / part, directory / part)
        return file

    def _is_own(self) -> bool:
        """Whether it is there, and nobody else can have put anything into it."""
        if not self.folder.is_dir() or self.folder.is_symlink():
            return False
        status = self.folder.stat()
        return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)

    def keep(self, name: str, directory: Path, file: BundleFile) -> None:
        """Keeps a file that has passed; what describes it comes last."""
        if not self._is_own():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700, parents=True)
        for part in (name, *file.weights):
            (self.folder / part).unlink(missing_ok=True)
            link_or_copy(directory / part, self.folder / part)
        content = {"made_from": self.made_from, "file": file.model_dump(mode="json")}
        (self.folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def unfinished(out: Path, facts: Mapping[str, object]) -> Iterator[Unfinished]:
    """The folder beside an output; it stays where the block is interrupted (Ctrl-C, SIGTERM, a kill).

    Args:
        out: the bundle.
        facts: all that decides what its files hold.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    folder = out.with_name(out.name + SUFFIX)
    try:
        yield Unfinished(folder, digest)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_files_in(directory: Path) -> Iterator[None]:
    """Has temporary files of the block, of libraries too, in a folder below another one, which is gone at the end.

    What a killed process leaves of them then goes with the bundle's working folder, by the next export to that place.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
