"""What callers hear when no instance has capacity, turn by turn."""

from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.app.overflow import LONGEST_PAUSE, SHORTEST_PAUSE, Overflow, QueuePlace
from bridge.app.routes import Route, WhenFull
from twiml import spoken_texts

NOW = 1_800_000_000.0
NUMBER, OTHER = "+14155550199", "+14155550198"
QUEUE = Overflow("queue", 120.0)


def ask(place: QueuePlace) -> str:
    return f"https://bridge.example.com/voice?waiting={place}"


class Turn:
    """One document of the queue, as a waiting caller hears it."""

    def __init__(self, document: str) -> None:
        root = ElementTree.fromstring(document)
        self.said = [verb.text for verb in root if verb.tag == "Say"]
        [self.pause] = [int(it.attrib["length"]) for it in root.iter("Pause")]
        [url] = [it.text or "" for it in root.iter("Redirect")]
        self.next = QueuePlace.read(urlsplit(url).query.removeprefix("waiting="))


def waited(
    overflow: Overflow, place: QueuePlace | None, *, clock: bool = True
) -> list[Turn]:
    """All turns until the wait is over. `clock=False`: the clock stands still."""
    turns: list[Turn] = []
    now = NOW
    while document := overflow.hold(Route(), place, now, ask):
        turns.append(Turn(document))
        place = turns[-1].next
        now += turns[-1].pause if clock else 0
        assert len(turns) < 1000, "the caller waits for ever"
    return turns


def test_a_wait_in_the_queue() -> None:
    """A caller hears the reason for the wait at once and again at intervals. The longer
    the wait, the more often the caller asks for capacity. After the longest wait the
    queue ends."""
    turns = waited(QUEUE, None)
    pauses = [turn.pause for turn in turns]

    assert turns[0].said == [spoken_texts.HOLD]
    assert 4 <= sum(bool(turn.said) for turn in turns) <= 8
    assert (pauses[0], pauses[-2]) == (LONGEST_PAUSE, SHORTEST_PAUSE)
    assert pauses == sorted(pauses, reverse=True)
    assert sum(pauses) == 120


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.0, 5.0, 3600.0])
def test_a_wait_ends_after_the_configured_time(seconds: float) -> None:
    """No caller waits longer than the operator has configured, to one second."""
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
def test_a_forged_place_ends_the_wait_in_time(
    written: str, seconds: float, clock: bool
) -> None:
    """Whatever text stands in the place of the queue, the wait ends: no URL waits for
    ever, not even if the clocks of two instances differ."""
    overflow = Overflow("queue", seconds)

    turns = waited(overflow, QueuePlace.read(written), clock=clock)

    assert len(turns) <= seconds / SHORTEST_PAUSE + 1


def test_a_place_in_the_future_waits_on() -> None:
    """A caller whose wait began in the future, by this instance's clock, stays in the
    queue."""
    [first, *_] = waited(QUEUE, QueuePlace(NOW + 3))

    assert first.next == QueuePlace(NOW + 3, 1)


FR = Route(language="fr-FR", busy="Complet.")


@pytest.mark.parametrize(
    ("overflow", "route", "heard"),
    [
        (Overflow(), Route(), [spoken_texts.BUSY]),
        (Overflow(), FR, ["Complet."]),
        (Overflow(fallback_number=NUMBER), Route(), [spoken_texts.BUSY]),
        (
            Overflow("fallback", 0, NUMBER),
            Route(),
            [spoken_texts.BUSY_CONNECTING, NUMBER],
        ),
        (
            Overflow("fallback", 0, NUMBER),
            Route(fallback=OTHER, when_full=WhenFull("fallback", "Un instant.")),
            ["Un instant.", OTHER],
        ),
        (
            Overflow("fallback", 0, NUMBER),
            Route(when_full=WhenFull("busy")),
            [spoken_texts.BUSY],
        ),
        (Overflow(), Route(when_full=WhenFull("fallback")), [spoken_texts.BUSY]),
        (
            Overflow("queue", 0, NUMBER),
            Route(when_full=WhenFull("queue", "Wait.")),
            [spoken_texts.BUSY_CONNECTING, NUMBER],
        ),
        (Overflow("queue"), FR, ["Complet."]),
    ],
)
def test_the_refusal_of_a_caller_who_does_not_wait(
    overflow: Overflow, route: Route, heard: list[str]
) -> None:
    """The caller hears the sentence of the route and, if configured, is connected to
    the fallback number. Without a number, no caller hears that they are being
    connected."""
    root = ElementTree.fromstring(overflow.refusal(route))

    assert [it.text for it in root.iter() if it.text] == heard
    assert root[0].get("language") == route.language
    assert root[-1].tag == "Hangup"


def test_a_route_overrides_the_deployment() -> None:
    """One route has a queue with its own sentence while all others answer busy."""
    route = Route(when_full=WhenFull("queue", "Sales: please hold on."))

    document = Overflow("busy", 60).hold(route, None, NOW, ask)

    assert document is not None
    assert Turn(document).said == ["Sales: please hold on."]
    assert (
        Overflow("queue").hold(Route(when_full=WhenFull("busy")), None, NOW, ask)
        is None
    )
