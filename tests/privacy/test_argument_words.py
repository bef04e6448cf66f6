"""What a tool was called with does not stay in the text of its exception."""

import json

import pytest

from bridge.privacy.argument_words import HIDDEN, MAX_WORDS, hides


@pytest.mark.parametrize(
    ("arguments", "text", "left"),
    [
        ({"name": "Miller"}, "no customer Miller", "no customer [argument]"),
        ({"name": "Miller"}, "'MILLER'", "'[argument]'"),
        ({"name": "Anna Miller"}, "Miller, Anna", "[argument]"),
        ({"name": "Anna Miller"}, "Miller of Anna", "[argument] of [argument]"),
        ({"name": "Müller"}, "/find?name=M%C3%BCller", "/find?name=[argument]"),
        ({"name": "Müller"}, '{"name": "M\\u00fcller"}', '{"name": "[argument]"}'),
        ({"id": 4711}, "order 4711 is open", "order [argument] is open"),
        ({"id": 47.11}, "47.11", "47.11"),  # two words that are too short
        ({"who": {"Eve": ["Bob", None, True]}}, "Eve Bob True", "[argument] True"),
        ({"city": "Paris"}, "Parisian city", "Parisian city"),
        ({"city": "Ur"}, "no city Ur", "no city Ur"),  # says nothing about a person
        (["Miller"], "no Miller", "no [argument]"),
        ({}, "it fails", "it fails"),
        ({"name": "Miller"}, "", ""),
    ],
)
def test_the_values_are_hidden(arguments: object, text: str, left: str) -> None:
    """Whole, word by word, and as they are written in a URL or in JSON; names of the
    tool's own arguments are code."""
    assert hides(json.dumps(arguments))(text) == left


@pytest.mark.parametrize("arguments", ['{"name": "Miller', "[" * 100_000])
def test_arguments_that_are_no_json_are_hidden_as_text(arguments: str) -> None:
    assert hides(arguments)("no Smith") == "no Smith"
    assert "Miller" not in hides(arguments)("no Miller") or "Miller" not in arguments


def test_no_arguments_hide_nothing() -> None:
    assert hides("")("it fails") == "it fails"


def test_with_too_many_words_nothing_of_the_text_is_left() -> None:
    """The pattern would be slow."""
    words = " ".join(f"word{n}" for n in range(MAX_WORDS + 1))
    hide = hides(json.dumps({"text": words}))

    assert hide("any text") == HIDDEN and hide("") == ""
