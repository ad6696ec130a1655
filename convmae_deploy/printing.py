"""Text that came out of a file, for a terminal or a log."""

import logging


def printable(text: object) -> str:
    """The text with all that could drive a terminal or forge a line escaped, for instance as "\\x1b"."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class PrintableFormatter(logging.Formatter):
    """Lines of a log in which names from files stay what they are."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, its message escaped; a traceback behind it has lines of its own."""
        head, mark, rest = super().format(record).partition("\nTraceback")
        return printable(head) + mark + rest
