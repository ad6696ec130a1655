"""Opening a bundle: every promise of its manifest that files can break is checked before a graph is loaded.

A bundle may come from anywhere. Its files are data: they are regular files in its own folder, of the sizes and hashes
that the manifest gives, and nothing else in the folder is looked at. A hash says that a file is the one of this
manifest, not who made both. A runtime opens a graph by its name once more after it was checked, so whoever can write
into the folder meanwhile can put another one there: keep the folder to yourself.
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from convmae_deploy.bundle.manifest import KIT_NAME, MANIFEST_NAME, SCHEMA_VERSION, BundleFile, Manifest, StoredFile
from convmae_deploy.bundle.preprocessing import Size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import open_regular, read_regular, shortened

MAX_MANIFEST_BYTES = 16 * 2**20  # 100 000 classes with long names take half of it
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
MAX_WORDS = 500  # characters of what is wrong with a manifest, which repeats parts of it

logger = logging.getLogger("convmae_deploy")


class BundleError(ConvMAEError):
    """A bundle that cannot be used as it is."""


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest and files were found to be in order."""

    path: Path
    manifest: Manifest

    @property
    def default_file(self) -> str:
        """Name of the graph that is run unless another is asked for: the manifest's first."""
        return next(iter(self.manifest.files))

    def graph(self, file: str | None = None) -> tuple[Path, BundleFile]:
        """Path and description of one graph.

        Args:
            file: a name from the manifest; None for the default.

        Raises:
            BundleError: the manifest does not list `file`.
        """
        name = self.default_file if file is None else file
        if name not in self.manifest.files:
            listed = ", ".join(self.manifest.files)
            raise BundleError(f"bundle {self.path} has no graph {name!r}; choose one of {listed}")
        return self.path / name, self.manifest.files[name]

    def at(self, size: Size) -> "Bundle":
        """The same bundle for inputs of another size, see `Manifest.at`."""
        return Bundle(self.path, self.manifest.at(size))


def read_bundle(path: Path) -> Bundle:
    """Reads the manifest of the folder `path` and checks that each file is present and unchanged.

    Whether the manifest fits its task is not looked at here: see `convmae_deploy.tasks.load_bundle`.

    Warns through the logger "convmae_deploy" when the default graph was never verified against PyTorch, or failed.

    Raises:
        BundleError: with what was expected, what was found and what to do.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise BundleError(f"a bundle is a folder with a {MANIFEST_NAME}; found {found} at {path}, check the path")
    manifest = _read_manifest(path)
    for name, file in manifest.files.items():
        for part, expected in {name: file, **file.weights}.items():
            _check_file(path, part, expected)
    if manifest.conformance is not None:
        _check_file(path, KIT_NAME, manifest.conformance)
    if manifest.licence.file is not None and not file_inside(path, manifest.licence.file).is_file():
        raise BundleError(f"bundle {path} lacks {manifest.licence.file}, the licence of its weights; export it again")
    bundle = Bundle(path=path, manifest=manifest)
    numerics = manifest.files[bundle.default_file].numerics
    if numerics is None:
        logger.warning("%s of bundle %s was never verified against PyTorch", bundle.default_file, path)
    elif not numerics.passed:
        logger.warning("%s of bundle %s failed its verification against PyTorch", bundle.default_file, path)
    return bundle


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        raise BundleError(f"{folder} holds no {MANIFEST_NAME}, so it is no bundle; check the path")
    try:
        content = read_regular(file_inside(folder, MANIFEST_NAME), MAX_MANIFEST_BYTES)
        fields = strict_json(content)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} must be JSON, but it is not ({error}); export the bundle again") from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}, this release reads up to {SCHEMA_VERSION}; "
            "install a newer convmae_deploy"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise BundleError(f"{path} is not a valid manifest: {in_words(error)}; export the bundle again") from error


def strict_json(content: bytes) -> Any:
    """What JSON of a stranger says.

    Raises:
        ValueError, RecursionError: it is none, or has NaN, infinity or half of a character, which cannot be printed.
    """
    fields = json.loads(content.decode("utf-8"))
    json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return fields


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong with a manifest, and where, as a clause."""
    first: Any = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    words = f"{where}: {message}" if where else message
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]} ..."


def _check_file(folder: Path, name: str, expected: StoredFile) -> None:
    path = file_inside(folder, name)
    if not path.is_file():
        raise BundleError(f"bundle {folder} lacks {name}, which its manifest lists; copy or export it again")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest() if size == expected.bytes else ""
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if size != expected.bytes:
        raise BundleError(f"{path} must have {expected.bytes} bytes, found {size}; copy or export the bundle again")
    if digest != expected.sha256:
        raise BundleError(
            f"{path} must have the SHA-256 {expected.sha256}, found {digest}: it was changed; "
            "copy or export the bundle again"
        )


def file_inside(folder: Path, name: str) -> Path:
    """A file of a folder, of a bundle or a checkpoint, by the name that another file of it gives.

    Raises:
        BundleError: the name, or a link of that name, leads out of the folder.
    """
    # A plain name cannot leave the folder, whatever the platform's separators are, and says nothing to a terminal.
    if not re.fullmatch(FILE_NAME, name):
        raise BundleError(f"{folder} names a file {shortened(name)}; only plain file names are allowed")
    path = folder / name
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BundleError(f"{path} is a link out of its folder; copy the folder with what its links lead to")
    return path
