"""What decoders may hold, all of them together, and what stays of a request that failed: nothing."""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Waiter(Protocol):
    """A job that may be given up while it waits: `serving.pool.Ticket`."""

    abandoned: bool

    def check(self) -> None:
        """Raises when it has been given up."""

    def when_abandoned(self, stop: Callable[[], None]) -> None:
        """Has `stop` called once it is given up."""


class DecodingMemory:
    """Bytes that decoders may take, all of them together; who needs more than is left waits, one after the other.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def share(self, job: Waiter) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes for a job, and waits for them; at the end they are given back.

        It raises what `job.check` raises where the job is given up before it has them. A job takes no more than `most`,
        and once: who waits while holding a part may wait for ever.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            self._take(size, job)
            held += size

        try:
            yield take
        finally:
            with self._changed:
                self.taken -= held
                self._changed.notify_all()

    def _take(self, size: int, job: Waiter) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                job.when_abandoned(self._look_again)
                self._changed.wait_for(
                    lambda: job.abandoned or (self._waiting[0] is turn and self.taken + size <= self.most)
                )
                job.check()
                self.taken += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()


def forget_locals(error: BaseException) -> None:
    """Empties the frames that an exception came through, so that it holds nothing of the request that it ends.

    Without that, a photo or a video lives on with the error that it was refused with, and with those that led to it,
    until Python looks for cycles of objects. The lines of the traceback stay, for the log.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += (one.__cause__, one.__context__)
