"""Two instances that stop together: which of them Twilio asks is a matter of chance."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from time import monotonic
from typing import Any

from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from bridge.app.routes import Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.fleet import CallEntry, NextStep, Then
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.http.server import Server
from bridge.http.webhooks import RESTART_SECONDS
from bridge.sim.model import Behaviour, ModelServer, Ruled
from tests.e2e.bridge import AGENT, Place
from tests.e2e.test_back_again import SID, first_sound, stream
from tests.e2e.test_full import TALK, Fleet, asked, verbs

NUMBER = "+15550001111"


class Shared(MemoryRegistry):
    """What two instances have in common, as Redis would be; nobody takes calls."""

    shared = True
    takes_calls = False
    others_take_calls = False

    async def reachable(self) -> bool:
        return True

    async def others(self) -> bool:
        return self.others_take_calls

    async def room(self) -> bool:
        return self.takes_calls


@asynccontextmanager
async def stopping(registry: Shared, **conf: Any) -> AsyncIterator[Fleet]:
    """Two instances; the second drains already."""
    settings = Settings(host="127.0.0.1", port=0, insecure=True, **conf)
    both = Fleet([], [])
    async with AsyncExitStack() as stack:
        model = ModelServer(Behaviour(fallback=[Ruled(300)]))
        both.model = await stack.enter_async_context(model)
        for _ in range(2):
            opened = start_services(settings, UserCode(AGENT, Routes()), model.url)
            services = replace(
                await stack.enter_async_context(opened), registry=registry
            )
            both.services.append(services)
            both.servers.append(Server(settings, services))
            await both.servers[-1].start()
            registry.subscribe(both.servers[-1]._told)
        both.services[1].capacity.draining = True
        yield both
        for server in both.servers:
            await server.close()


async def stopped_in_a_call(both: Fleet, asks: int) -> tuple[list[str], float]:
    """The first instance stops while it has a call, and Twilio asks the instance of
    number `asks` what follows: its answer, and how long the first one stayed then."""
    place = Place(both.servers[0], both.model, Settings())
    async with stream(place, "MZ1") as socket, asyncio.TaskGroup() as tasks:
        await first_sound(socket)
        await asyncio.sleep(1)
        tasks.create_task(both.servers[0].close(0.05), name="stop")
        with suppress(ConnectionClosed):
            while True:
                await socket.recv()
        await asyncio.sleep(0.3)  # Twilio is far away
        document = await asked(both.url(asks), "/voice/next", CallSid=SID)
        began = monotonic()
    return verbs(document), monotonic() - began


async def test_the_other_one_is_asked() -> None:
    """The first one hears of it, so it neither waits in vain nor warns."""
    with capture_logs() as lines:
        async with stopping(Shared(), greeting="Go.") as both:
            answer, stayed = await stopped_in_a_call(both, asks=1)

    assert answer == ["Say", "Pause", "Redirect"]
    assert stayed < 2
    assert "shutdown_left_calls_unanswered" not in [line["event"] for line in lines]


async def test_the_others_are_about_to_stop_as_well() -> None:
    """What is known of them is some seconds old. Twilio finds the first one there."""
    registry = Shared()
    async with stopping(registry, greeting="Go.") as both:
        registry.others_take_calls = True
        answer, _ = await stopped_in_a_call(both, asks=0)

    assert answer == ["Say", "Pause", "Redirect"]


async def test_nobody_is_dialled_twice() -> None:
    """A transfer was not answered, and on the way back all instances stop: the caller
    waits, and comes back to the agent, not to the phone that nobody picks up."""
    registry = Shared()
    async with stopping(registry) as both:
        both.services[0].capacity.draining = True
        await registry.put("snapshot:CA1", TALK.encoded(FORMAT), 60)
        entry, step = CallEntry("CA1", "MZ1", 0.0), NextStep(Then.TRANSFER, NUMBER)
        await registry.closed(entry, step)
        back = await asked(both.url(0), "/voice/next", DialCallStatus="no-answer")
        held = await asked("", back[0].attrib["action"])
        [redirect] = held.iter("Redirect")
        registry.takes_calls = True
        resumed = await asked("", redirect.text or "")

    assert verbs(held) == ["Say", "Pause", "Redirect"]
    assert verbs(resumed) == ["Connect"]


async def test_a_queue_that_nobody_serves() -> None:
    """Calls that the other one still has will end soon, too: no short turn of a queue,
    at the end of which nobody is there."""
    registry = Shared()
    async with stopping(registry, when_full="queue") as both:
        both.services[0].capacity.draining = True
        await registry.put("snapshot:CA1", TALK.encoded(FORMAT), 60)
        await registry.closed(CallEntry("CA1", "MZ1", 0.0), NextStep(Then.RESUME))
        await registry.opened(CallEntry("CAother", "MZother", 0.0))
        document = await asked(both.url(0), "/voice/next")

    assert [it.attrib["length"] for it in document.iter("Pause")] == [
        str(RESTART_SECONDS)
    ]
