"""All instances stop together, as when docker compose recreates them: no call is
lost."""

import asyncio
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.app.routes import Route, Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode
from bridge.http import webhooks
from bridge.http.server import EXPECTED_SECONDS, Server, serving
from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, HELLO
from tests.fleet.redis_server import RedisServer
from twiml import spoken_texts

pytestmark = pytest.mark.slow

PAUSE_SECONDS = 2
TALK: steps.Script = [
    steps.WaitStep(8),
    steps.SayStep(HELLO),
    steps.WaitStep(2),
    steps.HangUpStep(),
]
LONG = Behaviour(fallback=[PlayRuler(3000)])
NUMBER = "+15550009999"


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "RESTART_SECONDS", PAUSE_SECONDS)


def instance(
    port: int, model: ModelServer, redis: RedisServer, route: Route | None = None
) -> AbstractAsyncContextManager[Server]:
    conf: dict[str, Any] = {"insecure": True, "redis_url": redis.url}
    settings = Settings(host="127.0.0.1", port=port, **conf)
    return serving(
        settings, UserCode(AGENT, Routes(defaults=route or Route())), model.url
    )


async def recreated(
    redis: RedisServer,
    talk: steps.Script = TALK,
    route: Route | None = None,
    redis_away: bool = False,
    starts_again: bool = True,
) -> tuple[CallRecord, float]:
    """The record of a call whose only instance stops and starts again a little later,
    and the seconds that the stop took."""
    async with ModelServer(LONG) as model, asyncio.TaskGroup() as tasks:
        async with instance(0, model, redis, route) as server:
            port = server.port
            caller = Caller(webhook_url=f"http://127.0.0.1:{port}/voice")
            call = tasks.create_task(caller.call(talk), name="the call")
            await asyncio.sleep(2.0)
            assert server.calls == 1
            if redis_away:
                redis.stop()
                await asyncio.sleep(2.5)
            began = monotonic()
            await server.close(drain_seconds=0.1)
            took = monotonic() - began
        if not starts_again:
            return await call, took
        async with instance(port, model, redis, route):
            return await call, took


async def test_the_caller_waits_and_continues(server: RedisServer) -> None:
    """The caller hears one sentence and a pause; then the agent continues the
    conversation."""
    record, _ = await recreated(server)

    assert record.said_by_twilio == [spoken_texts.MOMENT]
    assert record.ended_by == "caller" and len(record.streams) == 2
    assert any(run.start > record.streams[1].began_at for run in record.runs())


async def test_no_instance_starts_again(server: RedisServer) -> None:
    """The instance does not start again: Twilio reaches no instance, and the call
    ends."""
    record, _ = await recreated(server, starts_again=False)

    assert record.said_by_twilio == [spoken_texts.MOMENT]
    assert record.ended_by.startswith("error: 11205")


async def test_a_fallback_number_is_dialled(server: RedisServer) -> None:
    """A person at the fallback number is better than a pause whose end is not known."""
    record, _ = await recreated(server, route=Route(fallback=NUMBER))

    assert record.dialled == NUMBER
    assert record.said_by_twilio == [spoken_texts.SORRY_CONNECTING]


async def test_another_language(server: RedisServer) -> None:
    """Callers who speak another language hear no English sentence."""
    record, _ = await recreated(server, route=Route(language="fr-FR"))

    assert record.said_by_twilio == [] and record.ended_by == "caller"
    assert len(record.streams) == 2


async def test_redis_is_away_as_well(server: RedisServer) -> None:
    """A new instance would not know the call, so it ends with an apology."""
    record, _ = await recreated(server, redis_away=True, starts_again=False)

    assert record.said_by_twilio == [spoken_texts.SORRY]


async def test_a_caller_who_hangs_up_meanwhile(server: RedisServer) -> None:
    """Twilio will not ask for the next step: the stop does not wait for it and does not
    warn."""
    with capture_logs() as lines:
        record, took = await recreated(
            server, [steps.WaitStep(2.5), steps.HangUpStep()]
        )

    assert record.ended_by == "caller" and record.said_by_twilio == []
    assert took < EXPECTED_SECONDS / 2
    assert "shutdown_left_calls_unanswered" not in [line["event"] for line in lines]
