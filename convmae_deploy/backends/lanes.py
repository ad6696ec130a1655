"""Ways through a graph on a device, each with memory of its own, made when they are first needed."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Lane = TypeVar("Lane")


class Lanes(Generic[Lane]):
    """Hands lanes out, each to one caller at a time."""

    def __init__(self, make: Callable[[], Lane], most: int) -> None:
        """
        Args:
            make: a new lane.
            most: of them; more callers wait.
        """
        self._make = make
        self._idle: deque[Lane] = deque()
        self._turns = threading.Semaphore(most)

    @contextmanager
    def take(self) -> Iterator[Lane]:
        """A lane that nobody else uses until the end; one that failed is not used again."""
        with self._turns:
            try:
                lane = self._idle.pop()
            except IndexError:
                lane = self._make()
            yield lane
            self._idle.append(lane)
