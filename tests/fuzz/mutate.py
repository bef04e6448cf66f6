"""Messages spoiled in one place: what a fuzzer of bytes alone would take years to do.

Lines are messages. One of them is changed as JSON, or lines are put in another order;
the rest is left to the fuzzer of bytes.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Path = tuple[Any, ...]
"""Keys and indexes that lead to a value."""

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**53,
    2**53 + 1,
    2**64,
    10**400,
    0.5,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "0",
    "-1",
    "1e999",
    "9" * 5000,
    "AAAA",
    "AAAA====",
    "A===",
    "é",
    "\ud800",
    "\x00",
    "\u2028",
    "{}",
    [],
    {},
    [[]],
    [None],
    {"": None},
]
"""Values that a parser may not have thought of."""


def mutated(
    data: bytes,
    most: int,
    seed: int,
    seeds: Sequence[bytes],
    bytewise: Callable[[bytes, int], bytes],
) -> bytes:
    """`data`, otherwise; of `most` bytes at most."""
    dice = random.Random(seed)
    if dice.random() < 0.3:
        return bytewise(data, most)
    found = data.split(b"\n")
    at = dice.randrange(len(found))
    match dice.randrange(8):
        case 0:
            found.insert(at, dice.choice(dice.choice(seeds).split(b"\n")))
        case 1:
            found[at] = dice.choice(dice.choice(seeds).split(b"\n"))
        case 2:
            found.insert(dice.randrange(len(found)), found[at])
        case 3 if len(found) > 1:
            del found[at]
        case 4 if len(found) > 1:
            other = dice.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        case _:
            found[at] = _spoiled(found[at], dice, seeds) or bytewise(found[at], most)
    out = b"\n".join(found)
    return out if len(out) <= most else bytewise(data, most)


def _spoiled(line: bytes, dice: random.Random, seeds: Sequence[bytes]) -> bytes | None:
    """None: it is no JSON."""
    try:
        message = json.loads(line)
        places = [path for path, _ in _values(message)]
        path = dice.choice(places)
        other = json.loads(dice.choice(dice.choice(seeds).split(b"\n")))
        pool = [value for _, value in _values(other)]
    except (ValueError, RecursionError):
        return None
    match dice.randrange(6):
        case 0:
            value: Any = dice.choice(pool)
        case 1:
            value = _at(message, dice.choice(places))
        case 2:
            value = _at(message, path)
            for _ in range(dice.choice((1, 2, 10, 100, 600))):
                value = [value] if dice.random() < 0.5 else {"x": value}
        case _:
            value = dice.choice(ODD)
    try:
        message = _put(message, path, value, leave_out=dice.random() < 0.15)
        text = json.dumps(message, ensure_ascii=dice.random() < 0.5)
        if path and isinstance(path[-1], str) and dice.random() < 0.1:
            # The same name twice: which of them counts?
            text = text[:-1] + f", {json.dumps(path[-1])}: {json.dumps(value)}}}"
    except (ValueError, RecursionError):
        return None
    return text.encode("utf-8", "surrogatepass")


def _values(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Every value in it with its path, itself first."""
    found = [(path, value)]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _values(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _values(inner, (*path, index))
    return found


def _at(message: Any, path: Path) -> Any:
    for key in path:
        message = message[key]
    return message


def _put(message: Any, path: Path, value: Any, *, leave_out: bool) -> Any:
    if not path:
        return value
    holder = _at(message, path[:-1])
    if leave_out:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return message
