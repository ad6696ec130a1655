"""Models that come and go while the server runs, in the words of the Open Inference Protocol's repository extension.

A model is named, never a path: its folder is the one that CONVMAE_BUNDLE gives it, or the folder of that name in
CONVMAE_REPOSITORY. So whoever holds the admin key can serve what the machine's owner has put there, and no other file.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from convmae_deploy.bundle.manifest import MANIFEST_NAME, NAME_PATTERN
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import release_free_memory
from serving.api.models import Models, load_named, start_predictor
from serving.api.uploads import parse_json
from serving.errors import ApiError
from serving.settings import Settings

CLOSING_SECONDS: Final = 10.0  # that the last requests of a model may take before its memory is given back later


class Repository:
    """The models that there are and could be.

    Args:
        settings: where bundles are, and how models are opened.
        models: those that are loaded.
        changed: called with a model's name once it has been loaded anew or has gone.
    """

    def __init__(self, settings: Settings, models: Models, changed: Callable[[str], None]) -> None:
        self._settings = settings
        self._models = models
        self._changed = changed
        self._one = threading.Lock()  # one change after the other
        self._given: dict[str, Path] = {}  # folders of CONVMAE_BUNDLE by their models' names

    @property
    def busy(self) -> bool:
        """Whether a model is being loaded or let go."""
        return self._one.locked()

    def index(self) -> list[dict[str, Any]]:
        """Every model, by name: that it is loaded, or that it could be."""
        loaded = set(self._models)
        names = sorted(loaded | set(self._known()) | set(self._in_repository()))
        return [
            {
                "name": name,
                "version": "1",
                "state": "READY" if name in loaded else "UNAVAILABLE",
                "reason": "" if name in loaded else "not loaded",
            }
            for name in names
        ]

    def load(self, name: str) -> None:
        """Opens a model, runs it once, and lets it take the place of the one of its name; takes as long as that does.

        Raises:
            ApiError: 404, there is no such folder; 422, the bundle in it cannot be served. What was loaded stays.
        """
        with self._one:
            path = self._path(name)
            try:
                predictor = start_predictor(load_named(path, name), self._settings)
            except ConvMAEError as error:
                raise ApiError(422, "model_not_loaded", str(error), field="name") from None
            self._models.put({name: predictor})
            self._leave(name)

    def unload(self, name: str) -> None:
        """Lets go of a model; requests that have begun with it still end.

        Raises:
            ApiError: 404, it is not loaded.
        """
        with self._one:
            self._known()
            if name not in self._models:
                loaded = ", ".join(self._models) or "none"
                message = f"expected a loaded model ({loaded}), got {name[:80]!r}; see /v2/repository/index"
                raise ApiError(404, "unknown_model", message, field="name")
            self._models.remove(name)
            self._leave(name)

    def _leave(self, name: str) -> None:
        """Waits for the last request of a model that has left, and gives its memory back."""
        self._changed(name)
        self._models.wait_until_freed(CLOSING_SECONDS)
        release_free_memory()

    def _known(self) -> dict[str, Path]:
        """Folders that have been loaded by name; those of CONVMAE_REPOSITORY are looked up again each time."""
        for name, predictor in self._models.items():
            self._given.setdefault(name, predictor.bundle.path)
        return self._given

    def _in_repository(self) -> dict[str, Path]:
        folder = self._settings.repository
        if folder is None:
            return {}
        try:
            return {path.name: path for path in folder.iterdir() if _is_bundle(path)}
        except OSError:
            return {}

    def _path(self, name: str) -> Path:
        path = self._known().get(name) or self._in_repository().get(name)
        if path is None:
            names = ", ".join(entry["name"] for entry in self.index()) or "none"
            message = (
                f"expected a model of CONVMAE_BUNDLE or a folder of CONVMAE_REPOSITORY ({names}), got {name[:80]!r}; "
                "put the bundle there first"
            )
            raise ApiError(404, "unknown_model", message, field="name")
        return path


def check_request(body: bytes) -> None:
    """Refuses what Triton's clients may send with a name: a configuration or files, of which a folder has its own.

    Args:
        body: of the request; most are empty.

    Raises:
        ApiError: 400, it is no JSON object; 422, it holds more than `unload_dependents`.
    """
    if not body:
        return
    try:
        parameters = parse_json(body).get("parameters") or {}
        unknown = set(parameters) - {"unload_dependents"}
    except (ValueError, RecursionError, AttributeError, TypeError):
        message = "expected no body, or a JSON object with 'parameters', got other bytes; send none"
        raise ApiError(400, "invalid_json", message) from None
    if unknown:
        message = f"expected no parameters, as the model's folder says all about it, got {min(unknown)!r}; remove it"
        raise ApiError(422, "unknown_parameter", message, field="parameters")


def _is_bundle(path: Path) -> bool:
    return re.fullmatch(NAME_PATTERN, path.name) is not None and (path / MANIFEST_NAME).is_file()
