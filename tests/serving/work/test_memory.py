"""What decoders may hold together, and that nothing of a failed request stays."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from convmae_deploy.media.images import DecodedImage, ImageError, decode_image, decoding_bytes
from serving.api import photos
from serving.errors import ClientGone, forget_locals
from serving.work.memory import DecodingMemory
from serving.work.pool import Ticket
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import blank_png, jpeg


class Pixels:
    """Something large."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is gone is gone because nothing refers to it, and not because Python looked for cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_bytes_are_given_back_however_the_work_ends() -> None:
    memory = DecodingMemory(100)
    with memory.share(Ticket()) as take:
        take(60)
        assert memory.taken == 60
    with pytest.raises(ImageError), memory.share(Ticket()) as take:
        take(100)
        raise ImageError("image_corrupt", "no")
    assert memory.taken == 0


def test_who_needs_more_than_is_left_waits_and_nobody_overtakes_it() -> None:
    memory, order = DecodingMemory(100), []
    waiting = threading.Semaphore(0)

    class Job(Ticket):
        def when_abandoned(self, stop: Any) -> None:
            super().when_abandoned(stop)
            waiting.release()

    def work(size: int) -> None:
        with memory.share(Job()) as take:
            take(size)
            order.append(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in (90, 5)]
    with memory.share(Ticket()) as take:
        take(50)
        for thread in threads:
            thread.start()
            waiting.acquire()
        assert order == [] and memory.taken == 50  # 5 would fit, and its turn is after that of 90
    for thread in threads:
        thread.join()
    assert order == [90, 5] and memory.taken == 0


def test_a_job_that_is_given_up_waits_no_longer_and_takes_nothing() -> None:
    memory, job = DecodingMemory(100), Ticket()
    ended: list[type[BaseException]] = []
    waiting = threading.Event()

    def work() -> None:
        try:
            with memory.share(job) as take:
                waiting.set()
                take(60)
        except ClientGone:
            ended.append(ClientGone)

    with memory.share(Ticket()) as take:
        take(50)
        thread = threading.Thread(target=work)
        thread.start()
        waiting.wait()
        job.abandon()
        thread.join()
        assert ended == [ClientGone] and memory.taken == 50
    with memory.share(Ticket()) as take:
        take(100)  # the place in the queue is free again


def test_a_photo_that_needs_more_memory_than_there_is_gets_413(make_client: ClientFactory) -> None:
    data = blank_png(400)  # a JPEG would be decoded at half its size
    need = decoding_bytes("PNG", 400 * 400, len(data))
    client = make_client(max_decoding_bytes=need - 1)
    answer = client.post("/v1/classify", content=data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "image_too_large")
    assert f"{need} bytes of memory" in answer.json()["error"]["message"]
    assert make_client(max_decoding_bytes=need).post("/v1/classify", content=data).status_code == 200


def test_what_a_photo_takes_is_counted_until_the_next_one_is_decoded(
    make_client: ClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(max_decoding_bytes=100_000_000)
    memory: DecodingMemory = client.app.state.api.inference.memory  # type: ignore[attr-defined]
    seen: list[int] = []

    def decode(data: bytes, **options: Any) -> DecodedImage:
        before = memory.taken
        decoded = decode_image(data, **options)
        seen.append(memory.taken - before)
        assert before == 0
        return decoded

    monkeypatch.setattr(photos, "decode_image", decode)
    files = [("file", jpeg(96, 64)), ("file", jpeg(48, 32))]
    assert client.post("/v1/classify", files=files).status_code == 200
    assert len(seen) == 2 and seen[0] > seen[1] > 0 and memory.taken == 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: ImageError("image_corrupt", "no"), RuntimeError, MemoryError])
@pytest.mark.usefixtures("no_collection")
def test_nothing_of_a_failed_request_stays(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception]
) -> None:
    left: list[weakref.ref[Pixels]] = []

    def decode(data: bytes, **options: Any) -> None:
        pixels = Pixels()
        left.append(weakref.ref(pixels))
        try:
            raise KeyError(len(data))
        except KeyError as cause:
            raise make() from cause

    monkeypatch.setattr(photos, "decode_image", decode)
    for _ in range(3):
        assert client.post("/v1/classify", content=jpeg()).status_code in (400, 500)
    assert len(left) == 3 and not any(reference() for reference in left)


@pytest.mark.slow
@pytest.mark.usefixtures("no_collection")
def test_an_error_forgets_what_was_in_the_frames_of_all_that_led_to_it() -> None:
    left: list[weakref.ref[Pixels]] = []

    def hold() -> Pixels:
        pixels = Pixels()
        left.append(weakref.ref(pixels))
        return pixels

    def first() -> None:
        pixels = hold()
        raise KeyError(id(pixels))

    def second() -> None:
        pixels = hold()
        try:
            first()
        except KeyError as error:
            raise ValueError(id(pixels)) from error

    def third() -> None:
        pixels = hold()
        try:
            second()
        except ValueError:
            raise RuntimeError(id(pixels)) from None

    with pytest.raises(RuntimeError) as caught:
        third()
    assert all(reference() for reference in left)
    forget_locals(caught.value)
    assert len(left) == 3 and not any(reference() for reference in left)
    assert caught.value.__traceback__ is not None  # its lines are still there, for the log
