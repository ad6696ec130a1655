"""What a server holds while and after it is sent hundreds of files that are made to cost much, of each kind.

    python -m benchmarks.hostile

Starts `python -m serving` with the model that ships and a video model of random weights, and posts every kind of
`tests.hostile.photos` and `tests.hostile.videos` to it over loopback, by as many clients as it has threads.
Memory is that of the server and all of its processes, each page counted once; before and after are read while nothing
is asked. Fails where the server answers 5xx or ends, where it holds more afterwards than before, or at any moment more
than decoding may take.
"""

import http.client
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import tyro

from benchmarks.processes import memory
from benchmarks.random_bundle import random_task, write_random_bundle
from benchmarks.serving import serve, write_photo
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import run_program
from serving.settings import SHIPPED_BUNDLE
from tests.hostile.photos import PHOTOS
from tests.hostile.videos import VIDEOS
from tests.video_files import make_video

PHOTO_PATH: Final = "/v1/classify"
VIDEO_PATH: Final = "/v1/classify-video"
GOOD_REQUESTS: Final = 20  # for each medium, before memory is first read
KEPT_BYTES: Final = 100_000_000  # that the server may hold more afterwards: what malloc keeps for each thread, and logs
BODIES_BYTES: Final = 200_000_000  # that may be there beside decoding: bodies, their copies, clips, answers
REQUEST_SECONDS: Final = 100.0  # so that a machine that is busy with other things is not taken for a fault
SAMPLE_SECONDS: Final = 0.02
SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class HostileConfig:
    """Posts files that are made to cost much, and measures what they cost."""

    video_bundle: Path | None = None  # None: VideoConvMAE-nano of random weights, made for this
    kind: str = ""  # only kinds with this in their names
    count: int = 200  # files of each kind
    seconds: float = 60.0  # after which no further file of a kind is sent
    clients: int = 2  # at the same time, and threads of the server
    decoding_bytes: int = 2_000_000_000  # that decoding may take
    decoding_seconds: float = 5.0  # that a video may take


@dataclass
class Kind:
    """What came of one kind of file."""

    name: str
    size: int  # bytes of the file
    statuses: Counter[str] = field(default_factory=Counter)
    worst_seconds: float = 0.0
    peak: int = 0  # bytes
    after: int = 0


class Server:
    """A running server.

    Args:
        pid: of its first process.
        port: on 127.0.0.1.
    """

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port

    def post(self, path: str, body: bytes) -> tuple[str, float]:
        """The status, or why there is none, and the seconds that it took."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            connection.request("POST", path, body=body)
            response = connection.getresponse()
            response.read()
            status = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        finally:
            connection.close()
        return status, time.perf_counter() - started

    def memory(self) -> int:
        """Bytes of all its processes, each page counted once."""
        return memory(self.pid)

    @contextmanager
    def watched(self, kind: Kind) -> Iterator[None]:
        """Notes the most memory meanwhile, and that after it."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(SAMPLE_SECONDS):
                kind.peak = max(kind.peak, self.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            time.sleep(SETTLE_SECONDS)
            kind.after = self.memory()


def run_kind(server: Server, name: str, path: str, body: bytes, config: HostileConfig) -> Kind:
    """Posts one file again and again."""
    kind = Kind(name, len(body))
    deadline = time.monotonic() + config.seconds
    lock = threading.Lock()

    def request(_: int) -> None:
        if time.monotonic() > deadline:
            return
        status, seconds = server.post(path, body)
        with lock:
            kind.statuses[status] += 1
            kind.worst_seconds = max(kind.worst_seconds, seconds)

    with server.watched(kind), ThreadPoolExecutor(config.clients) as clients:
        list(clients.map(request, range(config.count)))
    return kind


def measure(config: HostileConfig, server: Server, photo: bytes) -> list[str]:
    """Posts every kind and prints a line for each; sentences about what must not be."""
    video = make_video()
    for path, body in ((PHOTO_PATH, photo), (VIDEO_PATH, video)):
        for _ in range(GOOD_REQUESTS):
            status, _ = server.post(path, body)
            if status != "200":
                return [f"a good file was answered {status} on {path}"]
    time.sleep(SETTLE_SECONDS)
    before = server.memory()
    print(f"{'before':58} {'':>9} {before / 1e6:>8.0f} MB")
    print(f"{'kind':58} {'file MB':>9} {'peak MB':>8} {'after MB':>8} {'worst s':>8}  statuses")
    faults: list[str] = []
    every: list[tuple[str, str, Callable[[], bytes]]] = [
        *((PHOTO_PATH, name, make) for name, make in PHOTOS.items()),
        *((VIDEO_PATH, name, make) for name, make in VIDEOS.items()),
    ]
    for path, name, make in every:
        if config.kind not in name:
            continue
        kind = run_kind(server, name, path, make(), config)
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(kind.statuses.items()))
        print(
            f"{name:58} {kind.size / 1e6:>9.2f} {kind.peak / 1e6:>8.0f} {kind.after / 1e6:>8.0f} "
            f"{kind.worst_seconds:>8.2f}  {statuses}",
            flush=True,
        )
        faults += faults_of(kind, before, config)
    return faults


def faults_of(kind: Kind, before: int, config: HostileConfig) -> list[str]:
    """Sentences about what must not be, of one kind.

    Args:
        kind: what came of it.
        before: bytes of the server before the first hostile file.
        config: the bounds.
    """
    wrong = sorted(status for status in kind.statuses if not status.isdigit() or status >= "500")
    most = config.decoding_bytes + BODIES_BYTES
    faults = [f"{kind.name}: answered {status}" for status in wrong]
    if kind.peak > before + most:
        faults.append(f"{kind.name}: {(kind.peak - before) / 1e6:.0f} MB more than before, at most {most / 1e6:.0f}")
    if kind.after > before + KEPT_BYTES:
        faults.append(f"{kind.name}: {(kind.after - before) / 1e6:.0f} MB are kept, at most {KEPT_BYTES / 1e6:.0f}")
    return faults


def main(config: HostileConfig) -> int:
    """Measures, prints, and says whether memory stayed bounded and flat."""
    print(f"machine: {processor()}, {available_cores()} cores; server: {config.clients} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = config.video_bundle or folder / "video"
        if config.video_bundle is None:
            write_random_bundle(bundle, random_task("video-classification", "nano"), max_batch=2)
        photo = write_photo(folder / "photo.jpg").read_bytes()
        with serve(settings_of(config, bundle), folder) as (process, port):
            faults = measure(config, Server(process.pid, port), photo)
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


def settings_of(config: HostileConfig, bundle: Path) -> Mapping[str, str]:
    """Environment variables of the server."""
    return {
        "CONVMAE_BUNDLE": f"{SHIPPED_BUNDLE}:{bundle.resolve()}",
        "CONVMAE_THREADS": str(config.clients),
        "CONVMAE_MAX_DECODING_BYTES": str(config.decoding_bytes),
        "CONVMAE_VIDEO_DECODING_SECONDS": str(config.decoding_seconds),
        "CONVMAE_REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS),
    }


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(HostileConfig, prog="python -m benchmarks.hostile")))
