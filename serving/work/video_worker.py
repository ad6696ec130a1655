"""The process in which one video is decoded, with bounds that the kernel holds; `python -m serving.work.video_worker`.

What FFmpeg allocates cannot be foretold from a file's header: indexes, tables, tags and queues of ten containers, and
the pictures of twenty codecs. So each video is decoded in a process of its own that may take so much memory and so much
time and no more, and that ends with its video, whatever happens. It costs milliseconds, as it is a copy of one that has
imported everything, is given a socket for each video, and never decodes.

A message is its length in eight bytes, then its content; a number of messages goes one way, then the answer comes.
"""

import contextlib
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError
from convmae_deploy.media.video_file import import_av, open_video
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.clips import ClipViews, video_clips

LENGTH: Final = struct.Struct(">Q")
READY: Final = "ready"  # what the first process says once it can be given videos
TOO_LARGE: Final = "decoding_too_large"
BROKEN: Final = ("video_corrupt", "video_truncated")
ROOM_BYTES: Final = 64 << 20  # more than a picture of any size that is accepted takes
LEAST_BYTES: Final = 4 << 20  # with less FFmpeg crashes instead of refusing
ANSWER_BYTES: Final = 16 << 20  # what to say why there are no clips may take


def send(connection: socket.socket, content: bytes | memoryview) -> None:
    """Sends one message."""
    connection.sendall(LENGTH.pack(len(content)))
    connection.sendall(content)


def receive(connection: socket.socket, most: int) -> bytearray:
    """Receives one message.

    Raises:
        EOFError: the other end has gone, or says more than `most` bytes.
    """
    (size,) = LENGTH.unpack(receive_exactly(connection, LENGTH.size))
    if size > most:
        raise EOFError
    return receive_exactly(connection, size)


def receive_exactly(connection: socket.socket, size: int) -> bytearray:
    """Receives so many bytes.

    Raises:
        EOFError: the other end has gone before.
    """
    content = bytearray(size)
    receive_into(connection, memoryview(content))
    return content


def receive_into(connection: socket.socket, content: memoryview) -> None:
    """Fills the buffer.

    Raises:
        EOFError: the other end has gone before.
    """
    while content:
        count = connection.recv_into(content)
        if count == 0:
            raise EOFError
        content = content[count:]


def decode(connection: socket.socket) -> None:
    """Receives one request, and answers it with clips or with the reason why there are none."""
    request = json.loads(receive(connection, 1 << 20))
    kept = mmap.mmap(-1, ANSWER_BYTES)
    _bound(request["memory"])
    try:
        data = bytes(receive(connection, request["limits"]["max_bytes"]))
        _end_with(connection, request["seconds"])
        if request["memory"] < LEAST_BYTES:
            raise MemoryError
        reply, clips = _decoded(request, data)
    except (MemoryError, VideoError) as error:
        kept.close()  # what the sentence needs
        reply, clips = _refusal(error, request["memory"]), None
    except EOFError:
        raise
    except Exception:
        traceback.print_exc()  # into the server's log
        reply, clips = {"failure": "see the lines above in the log"}, None
    _go_on_without(connection)
    send(connection, json.dumps(reply).encode())
    if clips is not None:
        send(connection, clips.data.cast("B"))


def _decoded(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], "np.ndarray[Any, Any]"]:
    sampling = ClipPreprocessing.model_validate(request["sampling"])
    limits, views = VideoLimits(**request["limits"]), ClipViews(**request["views"])
    with open_video(data, limits=limits) as video:
        clips = video_clips(video, sampling, views)
        return {"frames": len(video), "seconds": video.seconds}, clips


def _refusal(error: MemoryError | VideoError, memory: int) -> dict[str, Any]:
    if isinstance(error, VideoError) and not isinstance(error.__cause__, MemoryError):
        # Some of FFmpeg's decoders say that data is broken where they were given no memory.
        if error.code not in BROKEN or not _is_full(memory):
            return {"code": error.code, "message": str(error)}
    message = f"decoding the video takes more than {memory} bytes of memory; send a smaller one"
    return {"code": TOO_LARGE, "message": message}


def _is_full(memory: int) -> bool:
    """Whether this process has taken nearly all that it may, so that the next picture had no room."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPeak:"))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return memory <= ROOM_BYTES or most - 1024 * int(line.split()[1]) <= ROOM_BYTES


def _bound(memory: int) -> None:
    """Lets this process have so many bytes more than it has, and leave no file behind should it crash."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(connection: socket.socket, seconds: float) -> None:
    """Has the kernel end this process when its time is over or the other end of the socket is closed."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):  # nothing comes any more, but that it has been closed meanwhile
        connection.recv(1, socket.MSG_DONTWAIT)
        raise EOFError


def _go_on_without(connection: socket.socket) -> None:
    """The answer is there: what is sent now would be a signal too."""
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) & ~os.O_ASYNC)


def serve(control: socket.socket) -> None:
    """Forks a process for each socket that comes, until the server has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # both go to all processes of a terminal or a unit, and the server
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # finishes what it has begun
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a process ended
    import_av()
    send(control, READY.encode())
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            _work(socket.socket(fileno=descriptors[0]))
        os.close(descriptors[0])


def _work(connection: socket.socket) -> NoReturn:
    try:
        decode(connection)
    except (EOFError, OSError):  # the server does not wait any more
        pass
    finally:
        os._exit(0)  # nothing of the process that this is a copy of is to be done twice


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
