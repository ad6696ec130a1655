"""ConvMAE (arXiv 2205.03892) from pixels to production: the library behind training, export and serving.

    from convmae_deploy import load

    model = load("bundles/mine")
    model("a.jpg")              # what the task gives: classes, objects, labels of pixels, features
    model(["a.jpg", "b.png"])   # the same of each
    model.features(["a.jpg"])   # of classifiers too: arrays with a row for each

`FeatureExtractor` gives features in batches to somebody else's pipeline. Nothing heavy is imported before one of these
is used.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from convmae_deploy.errors import ConvMAEError

if TYPE_CHECKING:
    from convmae_deploy.backends.base import Device
    from convmae_deploy.backends.runtimes import AutoName, RuntimeName
    from convmae_deploy.extraction.extractor import FeatureExtractor
    from convmae_deploy.tasks.base import Predictor

__version__ = "0.1.0"
__all__ = ["ConvMAEError", "FeatureExtractor", "__version__", "load"]

# ONNX Runtime reports its use to its maker unless this is set before it is first imported. So it stands here, before
# any module of the library and, as each program's package imports this one first, of the programs. Processes that they
# start inherit it. What the user has set, "0" too, stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(
    bundle: str | Path,
    *,
    device: "Device" = "auto",
    threads: int | None = None,
    runtime: "RuntimeName | AutoName | None" = None,
    file: str | None = None,
) -> "Predictor":
    """Opens a bundle and starts its graph.

    Args:
        bundle: its folder.
        device: "auto" (a GPU that works, else the CPU), "cpu" or "cuda".
        threads: CPU threads for one run; None leaves the number to the runtime.
        runtime: what runs the graph; None is ONNX Runtime. "auto" is what `python -m export.benchmark --choose` wrote
            beside the bundle on this machine, file included; a warning says what that is, or why it is not followed.
        file: which graph of the bundle; None is its first.

    Returns:
        A model to be called with a photo or a video, or a list of them: paths, the content of files, or images of
        Pillow's. What it gives depends on its task, see `convmae_deploy.tasks`. It may be called from several threads.

    Raises:
        ConvMAEError: the bundle is not in order, or the runtime or the device does not start.
    """
    from convmae_deploy.backends.runtimes import RuntimeOptions
    from convmae_deploy.tasks import open_predictor

    options = RuntimeOptions(runtime=runtime, file=file)
    return open_predictor(Path(bundle), device=device, threads=threads, options=options)


def __getattr__(name: str) -> object:
    """`FeatureExtractor`, which is imported when it is first asked for."""
    if name == "FeatureExtractor":
        from convmae_deploy.extraction.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
