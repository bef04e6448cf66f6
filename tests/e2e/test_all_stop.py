"""Two instances that stop at the same time: which one Twilio asks is a matter of
chance."""

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
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from tests.e2e.bridge import AGENT, RunningBridge
from tests.e2e.test_back_again import SID, first_sound, stream
from tests.e2e.test_full import SID as CALL
from tests.e2e.test_full import TALK, Fleet, asked, verbs

NUMBER = "+15550001111"


class Shared(MemoryRegistry):
    """The registry of two instances, as Redis would be; no instance takes calls."""

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
    """Two instances; the second one drains already."""
    settings = Settings(host="127.0.0.1", port=0, insecure=True, **conf)
    both = Fleet([], [])
    async with AsyncExitStack() as stack:
        model = ModelServer(Behaviour(fallback=[PlayRuler(300)]))
        both.model = await stack.enter_async_context(model)
        for _ in range(2):
            opened = start_services(settings, UserCode(AGENT, Routes()), model.url)
            services = replace(
                await stack.enter_async_context(opened), registry=registry
            )
            both.services.append(services)
            both.servers.append(Server(settings, services))
            await both.servers[-1].start()
            registry.subscribe(both.servers[-1]._handle_fleet_message)
        both.services[1].capacity.draining = True
        yield both
        for server in both.servers:
            await server.close()


async def stopped_in_a_call(both: Fleet, asks: int) -> tuple[list[str], float]:
    """The first instance stops while it has a call, and Twilio asks instance number
    `asks` for the next step. Returns the answer and how long the first instance kept
    running after it."""
    place = RunningBridge(both.servers[0], both.model, Settings())
    async with stream(place, "MZ1") as socket, asyncio.TaskGroup() as tasks:
        await first_sound(socket)
        await asyncio.sleep(1)
        tasks.create_task(both.servers[0].close(0.05), name="stop")
        with suppress(ConnectionClosed):
            while True:
                await socket.recv()
        await asyncio.sleep(0.3)  # the network delay to Twilio
        document = await asked(both.url(asks), "/voice/next", CallSid=SID)
        began = monotonic()
    return verbs(document), monotonic() - began


async def test_the_other_instance_is_asked_for_the_next_step() -> None:
    """The first instance hears of it, so it neither waits in vain nor logs a
    warning."""
    with capture_logs() as lines:
        async with stopping(Shared(), greeting="Go.") as both:
            answer, stayed = await stopped_in_a_call(both, asks=1)

    assert answer == ["Say", "Pause", "Redirect"]
    assert stayed < 2
    assert "shutdown_left_calls_unanswered" not in [line["event"] for line in lines]


async def test_the_other_instances_will_stop_too() -> None:
    """An instance's knowledge of the others is some seconds old. Twilio still reaches
    the first instance."""
    registry = Shared()
    async with stopping(registry, greeting="Go.") as both:
        registry.others_take_calls = True
        answer, _ = await stopped_in_a_call(both, asks=0)

    assert answer == ["Say", "Pause", "Redirect"]


async def test_a_failed_transfer_is_not_dialled_again() -> None:
    """A transfer was not answered, and all instances stop before the caller is back:
    the caller waits and returns to the agent, and the number is not dialled a second
    time."""
    registry = Shared()
    async with stopping(registry) as both:
        both.services[0].capacity.draining = True
        await registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        entry, step = CallEntry(CALL, "MZ1", 0.0), NextStep(Then.TRANSFER, NUMBER)
        await registry.closed(entry, step)
        back = await asked(both.url(0), "/voice/next", DialCallStatus="no-answer")
        held = await asked("", back[0].attrib["action"])
        [redirect] = held.iter("Redirect")
        registry.takes_calls = True
        resumed = await asked("", redirect.text or "")

    assert verbs(held) == ["Say", "Pause", "Redirect"]
    assert verbs(resumed) == ["Connect"]


async def test_no_queue_when_all_instances_stop() -> None:
    """Calls of the other instance will end soon, too: the caller waits for the restart,
    not in short turns of a queue at whose end no instance runs."""
    registry = Shared()
    async with stopping(registry, when_full="queue") as both:
        both.services[0].capacity.draining = True
        await registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        await registry.closed(CallEntry(CALL, "MZ1", 0.0), NextStep(Then.RESUME))
        await registry.opened(CallEntry("CAother", "MZother", 0.0))
        document = await asked(both.url(0), "/voice/next")

    assert [it.attrib["length"] for it in document.iter("Pause")] == [
        str(RESTART_SECONDS)
    ]
