"""The limits of the edges: their defaults, and the names of their hits."""

from dataclasses import fields

from bridge.app.settings import Settings
from bridge.core.limits import HITS, Limits


def test_the_defaults_are_those_of_the_settings() -> None:
    """Code that takes the defaults behaves as a bridge without settings does."""
    defaults = {name: it.default for name, it in Settings.model_fields.items()}

    assert {it.name: it.default for it in fields(Limits)} == {
        it.name: defaults[it.name] for it in fields(Limits)
    }


def test_each_name_of_a_hit_is_there_once() -> None:
    """A metric has one label for each limit."""
    assert len(set(HITS)) == len(HITS)
