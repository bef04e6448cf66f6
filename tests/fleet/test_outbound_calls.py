"""Outbound calls of two instances that share a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.app.outbound import OutboundCalls, RepeatedKey
from bridge.app.outbound_limits import OutboundLimited
from bridge.app.twilio_api import RestAccess, TwilioApi, TwilioRefused
from bridge.fleet.redis import RedisRegistry
from bridge.sim.caller import WaitStep
from bridge.sim.twilio.rest import Answers, TwilioRest
from tests.app.test_outbound import FROM, PERSONS, SID, TOKEN, order, status_form
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import Instance, pair, soon


class Placing:
    """Twilio's API, and two instances."""

    def __init__(self, rest: TwilioRest, *instances: Instance) -> None:
        self.rest = rest
        self.instances = instances

    def outbound(self, number: int, **options: Any) -> OutboundCalls:
        access = RestAccess(
            SID, SID, options.pop("password", TOKEN), api_url=self.rest.url
        )
        given = {"prefixes": ["+1"], "per_second": 100.0, "key": b"k", **options}
        registry: RedisRegistry = self.instances[number].registry
        return OutboundCalls(
            registry, TwilioApi(access), public_url="http://127.0.0.1:1", **given
        )


@asynccontextmanager
async def placing(server: RedisServer) -> AsyncIterator[Placing]:
    """Calls that ring until the test is over."""
    callee = Answers([WaitStep(60)], after=60.0)
    async with AsyncExitStack() as stack:
        one, two = await stack.enter_async_context(pair(server))
        rest = await stack.enter_async_context(
            TwilioRest(SID, TOKEN, numbers=frozenset({FROM}), callee=callee)
        )
        yield Placing(rest, one, two)


async def test_a_short_call_does_not_end_the_place_of_a_long_one(
    running: RedisServer,
) -> None:
    """Calls with and without `longest_seconds` count together, and no number rings
    twice."""
    running.client.flushall()
    async with placing(running) as it:
        here, there = it.outbound(0, at_once=2), it.outbound(1, at_once=2)
        await here.place(order(to=PERSONS[1], campaign="spring"))
        short = {"longest_seconds": 1, "ring_seconds": 5}
        await there.place(order(to=PERSONS[2], **short))

        for to in (PERSONS[1], PERSONS[3]):
            for instance in (here, there):
                with pytest.raises(OutboundLimited):
                    await instance.place(order(to=to, campaign="spring", **short))
                with pytest.raises(OutboundLimited):
                    await instance.place(order(to=to, **short))
        assert len(it.rest.calls) == 2


async def test_a_key_that_two_instances_get_at_once(running: RedisServer) -> None:
    """A client repeats its request at another instance before the first one has
    answered: one call is placed. A key whose order was refused is free on both."""
    running.client.flushall()
    async with placing(running) as it:
        with pytest.raises(TwilioRefused):
            await it.outbound(0, password="wrong").place(order(), "k1")

        answers = await asyncio.gather(
            *[it.outbound(number % 2).place(order(), "k1") for number in range(6)],
            return_exceptions=True,
        )

        [call_sid] = it.rest.calls
        assert {each for each in answers if isinstance(each, str)} == {call_sid}
        refused = [each for each in answers if isinstance(each, RepeatedKey)]
        assert not any(each.other for each in refused)
        assert await it.outbound(1).place(order(), "k1") == call_sid


async def test_redis_is_away(tmp_path: Path) -> None:
    """While Redis is away nobody knows if a key was used, so a retry places no second
    call. A call that ends meanwhile is not counted for hours when Redis is back."""
    server = RedisServer(tmp_path, "--appendfsync", "always", keep=True)
    server.start()
    try:
        async with placing(server) as it:
            call_sid = await it.outbound(0, at_once=1).place(order(id="o1"), "k1")
            server.stop()
            await soon(lambda: not any(each.up[-1] for each in it.instances), "is up")

            with pytest.raises(OutboundLimited) as limited:
                await it.outbound(1).place(order(), "k1")
            assert limited.value.limit == "registry"
            done = status_form(call_sid, "completed", 3)
            await it.outbound(0).note_status(done, "o1")
            server.start()
            await soon(lambda: all(each.up[-1] for each in it.instances), "no Redis")

            assert await it.outbound(1).place(order(), "k1") == call_sid
            await it.outbound(1, at_once=1).place(order())
            assert len(it.rest.calls) == 2
    finally:
        server.stop()
