"""BentoML's client as tests use it."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import bentoml


@contextlib.contextmanager
def connect(url: str) -> Iterator[Any]:
    """A client, whose folder is removed, which it leaves to the end of the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BentoML's own, where it is imported
        client = bentoml.SyncHTTPClient(url)
    with client:
        yield client
    client._temp_dir.cleanup()
