"""What decoders may hold, all of them together."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.work.pool import Ticket


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
    def share(self, job: Ticket) -> Iterator[Callable[[int], None]]:
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

    def _take(self, size: int, job: Ticket) -> None:
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
