"""The model is dialled when a stream's handshake is accepted, before its `start`."""

import asyncio
import json

from structlog.testing import capture_logs

from bridge.app.routes import Route
from bridge.model.session_settings import SessionSettings
from tests.e2e.test_attacks import (
    CALL,
    FORM,
    deployed,
    opened,
    start,
    stream_path,
)
from tests.support.waiting import until

STOP = json.dumps({"event": "stop", "streamSid": "MZ1", "stop": {"callSid": CALL}})


async def test_the_model_is_there_before_the_call_begins() -> None:
    """The caller does not wait for the handshake with the model after `start`: the call
    uses the connection that is open already."""
    async with deployed(greeting="Hi.") as place:
        async with await opened(place, await stream_path(place)) as socket:
            await until(lambda: place.model.active == 1)
            assert place.server.calls == 0
            await socket.send(start())
            async with asyncio.timeout(5):  # until the greeting is heard
                while json.loads(await socket.recv())["event"] != "media":
                    pass
            assert len(place.model.sessions) == 1
            await socket.send(STOP)
            await place.empty()
        assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_a_connection_that_has_no_caller_is_hung_up() -> None:
    """A stream that sends no `start`, or breaks, leaves no connection to the model: not
    beyond the time that a `start` may take."""
    async with deployed(start_seconds=0.4) as place:
        async with await opened(place, await stream_path(place)):
            await until(lambda: place.model.active == 1)
            await until(lambda: place.model.active == 0)
        other = {**FORM, "CallSid": "CA" + "7" * 32}
        socket = await opened(place, await stream_path(place, other))
        await until(lambda: len(place.model.sessions) == 2)
        socket.transport.abort()
        await until(lambda: place.model.active == 0)
        await place.empty()


async def test_a_call_with_a_model_of_its_own_ends_the_early_dials() -> None:
    """A route that names another model works as before, and no later call dials a
    connection for nothing."""
    route = Route(session=SessionSettings.read({"model": "another-model"}))
    with capture_logs() as lines:
        async with deployed(route=route) as place:
            for number in range(2):
                sid = f"CA{number}" + "7" * 31
                form = {**FORM, "CallSid": sid}
                async with await opened(place, await stream_path(place, form)) as it:
                    await it.send(start(sid))
                    await until(lambda: place.server.calls == 1)
                    await until(lambda: place.model.active == 1)
                    await it.send(STOP.replace(CALL, sid))
                    await place.empty()

            # Of the first call its own, and the early one unless that was hung up
            # before the server took it; of the second only its own.
            assert 2 <= len(place.model.sessions) <= 3
    assert [it["event"] for it in lines].count("early_dial_off") == 1


async def test_a_model_that_refuses_the_early_dial() -> None:
    """A wrong key ends the call with the apology, as without the early dial."""
    async with deployed(api_key="another key") as place:
        async with await opened(place, await stream_path(place)) as socket:
            await socket.send(start())
            await place.empty()
        assert place.metric('bridge_calls_total{outcome="model_refused"}') == 1
