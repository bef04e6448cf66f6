"""Changes one place of a message: a fuzzer of plain bytes would take years to do so.

Lines are messages. A mutation changes a line as JSON, or changes which lines there are
and their order; the fuzzer of bytes does the other mutations.
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
"""Values that the author of a parser may have forgotten."""


def mutated(
    data: bytes,
    max_bytes: int,
    seed: int,
    seeds: Sequence[bytes],
    bytewise: Callable[[bytes, int], bytes],
) -> bytes:
    """`data` with one change; at max_bytes `max_bytes` long."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        return bytewise(data, max_bytes)
    found = data.split(b"\n")
    at = rng.randrange(len(found))
    match rng.randrange(8):
        case 0:
            found.insert(at, rng.choice(rng.choice(seeds).split(b"\n")))
        case 1:
            found[at] = rng.choice(rng.choice(seeds).split(b"\n"))
        case 2:
            found.insert(rng.randrange(len(found)), found[at])
        case 3 if len(found) > 1:
            del found[at]
        case 4 if len(found) > 1:
            other = rng.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        case _:
            found[at] = _changed(found[at], rng, seeds) or bytewise(
                found[at], max_bytes
            )
    out = b"\n".join(found)
    return out if len(out) <= max_bytes else bytewise(data, max_bytes)


def _changed(line: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes | None:
    """`line` with one value changed; None: `line` is not JSON."""
    try:
        message = json.loads(line)
        places = [path for path, _ in _values(message)]
        path = rng.choice(places)
        other = json.loads(rng.choice(rng.choice(seeds).split(b"\n")))
        pool = [value for _, value in _values(other)]
    except (ValueError, RecursionError):
        return None
    match rng.randrange(6):
        case 0:
            value: Any = rng.choice(pool)
        case 1:
            value = _at(message, rng.choice(places))
        case 2:
            value = _at(message, path)
            for _ in range(rng.choice((1, 2, 10, 100, 600))):
                value = [value] if rng.random() < 0.5 else {"x": value}
        case _:
            value = rng.choice(ODD)
    try:
        message = _put(message, path, value, leave_out=rng.random() < 0.15)
        text = json.dumps(message, ensure_ascii=rng.random() < 0.5)
        if path and isinstance(path[-1], str) and rng.random() < 0.1:
            # A repeated name: a parser may take the first or the last value.
            text = text[:-1] + f", {json.dumps(path[-1])}: {json.dumps(value)}}}"
    except (ValueError, RecursionError):
        return None
    return text.encode("utf-8", "surrogatepass")


def _values(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Every value inside `value` with its path; first `value` itself."""
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
