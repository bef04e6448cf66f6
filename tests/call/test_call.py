"""A whole Call, over a phone in memory and the fake model on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from agents.realtime import RealtimeAgent

from bridge.agent.live import BadRequest, LiveCall, Transfer
from bridge.agent.phone_tools import hang_up
from bridge.app.routes import Route, Routes, Silence
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.audio import g711
from bridge.call.call import Call
from bridge.call.continuity import TAKEN_OVER
from bridge.call.leg import CallLeg
from bridge.call.media_leg import MediaLeg
from bridge.call.stream import IdentifiedPhone
from bridge.core.commands import End
from bridge.core.inputs import EndCall, Play
from bridge.fleet import CallEntry, NextStep, Then
from bridge.fleet.memory import MemoryRegistry
from bridge.sim.model import Behaviour, CallTool, ModelServer, PlayRuler
from tests.support.memory_leg import CALL_SID, MemoryLeg, MemoryPhone
from tests.support.waiting import until

AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="plain", instructions="You are a test.", tools=[hang_up]
)
FALLBACK = "+14155550190"
DESK = "+14155550191"


@dataclass
class Place:
    """The services of an instance, and its fake model."""

    services: Services
    model: ModelServer

    async def next_step(self) -> NextStep | None:
        return await self.services.registry.next_step(CALL_SID)

    @asynccontextmanager
    async def call(self, end: MemoryPhone | CallLeg) -> AsyncIterator[Call]:
        """A running call. It must end in the context, and leave nothing."""
        if isinstance(end, MemoryPhone):
            end = MediaLeg(IdentifiedPhone(end), self.services)
        call = Call(end, self.services)
        async with asyncio.timeout(20):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call.run(), name="run")
                yield call
        await self.is_empty()

    async def is_empty(self) -> None:
        left = [it.get_name() for it in asyncio.all_tasks()]
        assert not [name for name in left if name.startswith(CALL_SID)]
        assert await self.services.registry.calls() == []
        active = "bridge_calls_active"
        assert self.services.metrics.registry.get_sample_value(active) == 0
        await until(lambda: not self.model.active, what="the model session's end")

    def outcome(self, by: str, why: str) -> float | None:
        labels = {"outcome": f"{by}_{why}"}
        registry = self.services.metrics.registry
        return registry.get_sample_value("bridge_calls_total", labels)


@asynccontextmanager
async def place(
    *turns: Any, route: Route | None = None, **functions: Any
) -> AsyncIterator[Place]:
    settings = Settings(insecure=True, greeting="Greet.", fallback_number=FALLBACK)
    routes = Routes(defaults=route or Route())
    user_code = UserCode(AGENT, routes, functions=functions)
    async with (
        ModelServer(Behaviour(turns=turns)) as model,
        start_services(settings, user_code, model.url) as services,
    ):
        yield Place(services, model)


async def test_the_agent_greets_and_hangs_up() -> None:
    """The caller hears the whole greeting before the stream is closed, and Twilio is
    told to hang up."""
    phone = MemoryPhone()
    async with place([PlayRuler(300), CallTool("hang_up", {})]) as here:
        async with here.call(phone) as call:
            await phone.closed.wait()

        assert phone.heard == pytest.approx(0.3)
        assert here.outcome("agent", "hung_up") == 1
        assert await here.next_step() == NextStep(Then.HANG_UP)
        assert call.expects_next_request and call.live and call.live.over


@pytest.mark.parametrize("lost", [True, False])
async def test_a_newer_stream_takes_over(lost: bool) -> None:
    """A caller whose connection broke talks on, with the same agent session; also if
    the bridge has not noticed yet that the older stream is dead."""
    first, second = MemoryPhone("MZ1"), MemoryPhone("MZ2")
    async with place([PlayRuler(300)]) as here:
        async with here.call(first) as call:
            await until(lambda: first.heard > 0.2, what="the greeting")
            if lost:
                first.lose()
                await until(lambda: call.awaits_new_stream, what="the loss")
                await until(first.closed.is_set, what="the old socket's close")
            async with asyncio.TaskGroup() as tasks:
                over = tasks.create_task(call.take_over(IdentifiedPhone(second)))
                await until(lambda: call.live and call.live.facts.stream_sid == "MZ2")
                await until(first.closed.is_set, what="the old socket's close")
                assert not call.awaits_new_stream
                [entry] = await here.services.registry.calls()
                assert entry.stream_sid == "MZ2"
                second.stop()
            assert over.result()
        assert len(here.model.sessions) == 1
        assert here.outcome("caller", "hung_up") == 1
        assert await here.next_step() is None
        assert not await call.take_over(IdentifiedPhone(MemoryPhone("MZ3")))


SORRY = NextStep(Then.SORRY, FALLBACK)


@pytest.mark.parametrize(
    ("by", "why", "step"),
    [
        ("caller", "hung_up", None),
        ("bridge", TAKEN_OVER, None),
        ("bridge", "handed_over", NextStep(Then.RESUME)),
        ("caller", "connection_lost", NextStep(Then.RESUME)),
        ("agent", "hung_up", NextStep(Then.HANG_UP)),
        ("agent", "message_left", NextStep(Then.HANG_UP)),
        ("agent", "transferred", NextStep(Then.TRANSFER, DESK)),
        ("bridge", "silent", NextStep(Then.HANG_UP)),
        ("bridge", "machine", NextStep(Then.HANG_UP)),
        ("bridge", "shutdown", SORRY),
        ("model", "closed", SORRY),
        ("caller", "protocol_error", SORRY),
    ],
)
async def test_the_next_step_of_each_end(
    by: str, why: str, step: NextStep | None
) -> None:
    """Each end leads to what the caller expects; the snapshot is kept only if an agent
    may go on with the call."""
    async with place(route=Route(fallback=FALLBACK, greeting="")) as here:
        async with here.call(MemoryPhone()) as call:
            await until(lambda: here.model.active and call.live and call.live.session)
            assert call.live
            if why == "transferred":
                call.live.transfers = {"desk": Transfer(DESK)}
                assert await call.live.transfer(DESK)
            else:
                call.feed(EndCall(by, why))

        assert here.outcome(by, why) == 1
        assert await here.next_step() == step
        kept = await here.services.registry.get(f"snapshot:{CALL_SID}")
        goes_on = step is not None and step.then in (Then.RESUME, Then.TRANSFER)
        assert (kept is not None) == goes_on
        assert call.expects_next_request == (step is not None)


async def test_a_bug_while_the_call_ends() -> None:
    """A task of the call fails while the next step is being stored: it is stored all
    the same, and the call has no entry any more."""
    phone = MemoryPhone()
    async with place([PlayRuler(300)]) as here:
        registry, storing = here.services.registry, asyncio.Event()
        closed = registry.closed

        async def slow(entry: CallEntry, step: NextStep | None) -> None:
            storing.set()
            await asyncio.sleep(0.2)
            await closed(entry, step)

        async def fails() -> None:
            await storing.wait()
            raise LookupError("a bug")

        registry.closed = slow  # type: ignore[method-assign]
        async with here.call(phone) as call:
            await until(lambda: phone.heard > 0.1, what="the greeting")
            call.start_task(fails(), "bug")
            call.end("shutdown")

        assert await here.next_step() == NextStep(Then.SORRY, FALLBACK)


async def test_a_bug_in_the_leg_ends_the_call_with_the_apology() -> None:
    """A bug ends one call and not the process, and the caller hears the apology."""
    phone = MemoryPhone()
    async with place([PlayRuler(300)]) as here:
        async with here.call(phone) as call:
            phone.bug = LookupError("a bug")

        assert here.outcome("bridge", "failed") == 1
        assert await here.next_step() == SORRY
        assert phone.closed.is_set()
        assert not await call.take_over(IdentifiedPhone(MemoryPhone("MZ2")))


class SlowRegistry(MemoryRegistry):
    """Redis is away: an entry is written when it is back."""

    async def opened(self, entry: CallEntry) -> None:
        await asyncio.sleep(60)


async def test_a_bug_while_the_registry_is_slow() -> None:
    """The next step is stored although the entry was not written: the task that writes
    it was cancelled with the call."""
    phone = MemoryPhone()
    async with place([PlayRuler(300)]) as here:
        slow = Place(replace(here.services, registry=SlowRegistry()), here.model)
        async with slow.call(phone):
            phone.bug = LookupError("a bug")

        assert await slow.next_step() == SORRY and phone.closed.is_set()


async def test_a_call_that_ends_before_its_start() -> None:
    """A shutdown does not wait for Twilio's `start`."""
    phone = MemoryPhone()
    async with place() as here:
        async with here.call(phone) as call:
            call.end("shutdown")

        assert here.outcome("bridge", "shutdown") == 1
        assert phone.closed.is_set() and not call.expects_next_request


async def test_a_call_that_ends_while_its_session_is_prepared() -> None:
    """A function of the user's that hangs delays the end of no call."""
    running = asyncio.Event()

    async def on_call(live: LiveCall) -> None:
        running.set()
        await asyncio.sleep(60)

    route = Route(on_call="on_call")
    async with place(route=route, on_call=on_call) as here:
        async with here.call(MemoryPhone()) as call:
            await running.wait()
            call.end("shutdown")

        assert here.model.sessions == []
        assert await here.next_step() == SORRY


async def test_a_leg_that_can_do_less() -> None:
    """A call without a stream is led by the same Call: it has a route, an entry,
    metrics and an end, but nothing is stored for a next stream."""
    leg = MemoryLeg()
    async with place() as here:
        async with here.call(leg) as call:
            await until(lambda: leg.running, what="the session")
            assert len(await here.services.registry.calls()) == 1
            assert call.live and not await call.take_over(
                IdentifiedPhone(MemoryPhone())
            )
            with pytest.raises(BadRequest, match="cannot send digits"):
                await call.live.send_digits("1")
            with pytest.raises(BadRequest, match="not connected"):
                call.live.send_raw({"type": "response.create"})
            leg.hung_up.set()

        assert leg.closed == [End("model", "closed")]
        assert here.outcome("model", "closed") == 1
        assert await here.next_step() is None and not call.expects_next_request
        assert await here.services.registry.get(f"snapshot:{CALL_SID}") is None


async def test_a_line_without_frames_in_silence_has_the_limit_of_silence() -> None:
    """Some lines send no frames in silence, but return marks. The mark of the last
    audio begins the time of silence, whichever of a row of marks it is: the timer is
    set for it."""
    phone = MemoryPhone()
    route = Route(silence=Silence(seconds=1.0))
    async with place([PlayRuler(100)], route=route) as here, here.call(phone) as call:
        await until(lambda: phone.heard, what="the greeting")
        for marks in range(6, 11):
            seconds = 0.2 * marks
            call.feed(Play(g711.silence(200 * marks)))
            await asyncio.sleep(seconds + 0.1)
            deadline = call._conversation.deadline
            assert deadline and call._timer._at <= deadline
        phone.stop()
