"""Videos are decoded in processes of their own, which `serving.work.video_worker` is; this is the server's end."""

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError, corrupt
from convmae_deploy.media.video_limits import VideoLimits, too_slow
from convmae_deploy.tasks.clips import ClipViews
from serving.work.pool import Ticket
from serving.work.video_worker import LENGTH, READY, receive, receive_exactly, receive_into, send

logger = logging.getLogger("convmae_serving")

WORKER: Final = "serving.work.video_worker"
START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 1.0  # beyond its time, for a sentence of its own instead of the kernel's end
MAX_REPLY_BYTES: Final = 1 << 16
# One thread each: a library that makes its own would have them in the process that is copied.
ONE_THREAD: Final = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True, kw_only=True)
class DecodedVideo:
    """A video's clips and what its file says."""

    clips: InputArray  # (V, 3, T, H, W)
    frames: int
    seconds: float


class VideoProcesses:
    """Starts a process for each video; the one that they are copies of starts with the first video.

    Args:
        worker: the module that the processes run.
    """

    def __init__(self, worker: str = WORKER) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def decode(
        self,
        data: bytes,
        sampling: ClipPreprocessing,
        views: ClipViews,
        limits: VideoLimits,
        *,
        memory: int,
        job: Ticket,
    ) -> DecodedVideo:
        """Decodes a video's clips.

        Args:
            data: the file.
            sampling: which frames make a clip, and what becomes of them.
            views: how often to look.
            limits: what may be decoded, and for how long.
            memory: bytes that the process may take for it.
            job: ends the process when it is given up.

        Raises:
            VideoError: the video cannot be decoded within its limits.
            RuntimeError: the process failed, which is no fault of the video.
        """
        shape = (views.total, 3, sampling.frames, *sampling.crop)
        request = {
            "sampling": sampling.model_dump(mode="json"),
            "views": dataclasses.asdict(views),
            "limits": dataclasses.asdict(limits),
            "memory": memory,
            "seconds": limits.decoding_seconds + GRACE_SECONDS,
        }
        ending = time.monotonic() + limits.decoding_seconds
        with self._connection(limits.decoding_seconds + 2 * GRACE_SECONDS) as connection:

            def stop() -> None:
                with contextlib.suppress(OSError):  # it has ended already
                    connection.shutdown(socket.SHUT_RDWR)

            job.when_abandoned(stop)
            try:
                send(connection, json.dumps(request).encode())
                send(connection, data)
                reply = json.loads(receive(connection, MAX_REPLY_BYTES))
                clips = np.empty(shape, dtype=sampling.dtype)
                if "frames" in reply:
                    _receive_array(connection, clips)
            except (EOFError, OSError):
                job.check()
                raise _ended(late=time.monotonic() > ending, seconds=limits.decoding_seconds) from None
        if "code" in reply:
            raise VideoError(reply["code"], reply["message"])
        if "frames" not in reply:
            raise RuntimeError(f"a process that was to decode a video failed: {reply['failure']}")
        return DecodedVideo(clips=clips, frames=reply["frames"], seconds=reply["seconds"])

    def close(self) -> None:
        """Ends the process that copies itself; those that decode end with their videos."""
        with self._lock:
            if self._control is not None and self._process is not None:
                self._control.close()
                self._process.wait()
            self._control = self._process = None

    @contextlib.contextmanager
    def _connection(self, seconds: float) -> Iterator[socket.socket]:
        """A socket whose other end a new process has."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._hand_over(theirs)
            theirs.close()
            ours.settimeout(seconds)
            yield ours

    def _hand_over(self, connection: socket.socket) -> None:
        with self._lock:
            if self._control is not None:
                try:
                    socket.send_fds(self._control, [b"\0"], [connection.fileno()])
                    return
                except OSError:
                    logger.warning("the process that starts those that decode videos had ended; there is a new one")
                    self._control.close()
            self._control, self._process = _start(self._worker)
            socket.send_fds(self._control, [b"\0"], [connection.fileno()])


@cache
def video_processes() -> VideoProcesses:
    """Those of this server."""
    processes = VideoProcesses()
    atexit.register(processes.close)
    return processes


def _start(worker: str) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Starts the process that is copied for each video, and waits until it can be.

    Raises:
        RuntimeError: it does not start; its own words are in the log.
    """
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", worker, str(theirs.fileno())],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    ours.settimeout(START_SECONDS)
    try:
        receive(ours, len(READY))
    except (EOFError, OSError):
        ours.close()
        process.kill()
        process.wait()
        raise RuntimeError("the process that decodes videos does not start; see the lines above in the log") from None
    ours.settimeout(None)
    return ours, process


def _receive_array(connection: socket.socket, array: InputArray) -> None:
    """Fills an array with the content of one message.

    Raises:
        EOFError: the other end has gone before, or means another size.
    """
    (size,) = LENGTH.unpack(receive_exactly(connection, LENGTH.size))
    if size != array.nbytes:
        raise EOFError
    receive_into(connection, array.data.cast("B"))


def _ended(*, late: bool, seconds: float) -> VideoError:
    """Why a process has ended without an answer, as far as it can be known: the kernel does not tell us."""
    if late:
        return too_slow(seconds)
    return corrupt("the decoder ended on it without a word")
