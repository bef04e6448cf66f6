"""SIP calls on several instances with one Redis: one of them takes each call."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.app.quotas import Quotas
from bridge.app.services import Capacity
from bridge.fleet import Registry
from bridge.fleet.redis import redis_registry
from bridge.http.sip_calls import SipCalls
from bridge.sim.realtime.phone_call import SipCallState
from bridge.telemetry.metrics import Metrics
from tests.fleet.redis_server import RedisServer
from tests.sip.test_sip import Answer, SipSetup, place
from tests.support.waiting import until


@dataclass
class Instance:
    """One bridge of the fleet."""

    registry: Registry
    sip: SipCalls
    capacity: Capacity
    metrics: Metrics


class SlowQuotas(Quotas):
    """The registry is slow to answer whether a caller is admitted."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, lambda limit: None, key=b"")
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def admit(self, call_sid: str, caller: str) -> str | None:
        self.asked.set()
        await self.go_on.wait()
        return await super().admit(call_sid, caller)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = RedisServer(tmp_path)
    server.start()
    yield server.url
    server.stop()


@asynccontextmanager
async def instance(here: SipSetup, url: str, *, room: bool) -> AsyncIterator[Instance]:
    """Another instance beside `here`, which only has OpenAI's side in these tests."""
    capacity, metrics = Capacity(1, draining=not room), Metrics()
    async with (
        redis_registry(url, lambda: capacity.load) as registry,
        here.instance(registry=registry, capacity=capacity, metrics=metrics) as calls,
    ):
        yield Instance(registry, calls, capacity, metrics)


@dataclass
class Balancer:
    """Tries the next instance after a 503, as deploy/haproxy.cfg does."""

    instances: list[SipCalls]
    answers: list[int] = field(default_factory=list)

    async def __call__(self, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = 503, "no instance"
        for calls in self.instances:
            answer = await calls.incoming(headers, body)
            self.answers.append(answer[0])
            if answer[0] != 503:
                break
        return answer


async def knows_the_room(one: Instance, others: bool) -> None:
    while await one.registry.others() is not others:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.02)


async def test_a_call_goes_to_an_instance_that_has_room(redis_url: str) -> None:
    """This instance drains, as in every deploy: the caller does not hear the busy
    tone, as another instance takes the call."""
    async with (
        place() as here,
        instance(here, redis_url, room=False) as full,
        instance(here, redis_url, room=True) as free,
    ):
        await knows_the_room(full, True)
        here.incoming = balancer = Balancer([full.sip, free.sip])  # type: ignore[method-assign]
        call = await here.ring()
        await call.until(SipCallState.TALKING)

        assert balancer.answers == [503, 200]
        assert (full.sip.calls, free.sip.calls) == (0, 1)
        assert [verb for verb, _ in here.calls.requests] == ["accept"]


async def test_a_full_fleet_says_busy(redis_url: str) -> None:
    """No instance has room: the caller hears the busy tone at once, and the operator
    sees the limit in the metrics."""
    async with (
        place() as here,
        instance(here, redis_url, room=False) as one,
        instance(here, redis_url, room=False) as two,
    ):
        await knows_the_room(one, False)
        here.incoming = balancer = Balancer([one.sip, two.sip])  # type: ignore[method-assign]
        with capture_logs() as lines:
            call = await here.ring()
            await call.until(SipCallState.REJECTED)

        assert (balancer.answers, call.sip_status) == ([200], 486)
        hits = one.metrics.limit_hits.labels("calls")
        assert hits._value.get() == 1
        assert [it["why"] for it in lines if it["event"] == "call_refused"] == ["full"]


async def test_a_webhook_that_was_asked_for_again_is_taken(redis_url: str) -> None:
    """A 503 asks for the same delivery again. It is then a call, and not known."""
    async with (
        place() as here,
        instance(here, redis_url, room=False) as one,
        instance(here, redis_url, room=True),
    ):
        await knows_the_room(one, True)

        async def incoming(headers: Mapping[str, str], body: bytes) -> Answer:
            answer = await one.sip.incoming(headers, body)
            one.capacity.draining = False
            return answer

        here.incoming = incoming  # type: ignore[method-assign]
        call = await here.ring(copies=3)
        await call.until(SipCallState.TALKING)

        assert call.answers == [503, 200, 200]
        assert [verb for verb, _ in here.calls.requests] == ["accept"]


async def test_a_shutdown_gives_its_webhook_to_the_others(redis_url: str) -> None:
    """The instance stops while it decides about a call: another one takes it."""
    async with place() as here, instance(here, redis_url, room=True) as other:
        quotas = SlowQuotas(other.registry)
        stopping = here.instance(registry=other.registry, quotas=quotas)
        here.incoming = balancer = Balancer([stopping, other.sip])  # type: ignore[method-assign]

        async def stop() -> None:
            async with stopping:
                await quotas.asked.wait()
                asyncio.get_running_loop().call_soon(quotas.go_on.set)

        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            await asyncio.sleep(0)
            call = await here.ring()
            await call.until(SipCallState.TALKING)

        assert balancer.answers == [503, 200]
        assert other.sip.calls == 1


async def test_a_webhook_that_is_answered_late_is_one_call(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is slow, so OpenAI gets 503 and repeats. The first delivery is
    carried through nevertheless, once."""
    monkeypatch.setattr("bridge.http.sip_calls.ANSWER_SECONDS", 0.1)
    async with place() as here, instance(here, redis_url, room=True) as other:
        quotas = SlowQuotas(other.registry)
        async with here.instance(registry=other.registry, quotas=quotas) as slow:
            here.incoming = Balancer([slow, other.sip])  # type: ignore[method-assign]
            call = await here.ring(copies=2)
            quotas.go_on.set()
            await call.until(SipCallState.TALKING)

            assert slow.calls == 1
            assert [verb for verb, _ in here.calls.requests] == ["accept"]


async def test_deliveries_at_the_same_moment_are_one_call(redis_url: str) -> None:
    """OpenAI delivers at least once, perhaps to two instances."""
    async with (
        place() as here,
        instance(here, redis_url, room=True) as one,
        instance(here, redis_url, room=True) as two,
    ):

        async def incoming(headers: Mapping[str, str], body: bytes) -> Answer:
            answers = await asyncio.gather(
                *(it.incoming(headers, body) for it in (one.sip, one.sip, two.sip))
            )
            assert {status for status, _ in answers} == {200}
            return answers[0]

        here.incoming = incoming  # type: ignore[method-assign]
        call = await here.ring()
        await call.until(SipCallState.TALKING)
        await until(lambda: one.sip.calls + two.sip.calls == 1)

        assert [verb for verb, _ in here.calls.requests] == ["accept"]


async def test_the_last_line_is_given_once() -> None:
    """Two calls come in at the same moment and one line is free: one caller is answered
    and the other one hears the busy tone."""
    async with place() as here:
        calls = here.instance(capacity=Capacity(1, others=lambda: calls.calls))
        async with calls:
            here.incoming = calls.incoming  # type: ignore[method-assign]
            one, two = await asyncio.gather(here.ring(), here.ring())
            ends = SipCallState.TALKING, SipCallState.REJECTED
            await asyncio.gather(one.until(*ends), two.until(*ends))

            assert {one.state, two.state} == set(ends)
            assert calls.calls == 1
