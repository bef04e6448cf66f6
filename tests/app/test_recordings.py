"""The recordings with which a call begins, and a resumed call."""

import wave
from pathlib import Path

import pytest

from bridge.app.route_types import Notice, RouteGreeting
from bridge.app.routes import Route
from bridge.app.services import rules_for
from bridge.core.history import HistoryItem
from bridge.core.rules import CUT_OFF
from bridge.fleet.snapshot import CallSnapshot

CUT = HistoryItem("bridge_notice", "assistant", "This call", "This call is.", cut=True)
HEARD = HistoryItem("bridge_notice", "assistant", "This call is.", "This call is.")
GREETING = HistoryItem("i1", "assistant", "", "Hello.", cut=True)
GREETED = HistoryItem("i1", "assistant", "Hel", "Hello.", cut=True)
SYSTEM = HistoryItem("i2", "system", "Say hello.")


@pytest.fixture
def route(tmp_path: Path) -> Route:
    file = str(tmp_path / "notice.wav")
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16))
    greeting = RouteGreeting(file=file, words="Hello.")
    return Route(notice=Notice(file, "This call is."), greeting=greeting)


@pytest.mark.parametrize(
    ("history", "played", "word"),
    [
        ((), ["bridge_notice", "bridge_greeting"], ""),
        ((CUT,), ["bridge_notice_1"], ""),
        ((CUT, SYSTEM, GREETING), ["bridge_notice_3"], ""),
        ((HEARD, GREETED), [], CUT_OFF),
        ((CUT, GREETED), [], CUT_OFF),
        ((GREETED,), [], CUT_OFF),
    ],
)
def test_a_notice_that_a_move_to_another_instance_has_cut_off(
    route: Route, history: tuple[HistoryItem, ...], played: list[str], word: str
) -> None:
    """Callers hear it to its end, and then the greeting, though an instance was
    restarted meanwhile; nobody hears it in the middle of a call."""
    snapshot = CallSnapshot(history=history, stream_count=1)

    rules = rules_for(route, "Greet.", snapshot)

    assert [it.id for it in rules.recordings] == played
    assert rules.word == word


def test_a_notice_that_a_transfer_by_key_has_cut_off(route: Route) -> None:
    """Nobody answered the transfer: the agent says so, after the notice."""
    snapshot = CallSnapshot(history=(CUT,), stream_count=1, instruction="Not there.")

    rules = rules_for(route, "Greet.", snapshot)

    assert rules.recordings and rules.word == "Not there."
