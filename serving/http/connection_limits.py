"""How many connections there may be, what answers to them may wait, and which one has to go when there is no room.

A connection costs a file descriptor, and a process that has none left answers nobody. So silent clients may not take
them all: a connection that holds a request is never closed for another one, and of the rest the oldest goes first.

An answer that its client has not read yet is in memory. Where that is too much together, clients that read slowly go,
the slowest first; and while the others read as fast as their line can, new requests are refused until there is room.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

logger = logging.getLogger("convmae_serving")

MOST_DESCRIPTORS: Final = 65_536  # some systems allow a thousand million, which nothing here needs
SLOW: Final = 10  # times the least rate; clients below that go first where there is too much unread
RESERVED_DESCRIPTORS: Final = 64  # for models, libraries, the log, and connections that are being closed


class Held(Protocol):
    """A connection as this module sees it."""

    def drop(self) -> bool:
        """Closes it; False where it still has an answer to send, and stays."""
        ...

    def unread_bytes(self) -> int:
        """Bytes of answers that it holds because its client has not read them."""
        ...

    def abort(self) -> None:
        """Closes it at once, and throws away what its client has not read."""
        ...


class Connections:
    """The connections of one server.

    Args:
        most: how many there may be at once.
        keep_alive_seconds: how long one may stay without a request.
        most_unread_bytes: bytes of answers that clients have not read, those of all connections together.
        least_bytes_per_second: at which a client must read its answer.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        most: int = 2000,
        keep_alive_seconds: float = 75.0,
        most_unread_bytes: int = 256_000_000,
        least_bytes_per_second: float = 5_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.keep_alive_seconds = keep_alive_seconds
        self.most_unread_bytes = most_unread_bytes
        self.least_bytes_per_second = least_bytes_per_second
        self._clock = clock
        self._unread: dict[Held, tuple[int, float]] = {}  # how many bytes waited for their client, and since when
        # In the order in which they began to wait, so that the first has waited longest.
        self._silent: dict[Held, None] = {}  # no whole request has come yet
        self._between: dict[Held, None] = {}  # the last request is answered, the next has not come
        self._busy: set[Held] = set()  # a request is being received or answered

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._silent) + len(self._between) + len(self._busy)

    def fit(self, descriptors: int) -> None:
        """Lowers the limit to what so many file descriptors allow."""
        self.most = min(self.most, descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2))

    def add(self, connection: Held) -> bool:
        """Takes a new connection in; False where each of the others holds a request, and this one has to go."""
        if self.count >= self.most and not self._make_room():
            logger.warning("all %d connections hold requests; a new one was refused", self.most)
            return False
        self._silent[connection] = None
        return True

    def busy(self, connection: Held) -> None:
        """A request of this connection has come: it stays until that is answered."""
        self.remove(connection)
        self._busy.add(connection)

    def idle(self, connection: Held) -> None:
        """All requests of this connection are answered."""
        self.remove(connection)
        self._between[connection] = None

    def remove(self, connection: Held) -> None:
        """The connection is no longer there."""
        self._silent.pop(connection, None)
        self._between.pop(connection, None)
        self._busy.discard(connection)

    def begin_unread(self, connection: Held) -> None:
        """Its client reads more slowly than the answer was written; where there is too much of that, slow ones go."""
        self._unread[connection] = (connection.unread_bytes(), self._clock())
        while not self.has_room():
            slowest = min(self._unread, key=self._bytes_per_second)
            if self._bytes_per_second(slowest) >= SLOW * self.least_bytes_per_second:
                return
            self.end_unread(slowest)
            slowest.abort()
            message = "answers of more than %d bytes are not read yet; the slowest client was disconnected"
            logger.warning(message, self.most_unread_bytes)

    def has_room(self) -> bool:
        """Whether another request may be answered: clients have read so much of the answers before it."""
        return not self._unread or sum(one.unread_bytes() for one in self._unread) <= self.most_unread_bytes

    def end_unread(self, connection: Held) -> None:
        """Its client has read nearly all, or is gone."""
        self._unread.pop(connection, None)

    def _bytes_per_second(self, connection: Held) -> float:
        """What a client has read of its answer, in the time since; those that have only begun come last."""
        size, since = self._unread[connection]
        seconds = self._clock() - since
        return (size - connection.unread_bytes()) / seconds if seconds > 0 else math.inf

    def _make_room(self) -> bool:
        """Drops the connection that has waited longest, of those that never asked for anything if there are any."""
        waiting: Iterable[Held]
        for waiting in (self._silent, self._between):
            dropped = next((connection for connection in waiting if connection.drop()), None)
            if dropped is not None:
                self.remove(dropped)
                logger.warning("all %d connections are taken; one without a request was closed", self.most)
                return True
        return False


def raise_descriptor_limit() -> int:
    """Lets this process open as many files and connections as the system allows it; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted_descriptors(soft, hard)
    if wanted != soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # macOS has a limit of its own below the one it names
            return soft
    return wanted


def wanted_descriptors(soft: int, hard: int) -> int:
    """The soft limit to ask for: the hard one or what is ever useful, and never less than there is.

    Args:
        soft: descriptors that the process may use now.
        hard: descriptors that it may ask for; as with `soft`, `resource.RLIM_INFINITY` where nothing bounds it.
    """
    usable = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    return usable if soft == resource.RLIM_INFINITY else max(soft, usable)
