"""Tickets of streams: valid for one call, once, for a minute, on any instance."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.fleet import InstanceLoad
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.redis import redis_registry
from bridge.http.tickets import TICKET_SECONDS, TicketRefused, Tickets
from tests.fleet.redis_server import RedisServer

ACCOUNT, CALL = "AC" + "a" * 32, "CA" + "1" * 32
TOKEN, OTHER = "0123456789abcdef0123456789abcdef", "f" * 32


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tickets(
    clock: Clock, *keys: str, registry: MemoryRegistry | None = None
) -> Tickets:
    return Tickets(keys or (TOKEN,), registry or MemoryRegistry(clock), clock)


def parts(path: str) -> tuple[str, str, str]:
    _, media, account, call, ticket = path.split("/")
    assert media == "media"
    return account, call, ticket


def refused(issuer: Tickets, *given: str) -> str:
    with pytest.raises(TicketRefused) as error:
        issuer.read(*given)
    return error.value.why


async def test_a_ticket_can_be_used_once(clock: Clock) -> None:
    """Twilio's stream is accepted; a repeated handshake is refused."""
    desk = tickets(clock)
    ticket = desk.read(*parts(desk.path(ACCOUNT, CALL)))

    await desk.spend(ticket)

    assert (ticket.account_sid, ticket.call_sid) == (ACCOUNT, CALL)
    with pytest.raises(TicketRefused, match="ticket_used"):
        await desk.spend(ticket)


async def test_any_instance_accepts_a_ticket_but_only_once(clock: Clock) -> None:
    """The balancer may send the stream to another instance than the webhook. A second
    use on a third instance is refused."""
    shared = MemoryRegistry(clock)
    one, two = tickets(clock, registry=shared), tickets(clock, registry=shared)
    given = parts(one.path(ACCOUNT, CALL))

    await two.spend(two.read(*given))

    with pytest.raises(TicketRefused, match="ticket_used"):
        await one.spend(one.read(*given))


async def test_a_used_ticket_stays_used_until_it_expires(clock: Clock) -> None:
    """A used ticket is remembered until it has expired."""
    desk = tickets(clock)
    given = parts(desk.path(ACCOUNT, CALL))
    await desk.spend(desk.read(*given))

    for _ in range(int(TICKET_SECONDS * 4)):
        clock.now += 0.25
        try:
            ticket = desk.read(*given)
        except TicketRefused as error:
            assert error.why == "ticket_expired"
        else:
            with pytest.raises(TicketRefused, match="ticket_used"):
                await desk.spend(ticket)


def test_the_wall_clock_of_a_single_instance_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NTP sets the clock back by an hour: a ticket that has expired stays expired."""
    clock, real = Clock(), time.time
    desk = Tickets([TOKEN], MemoryRegistry(clock))
    given = parts(desk.path(ACCOUNT, CALL))
    clock.now += TICKET_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: real() - 3600)

    assert refused(desk, *given) == "ticket_expired"


async def test_an_instance_whose_clock_is_behind(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket was used, has expired, and is forgotten. An instance whose clock is five
    minutes behind does not accept it again: all use the clock of Redis."""
    load = InstanceLoad(1, 0)
    real = time.time
    async with (
        redis_registry(server.url, lambda: load) as one,
        redis_registry(server.url, lambda: load) as two,
    ):
        early = Tickets([TOKEN], one, lambda: real() - TICKET_SECONDS - 5)
        given = parts(early.path(ACCOUNT, CALL))
        ticket = early.read(*given)
        await Tickets([TOKEN], one).spend(ticket)
        server.let_pass(2 * TICKET_SECONDS + 10)
        monkeypatch.setattr(time, "time", lambda: real() - 300)

        assert refused(Tickets([TOKEN], two), *given) == "ticket_expired"
        # What this instance gives out is valid on the others for a minute.
        there = Tickets([TOKEN], one, lambda: real() + TICKET_SECONDS - 2)
        there.read(*parts(Tickets([TOKEN], two).path(ACCOUNT, CALL)))


async def test_a_used_ticket_is_remembered_longer_than_any_instance_accepts_it(
    server: RedisServer,
) -> None:
    """Instances learn the clock of Redis with each beat, so one may be a little
    behind."""
    load = InstanceLoad(1, 0)
    async with (
        redis_registry(server.url, lambda: load) as one,
        redis_registry(server.url, lambda: load) as two,
    ):
        desk = Tickets([TOKEN], one)
        ticket = desk.read(*parts(desk.path(ACCOUNT, CALL)))
        await desk.spend(ticket)
        server.let_pass(TICKET_SECONDS + 10)

        with pytest.raises(TicketRefused, match="ticket_used"):
            await Tickets([TOKEN], two).spend(ticket)


def test_a_ticket_expires_after_a_minute(clock: Clock) -> None:
    """A ticket from an old log is refused."""
    desk = tickets(clock)
    given = parts(desk.path(ACCOUNT, CALL))
    clock.now += TICKET_SECONDS + 1

    assert refused(desk, *given) == "ticket_expired"


def test_each_stream_has_its_own_ticket(clock: Clock) -> None:
    """Two streams of one call get two tickets."""
    desk = tickets(clock)

    assert desk.path(ACCOUNT, CALL) != desk.path(ACCOUNT, CALL)


def test_a_ticket_is_valid_for_one_call_and_account(clock: Clock) -> None:
    """A ticket cannot be used for another call or account."""
    desk = tickets(clock)
    account, call, ticket = parts(desk.path(ACCOUNT, CALL))

    assert refused(desk, account, "CA" + "2" * 32, ticket) == "ticket_forged"
    assert refused(desk, "AC" + "b" * 32, call, ticket) == "ticket_forged"
    assert refused(desk, call, account, ticket) == "ticket_forged"
    assert refused(desk, account + call[:1], call[1:], ticket) == "ticket_forged"


def test_no_part_of_a_ticket_can_be_changed(clock: Clock) -> None:
    """Neither its expiry nor its nonce can be changed."""
    desk = tickets(clock)
    account, call, ticket = parts(desk.path(ACCOUNT, CALL))
    until, nonce, mac = ticket.split(".")
    later = f"{int(until, 16) + 1:x}"

    for changed in (
        f"{later}.{nonce}.{mac}",
        f"{until}.{nonce[::-1]}.{mac}",
        f"{until}.{nonce}.{mac[:-1]}",
        f"{until}.{nonce}.{mac}A",
        f"{until}.{nonce}.",
        f"{until}.{nonce}",
        f"{until}{nonce}.{mac}",
        f".{nonce}.{mac}",
        f"{until.upper()}.{nonce}.{mac}x",
        f"{ticket}." + "A" * 24 * 10,
    ):
        assert refused(desk, account, call, changed) == "ticket_forged", changed


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=250))
def test_an_invented_ticket_is_never_valid(
    account: str, call: str, ticket: str
) -> None:
    """Any invented ticket is refused, and no other exception is raised."""
    assert refused(tickets(Clock()), account, call, ticket) == "ticket_forged"


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_sid_survives_the_url(account: str, call: str) -> None:
    """No SID can break out of its part of the URL."""
    path = tickets(Clock()).path(account, call) if _is_utf8(account + call) else ""

    assert not path or path.count("/") == 4
    assert path.isascii()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("issuer", [(TOKEN,), (TOKEN, OTHER), (OTHER, TOKEN)])
@pytest.mark.parametrize("reader", [(TOKEN,), (TOKEN, OTHER), (OTHER, TOKEN)])
def test_tickets_are_valid_during_a_rotation(
    clock: Clock, issuer: tuple[str, ...], reader: tuple[str, ...]
) -> None:
    """While the instances are restarted with the other token one by one, each accepts
    the tickets of all others."""
    given = parts(tickets(clock, *issuer).path(ACCOUNT, CALL))

    assert tickets(clock, *reader).read(*given).call_sid == CALL


def test_a_removed_token_is_not_accepted(clock: Clock) -> None:
    """A leaked token is worth nothing after it was removed from the settings."""
    given = parts(tickets(clock, OTHER).path(ACCOUNT, CALL))

    assert refused(tickets(clock, TOKEN), *given) == "ticket_forged"


def test_a_ticket_does_not_reveal_the_token(clock: Clock) -> None:
    """A ticket in a balancer's log cannot be used to sign webhooks."""
    assert TOKEN not in tickets(clock).path(ACCOUNT, CALL)


@pytest.mark.parametrize("keys", [(), ("",), (TOKEN, "")])
def test_an_empty_secret_is_an_error(keys: tuple[str, ...]) -> None:
    """With an empty token anyone could sign tickets."""
    with pytest.raises(ValueError, match="secret"):
        Tickets(keys, MemoryRegistry())


def test_the_url_is_short_enough(clock: Clock) -> None:
    """Even with two tokens the URL is far below every balancer's limit."""
    assert len(tickets(clock, TOKEN, OTHER).path(ACCOUNT, CALL)) < 200
