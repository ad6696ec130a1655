"""The versions of what makes graphs."""

import platform
from importlib.metadata import version

import torch

import convmae_deploy
from convmae_deploy.backends.onnxruntime_backend import VERSION

TOOLS = ("onnx", "onnxscript", "timm", "numpy", "pillow")


def tool_versions() -> dict[str, str]:
    """The versions that made the graph."""
    return {
        "convmae_deploy": convmae_deploy.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, which the package's metadata may lack
        "onnxruntime": VERSION,
        **{tool: version(tool) for tool in TOOLS},
    }
