"""What callers hear of a house without a free line, turn by turn."""

from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twiml
from bridge.app.overflow import LONGEST_PAUSE, SHORTEST_PAUSE, Overflow, QueuePlace
from bridge.app.routes import Route, WhenFull

NOW = 1_800_000_000.0
NUMBER, OTHER = "+14155550199", "+14155550198"
QUEUE = Overflow("queue", 120.0)


def ask(place: QueuePlace) -> str:
    return f"https://bridge.example.com/voice?waiting={place}"


class Turn:
    """One document, as who waits hears it."""

    def __init__(self, document: str) -> None:
        root = ElementTree.fromstring(document)
        self.said = [verb.text for verb in root if verb.tag == "Say"]
        [self.pause] = [int(it.attrib["length"]) for it in root.iter("Pause")]
        [url] = [it.text or "" for it in root.iter("Redirect")]
        self.next = QueuePlace.read(urlsplit(url).query.removeprefix("waiting="))


def waited(
    overflow: Overflow, place: QueuePlace | None, *, clock: bool = True
) -> list[Turn]:
    """All turns until nobody waits any more; a broken clock stands still."""
    turns: list[Turn] = []
    now = NOW
    while document := overflow.hold(Route(), place, now, ask):
        turns.append(Turn(document))
        place = turns[-1].next
        now += turns[-1].pause if clock else 0
        assert len(turns) < 1000, "the caller waits for ever"
    return turns


def test_a_wait_in_the_queue() -> None:
    """A caller hears at once what they wait for, now and then again, and is looked
    after more often the longer they wait; when the time is over, they do not wait."""
    turns = waited(QUEUE, None)
    pauses = [turn.pause for turn in turns]

    assert turns[0].said == [twiml.HOLD]
    assert 4 <= sum(bool(turn.said) for turn in turns) <= 8
    assert (pauses[0], pauses[-2]) == (LONGEST_PAUSE, SHORTEST_PAUSE)
    assert pauses == sorted(pauses, reverse=True)
    assert sum(pauses) == 120


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.0, 5.0, 3600.0])
def test_a_wait_is_as_long_as_it_was_set(seconds: float) -> None:
    """Nobody waits longer than the operator wanted, to a second."""
    overflow = Overflow("queue", seconds)

    assert 0 <= sum(turn.pause for turn in waited(overflow, None)) - seconds < 1


@settings(deadline=None)
@given(
    written=st.one_of(
        st.text(),
        st.from_regex("[0-9]{1,14}-[0-9]{1,12}", fullmatch=True),
        st.sampled_from(
            [
                "",
                "-",
                "0-0",
                "-1-1",
                "1e9-0",
                "nan-0",
                "9999999999999-0",
                "١-١",
                "1-1\n",
            ]
        ),
    ),
    seconds=st.floats(0, 600),
    clock=st.booleans(),
)
def test_a_place_that_is_made_up(written: str, seconds: float, clock: bool) -> None:
    """Whatever stands where the place should be, a wait ends: no url holds a line for
    ever, not even where the clocks of two instances contradict each other."""
    overflow = Overflow("queue", seconds)

    turns = waited(overflow, QueuePlace.read(written), clock=clock)

    assert len(turns) <= seconds / SHORTEST_PAUSE + 1


def test_clocks_that_differ() -> None:
    """A caller who began to wait in the future, by this instance's clock, waits on."""
    [first, *_] = waited(QUEUE, QueuePlace(NOW + 3))

    assert first.next == QueuePlace(NOW + 3, 1)


FR = Route(language="fr-FR", busy="Complet.")


@pytest.mark.parametrize(
    ("overflow", "route", "heard"),
    [
        (Overflow(), Route(), [twiml.BUSY]),
        (Overflow(), FR, ["Complet."]),
        (Overflow(fallback_number=NUMBER), Route(), [twiml.BUSY]),
        (
            Overflow("fallback", 0, NUMBER),
            Route(),
            [twiml.BUSY_CONNECTING, NUMBER],
        ),
        (
            Overflow("fallback", 0, NUMBER),
            Route(fallback=OTHER, when_full=WhenFull("fallback", "Un instant.")),
            ["Un instant.", OTHER],
        ),
        (
            Overflow("fallback", 0, NUMBER),
            Route(when_full=WhenFull("busy")),
            [twiml.BUSY],
        ),
        (Overflow(), Route(when_full=WhenFull("fallback")), [twiml.BUSY]),
        (
            Overflow("queue", 0, NUMBER),
            Route(when_full=WhenFull("queue", "Wait.")),
            [twiml.BUSY_CONNECTING, NUMBER],
        ),
        (Overflow("queue"), FR, ["Complet."]),
    ],
)
def test_who_does_not_wait(overflow: Overflow, route: Route, heard: list[str]) -> None:
    """They hear the sentence for their line and, where it is so wanted, a telephone
    that rings; nobody is promised somebody who is not there."""
    root = ElementTree.fromstring(overflow.refusal(route))

    assert [it.text for it in root.iter() if it.text] == heard
    assert root[0].get("language") == route.language
    assert root[-1].tag == "Hangup"


def test_a_route_says_otherwise() -> None:
    """The sales line waits, with words of its own, where all others are turned away."""
    route = Route(when_full=WhenFull("queue", "Sales: please hold on."))

    document = Overflow("busy", 60).hold(route, None, NOW, ask)

    assert document is not None
    assert Turn(document).said == ["Sales: please hold on."]
    assert (
        Overflow("queue").hold(Route(when_full=WhenFull("busy")), None, NOW, ask)
        is None
    )
