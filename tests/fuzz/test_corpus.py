"""Runs the findings and the corpus of the fuzzer again, without atheris."""

from collections.abc import Iterator

import pytest
import structlog

from tests.fuzz.any_call import played
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.targets import TARGETS

MUTANTS = 200
"""Mutations of each target, not guided by coverage: they test the mutator as well."""


@pytest.fixture(autouse=True)
def _log_is_not_printed() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def _kept(name: str) -> list[bytes]:
    return [it.read_bytes() for it in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_raises_an_undeclared_error(name: str) -> None:
    """Input from outside never stops the process: a parser raises only the errors that
    it declares, and the rules of a call hold."""
    inputs = [*seeds(name), *_kept(name)]

    messages = sum(TARGETS[name](data) for data in inputs)

    assert messages >= len(inputs) // 2


@pytest.mark.parametrize(
    "name", sorted(TARGETS.keys() - {"conversation", "routes", "wav"})
)
def test_no_changed_message_raises_an_undeclared_error(name: str) -> None:
    """The same for valid messages of which a part was changed."""
    known = seeds(name)
    for seed in range(MUTANTS):
        data = known[seed % len(known)]
        for again in range(3):
            data = mutated(data, 6000, seed * 3 + again, known, lambda it, _: it)
        TARGETS[name](data)


def test_the_same_input_gives_the_same_commands() -> None:
    """A trace can be replayed: no command depends on chance or on other calls."""
    for data in _kept("conversation"):
        assert played(data).log == played(data).log
