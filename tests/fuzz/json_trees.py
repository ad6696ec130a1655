"""Changes to JSON that leave it JSON, so that what is behind the parser is reached."""

import json
import random
from typing import Any

from tests.fuzz.target import MutateBytes

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**31, -(2**31), 2**63, 2**64, 10**6, 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *("", ".", "..", "/", "../x", "a", "NaN", "1", "\0", "\n", "\x1b[2J", "\ud800", "é", "x" * 300),
    *([], {}, [[]], [0], ["a"], {"a": 0}),
)
TOKENS = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\\ud800",
    b"\\u0000",
)


def mutate_json(data: bytes, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """Three times of four one value or key of the tree becomes another; otherwise bytes are changed anywhere."""
    if dice.random() < 0.25:
        return mutate_bytes(data, most)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, most)
    changed = json.dumps(_changed(tree, dice), separators=(",", ":")).encode()
    return changed if len(changed) <= most else mutate_bytes(data, most)


def _changed(node: Any, dice: random.Random) -> Any:
    if not isinstance(node, dict | list) or not node or dice.random() < 0.1:
        return _other(node, dice)
    keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, action = dice.choice(keys), dice.random()
    if action < 0.06:
        del node[key]
    elif action < 0.12 and isinstance(node, list):
        node.insert(dice.randrange(len(node) + 1), node[key])
    elif action < 0.12:
        node[dice.choice([*keys, "x", "", "__proto__"])] = node[key]
    elif action < 0.15:
        node[key] = node[dice.choice(keys)]
    else:
        node[key] = _changed(node[key], dice)
    return node


def _other(value: Any, dice: random.Random) -> Any:
    """Another value, often of the same type and near."""
    if isinstance(value, bool) or dice.random() < 0.5:
        return dice.choice(ODD_VALUES)
    if isinstance(value, int) and abs(value) < 2**64:
        return dice.choice((value + 1, value - 1, -value, value * 2, value // 2, value << 32, float(value)))
    if isinstance(value, float):
        return dice.choice((-value, value * 1e9, value + 1, int(value) if abs(value) < 1e300 else 0))
    if isinstance(value, str) and value:
        place = dice.randrange(len(value))
        return value[:place] + dice.choice(("", "\0", "/", "\x1b", "\ud800", "0", value)) + value[place + 1 :]
    return dice.choice(ODD_VALUES)
