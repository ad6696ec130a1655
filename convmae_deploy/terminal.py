"""The console that all programs print to, which shows text out of files as it is and is never driven by it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from convmae_deploy.printing import printable


class Terminal(Console):
    """A console of rich's without its markup and emoji codes, on which control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        """The options are those of `Console`."""
        super().__init__(**options, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, in pieces; those of rich's own that move the cursor have their control codes apart."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)
