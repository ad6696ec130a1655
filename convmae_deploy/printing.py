"""Text that came out of a file, for a terminal or a log."""


def printable(text: object) -> str:
    """The text with all that could drive a terminal or forge a line escaped, for instance as "\\x1b"."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))
