"""Settings that are lists of names, addresses and paths: how they are written, and what each part must be.

A list is written with commas, as an environment variable can hold it.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

ANY: Final = "*"
HOST_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,;*\"'\\]+")  # as browsers send it: without a path
FRAME_SOURCE: Final = re.compile(r"[!-~]+")
PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*")  # no segment of dots alone
OWN_PATHS: Final = frozenset({"v1", "v2", "page", "docs"})  # what paths of this server begin with
QUOTED: Final = 80  # characters of a value that is not allowed


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _each(fits: Callable[[str], object], expected: str, advice: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """A check of all parts of a list."""

    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not fits(value):
                raise ValueError(f"expected {expected}, separated by commas, got {value[:QUOTED]!r}; {advice}")
        return values

    return check


def _lower(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.lower() for value in values)


def _is_name(text: str) -> bool:
    return text == ANY or HOST_NAME.fullmatch(text) is not None


def _is_origin(text: str) -> bool:
    return text in (ANY, "null") or ORIGIN.fullmatch(text) is not None


def _is_network(text: str) -> bool:
    if text == ANY:
        return True
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _unquoted(values: tuple[str, ...]) -> tuple[str, ...]:
    sources = tuple(value.strip("'") for value in values)
    if len(sources) > 1 and "none" in sources:
        raise ValueError("expected none alone, or others without it; leave one out")
    return sources


def _is_source(text: str) -> bool:
    return FRAME_SOURCE.fullmatch(text) is not None and not set(text) & set(";'\"")


def _root_path(value: str) -> str:
    path = value.rstrip("/")
    if not PATH.fullmatch(path):
        raise ValueError(f"expected a path, such as /convmae, got {value[:QUOTED]!r}; begin with a slash")
    if path and path.split("/")[1] in OWN_PATHS:
        raise ValueError(f"expected a path that is none of the server's own, got {path[:QUOTED]!r}; choose another")
    return path


_List = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
_LowerCaseList = Annotated[_List, AfterValidator(_lower)]

HostNames = Annotated[
    _LowerCaseList,
    AfterValidator(_each(_is_name, "names, such as models.example.org", "leave out the scheme and the port")),
]
Origins = Annotated[
    _LowerCaseList,
    AfterValidator(_each(_is_origin, "origins, such as https://app.example.org", "write a scheme, and no path")),
]
FrameSources = Annotated[
    _List,
    AfterValidator(_unquoted),
    AfterValidator(_each(_is_source, "none, self or addresses, such as https://app.example.org", "leave out blanks")),
]
Networks = Annotated[
    _List,
    AfterValidator(_each(_is_network, "addresses and networks, such as 10.0.0.0/8", "write addresses, not names")),
]
RootPath = Annotated[str, AfterValidator(_root_path)]
