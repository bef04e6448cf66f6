"""What the search has found, fed again: no atheris is needed for that."""

from collections.abc import Iterator

import pytest
import structlog

from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.talk import played
from tests.fuzz.targets import TARGETS

MUTANTS = 200
"""Of each target, without any feedback: the mutator is kept alive by them."""


@pytest.fixture(autouse=True)
def _nobody_reads_the_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def _kept(name: str) -> list[bytes]:
    return [it.read_bytes() for it in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_breaks_nothing(name: str) -> None:
    """Whatever strangers send to this door, the process goes on: nothing is raised but
    what its parser declares, and what must hold of a call does."""
    inputs = [*seeds(name), *_kept(name)]

    messages = sum(TARGETS[name](data) for data in inputs)

    assert messages >= len(inputs) // 2


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"conversation", "routes"}))
def test_spoiled_messages_break_nothing(name: str) -> None:
    """The same of messages with one thing in them that is not as it should be."""
    known = seeds(name)
    for seed in range(MUTANTS):
        data = known[seed % len(known)]
        for again in range(3):
            data = mutated(data, 6000, seed * 3 + again, known, lambda it, most: it)
        TARGETS[name](data)


def test_a_call_is_the_same_call_when_it_is_played_again() -> None:
    """A trace can be replayed: nothing of a call hangs on chance, or on other calls."""
    for data in _kept("conversation"):
        assert played(data).log == played(data).log
