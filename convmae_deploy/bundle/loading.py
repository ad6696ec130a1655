"""Opening a bundle: every promise of its manifest that files can break is checked before a graph is loaded."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from convmae_deploy.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, BundleFile, Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of

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
    manifest = _read_manifest(path / MANIFEST_NAME)
    for name, file in manifest.files.items():
        _check_file(path, name, file)
    if manifest.licence.file is not None and not _inside(path, manifest.licence.file).is_file():
        raise BundleError(f"bundle {path} lacks {manifest.licence.file}, the licence of its weights; export it again")
    bundle = Bundle(path=path, manifest=manifest)
    numerics = manifest.files[bundle.default_file].numerics
    if numerics is None:
        logger.warning("%s of bundle %s was never verified against PyTorch", bundle.default_file, path)
    elif not numerics.passed:
        logger.warning("%s of bundle %s failed its verification against PyTorch", bundle.default_file, path)
    return bundle


def _read_manifest(path: Path) -> Manifest:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.parent} holds no {MANIFEST_NAME}, so it is no bundle; check the path") from None
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
        raise BundleError(f"{path} is not a valid manifest: {_in_words(error)}; export the bundle again") from error


def _in_words(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _check_file(folder: Path, name: str, expected: BundleFile) -> None:
    path = _inside(folder, name)
    if not path.is_file():
        raise BundleError(f"bundle {folder} lacks {name}, which its manifest lists; copy or export it again")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BundleError(f"{path} must have {expected.bytes} bytes, found {size}; copy or export the bundle again")
    digest = sha256_of(path)
    if digest != expected.sha256:
        raise BundleError(
            f"{path} must have the SHA-256 {expected.sha256}, found {digest}: it was changed; "
            "copy or export the bundle again"
        )


def _inside(folder: Path, name: str) -> Path:
    # A plain name cannot leave the folder, whatever the platform's separators are.
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise BundleError(f"the manifest of {folder} names the file {name!r}; only plain file names are allowed")
    return folder / name
