"""The limits of the edges: their defaults, and the names of their hits."""

import json
from dataclasses import fields
from typing import Any

import pytest

from bridge.app.settings import Settings
from bridge.core.limits import HITS, Limits, is_dense


def test_the_defaults_are_those_of_the_settings() -> None:
    """Code that takes the defaults behaves as a bridge without settings does."""
    defaults = {name: it.default for name, it in Settings.model_fields.items()}

    assert {it.name: it.default for it in fields(Limits)} == {
        it.name: defaults[it.name] for it in fields(Limits)
    }


def test_each_name_of_a_hit_is_there_once() -> None:
    """A metric has one label for each limit."""
    assert len(set(HITS)) == len(HITS)


@pytest.mark.parametrize(
    "value", [[[]] * 60, [{}] * 60, [1] * 110, {str(n): 1 for n in range(110)}]
)
def test_a_text_with_many_parts_is_dense(value: Any) -> None:
    """Its decoding would hold all calls."""
    assert is_dense(json.dumps(value), 100)
    assert not is_dense(json.dumps(value), 300)
    assert is_dense('"",' * 300, 100), "also where the strings alone are too many"


def test_a_long_string_is_not_dense() -> None:
    """The result of a tool is JSON in a string, as a rule."""
    result = json.dumps([{"name": 'a "quoted\\ " word, {', "at": [1, 2]}] * 100)

    assert not is_dense(json.dumps({"output": result, "more": "x" * 99}), 100)
    assert is_dense(result, 100)
