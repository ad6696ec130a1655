"""A process that is given videos to decode, and does what the video says instead."""

import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from serving.work import video_worker

MAGIC = b"\x1aE\xdf\xa3"  # of Matroska, so that the server takes it for a video


def video_that(does: str, pipe: Path | None = None) -> bytes:
    """A video that has the process that is to decode it do this.

    Args:
        does: "aborts", "takes all memory", "raises" or "never ends".
        pipe: one that the process opens first and holds as long as it lives.
    """
    return MAGIC + f"{does}\n{pipe or ''}".encode()


def misbehave(request: dict[str, Any], data: bytes) -> NoReturn:
    """In place of decoding."""
    does, _, name = data.removeprefix(MAGIC).decode().partition("\n")
    pipe = os.open(name, os.O_WRONLY) if name else None
    if does == "aborts":
        os.abort()
    if does == "raises":
        raise KeyError("this")
    if does == "takes all memory":
        np.ones(1 << 50)
    while True:
        assert pipe is None or pipe


if __name__ == "__main__":
    video_worker._decoded = misbehave
    video_worker.serve(socket.socket(fileno=int(sys.argv[1])))
