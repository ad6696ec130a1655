"""The work of one classification request, for servers of others."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.serving import default_settings, make_work
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.classification import Classifier

PATH: Final = "/v1/classify"


def open_work() -> Callable[[bytes], bytes]:
    """The work of a request with the bundle of the environment, one thread of ONNX Runtime."""
    predictor = open_predictor(Path(os.environ["CONVMAE_BUNDLE"]), device="cpu", threads=1)
    assert isinstance(predictor, Classifier)
    return make_work(predictor, default_settings())
