"""Flags whose values stand in one word, such as `--batch 1,8,32`."""

from collections.abc import Callable
from typing import Any

import tyro


def comma_list(
    parse: Callable[[str], Any], metavar: str
) -> tyro.constructors.PrimitiveConstructorSpec[tuple[Any, ...]]:
    """How tyro is to read a field of type `tuple[..., ...]`, for `Annotated`.

    Args:
        parse: an item; raises ValueError where it is none.
        metavar: an example, for the help.
    """
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(parse(item.strip()) for item in words[0].split(",") if item.strip()),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [",".join(map(str, values))],
    )
