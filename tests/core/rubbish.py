"""Messages as a hostile or broken peer would send them, for Hypothesis.

Starts from a valid message and damages any place of it: this gets past the first check
of a parser, which random text never does.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st

WORDS = st.text(st.characters(), max_size=12)
"""Any characters, lone surrogates included."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([-1, 0, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**400, -(2**64)]),
    st.floats(),  # json writes NaN and Infinity, which JSON does not have
    WORDS,
    st.sampled_from(["", "-1", "1e999", "9" * 5000, "5.0", "AAAA====", "A", "=", "é"]),
)

RUBBISH = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def mangled(draw: st.DrawFn, messages: Sequence[dict[str, Any]]) -> str:
    """One of the messages as text, with up to three places of it damaged."""
    message: Any = copy.deepcopy(draw(st.sampled_from(messages)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(list(_places(message))))
        message = _spoil(message, place, draw(RUBBISH), draw(st.booleans()))
        if not isinstance(message, dict | list):
            break
    text = json.dumps(message, ensure_ascii=draw(st.booleans()))
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in it, the root first."""
    found = [path]
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        inner = []
    for key, it in inner:
        found += _places(it, (*path, key))
    return found


def _spoil(message: Any, path: tuple[Any, ...], rubbish: Any, leave_out: bool) -> Any:
    if not path:
        return rubbish
    inner = message
    for key in path[:-1]:
        inner = inner[key]
    if leave_out:
        del inner[path[-1]]
    else:
        inner[path[-1]] = rubbish
    return message
