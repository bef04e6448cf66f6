"""When a model that is away is dialled again, and when it is given up."""

from bridge.core.redial import (
    AWAY_SECONDS,
    READY_SECONDS,
    STEADY_SECONDS,
    WAITS,
    Redial,
)


def test_tries_come_quickly_then_slower() -> None:
    """A short outage costs a moment; a long one causes no storm of connections."""
    redial = Redial(100.0)

    waits = [redial.wait() for _ in range(len(WAITS) + 3)]

    assert tuple(waits) == (*WAITS, *(WAITS[-1:] * 3))
    assert waits[0] == 0.0 and waits == sorted(waits)


def test_connections_lost_before_any_session_do_not_extend_the_limit() -> None:
    """The caller waits no longer because connections are lost before there is a
    session."""
    redial = Redial(100.0)
    redial.lost(110.0)

    assert redial.expires == 100.0 + READY_SECONDS
    assert not redial.had_session


def test_the_loss_of_a_steady_session_starts_a_new_outage() -> None:
    """An outage now has nothing to do with one of an hour ago."""
    redial = Redial(100.0)
    redial.ready(101.0)
    redial.lost(200.0)
    assert redial.expires == 200.0 + AWAY_SECONDS
    assert [redial.wait(), redial.wait()] == [WAITS[0], WAITS[1]]
    redial.ready(202.0)
    later = 202.0 + STEADY_SECONDS
    redial.lost(later)

    assert redial.expires == later + AWAY_SECONDS
    assert redial.wait() == WAITS[0]
    assert redial.lost_at == later


def test_connections_without_a_session_do_not_extend_the_limit() -> None:
    """A server that accepts and drops us again and again is given up like any other."""
    redial = Redial(100.0)
    redial.ready(101.0)
    redial.lost(200.0)
    waits = []
    for n in range(5):
        waits.append(redial.wait())
        redial.lost(201.0 + n)

    assert waits == list(WAITS)
    assert redial.expires == 200.0 + AWAY_SECONDS
    assert redial.lost_at == 200.0, "the caller waits since then"


def test_a_session_that_is_lost_at_once_is_the_same_outage() -> None:
    """A server that accepts and drops us is not dialled without a pause for ever."""
    redial = Redial(100.0)
    redial.ready(101.0)
    redial.lost(102.0)
    redial.wait()
    redial.ready(103.0)
    redial.lost(103.0 + STEADY_SECONDS - 0.1)

    assert redial.expires == 102.0 + AWAY_SECONDS
    assert redial.wait() == WAITS[1]
