"""TensorRT and TensorRT for RTX: two packages with the same interface, imported where they are needed."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from convmae_deploy.errors import missing_extra
from convmae_deploy.printing import printable

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Severity = Literal["error", "warning", "info", "verbose"]

TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_SEVERITIES: tuple[Severity, ...] = ("error", "error", "warning", "info", "verbose")  # the first is an internal error


def is_installed(flavour: Flavour) -> bool:
    """Whether the package is there; it is not imported, as that loads a gigabyte of libraries."""
    return importlib.util.find_spec(_MODULES[flavour]) is not None


def import_tensorrt(flavour: Flavour) -> Any:
    """The package.

    Raises:
        ConvMAEError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(_MODULES[flavour])
    except ImportError as error:
        package, reason = _MODULES[flavour], " ".join(str(error).split())  # it may be there and not load
        raise missing_extra(TITLES[flavour], f"the package {package} ({reason})", flavour) from error


def cache_folder() -> Path:
    """Where TensorRT's measurements and ONNX Runtime's engines are kept for the next time; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convmae_deploy" / "tensorrt"


def make_logger(tensorrt: Any, on_message: Callable[[Severity, str], None]) -> Any:
    """An object that TensorRT logs to; it must outlive all that is made with it.

    Args:
        tensorrt: the package.
        on_message: gets each message, on any thread.
    """

    def log(_: Any, severity: Any, message: str) -> None:
        on_message(_SEVERITIES[int(severity)], printable(" ".join(message.split())))  # it names parts of the graph

    # made here and so, as its base class is in a package that may not be installed
    return type("Log", (tensorrt.ILogger,), {"log": log})()
