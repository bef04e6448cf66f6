"""However a call ends, nothing of it is left, and a caller who is still there hears
why."""

import asyncio
import secrets
from time import monotonic
from typing import Any

import pytest
from agents.realtime import RealtimeAgent

from bridge.agent.live import LiveCall
from bridge.core import redial, stream_presence
from bridge.sim.model import Behaviour, Fail, PlayRuler
from bridge.sim.realtime import dialects
from bridge.sim.twilio import steps
from tests.e2e.bridge import CLOSED_SECONDS, HELLO, RunningBridge, bridge
from tests.e2e.test_attacks import ACCOUNT, FORM, PUBLIC, TOKEN
from tests.e2e.test_repeated_webhooks import ask, pair
from tests.fleet.redis_server import RedisServer
from tests.support.waiting import until
from twiml import spoken_texts

HANG_UP = steps.HangUpStep()
TALK = [steps.SayStep(HELLO), steps.HearStep(300)]
STAY = [*TALK, steps.WaitStep(20)]
LONG = Behaviour(turns=[[PlayRuler(6000)]] * 2)


async def test_the_caller_hangs_up_in_mid_sentence() -> None:
    """The model session, and its cost, ends with the call."""
    async with bridge(LONG) as place:
        record = await place.caller().call([*TALK, HANG_UP])
        await place.empty()

    assert record.ended_by == "caller"
    assert [request.path for request in record.requests].count("/voice/next") == 0
    assert place.session.closed == "client 1000"
    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_the_caller_hangs_up_at_once() -> None:
    """The caller has gone before the model session is ready."""
    async with bridge(Behaviour(delay_updated=1.0)) as place:
        await place.caller().call([HANG_UP])
        await place.empty()


@pytest.mark.both_loops
async def test_the_stream_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stop, no close: the socket is reset. If the caller does not return, the model
    session ends."""
    monkeypatch.setattr(stream_presence, "ABSENT_SECONDS", 0.3)
    async with bridge(LONG) as place:
        caller = place.caller(notice_seconds=5.0)
        await caller.call([*TALK, steps.DropStep(), steps.WaitStep(0.1), HANG_UP])
        await place.empty()

    assert place.metric('bridge_calls_total{outcome="caller_connection_lost"}') == 1


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Behaviour(turns=LONG.turns, drop_after=1.5), "model_lost"),
        (Behaviour(turns=LONG.turns, close_after=(1.5, 1011, "oops")), "model_lost"),
        (Behaviour(turns=LONG.turns, expire_after=1.5), "model_lost"),
        (Behaviour(fallback=[Fail("insufficient_quota")]), "model_failed"),
        (Behaviour(fallback=[Fail("rate_limit_exceeded")]), "model_failed"),
        (Behaviour(ignore_formats=True), "model_wrong_audio_format"),
        (Behaviour(reject_update="invalid_value"), "model_refused"),
        (Behaviour(refuse=401), "model_refused"),
        (Behaviour(refuse=500), "model_not_ready"),
        (Behaviour(refuse_model=["gpt-realtime-2.1"]), "model_refused"),
        (Behaviour(says=dialects.refuses_late), "model_refused"),
        (Behaviour(close_after=(0.0, 1008, ""), delay_updated=9.0), "model_refused"),
        (Behaviour(close_after=(0.0, 1011, ""), delay_updated=9.0), "model_not_ready"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
async def test_the_model_fails(
    fault: Behaviour, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session fails like the one before: the caller hears a sentence, not
    silence."""
    monkeypatch.setattr(redial, "READY_SECONDS", 2.0)
    monkeypatch.setattr(redial, "AWAY_SECONDS", 1.0)
    async with bridge(fault, fallback_number="+15550009999") as place:
        record = await place.caller().call(STAY)
        await place.empty()

    *before, last = record.said_by_twilio
    assert last == spoken_texts.SORRY_CONNECTING
    assert set(before) <= {spoken_texts.MOMENT}  # while a rate limit lasts
    assert record.dialled == "+15550009999"
    assert record.ended_by == "bridge"
    assert place.metric(f'bridge_calls_total{{outcome="{outcome}"}}') == 1


async def test_a_wrong_api_key() -> None:
    """The operator reads the reason in the log, the caller hears an apology."""
    async with bridge(api_key="right", openai_api_key="wrong") as place:
        record = await place.caller().call([steps.WaitStep(5)])
        await place.empty()

    assert record.said_by_twilio == [spoken_texts.SORRY]
    assert place.model.refused == [401]


async def test_nothing_listens_at_the_models_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a wrong URL the caller hears a sentence, too."""
    monkeypatch.setattr(redial, "READY_SECONDS", 1.0)
    async with bridge() as place:
        await place.model.__aexit__(None, None, None)
        record = await place.caller().call([steps.WaitStep(5)])
        await place.empty()
        await place.model.__aenter__()

    assert record.said_by_twilio == [spoken_texts.SORRY]


def _raises(call: LiveCall) -> RealtimeAgent[Any]:
    raise RuntimeError("no agent today")


def _exits(call: LiveCall) -> RealtimeAgent[Any]:
    raise SystemExit("one call's agent must not stop the server")


async def _cancels(call: LiveCall) -> RealtimeAgent[Any]:
    raise asyncio.CancelledError


def _gives_nothing(call: LiveCall) -> Any:
    return None


def _bad_instructions(context: object, agent: object) -> str:
    raise RuntimeError("no instructions today")


@pytest.mark.parametrize(
    "agent",
    [
        _raises,
        _exits,
        _cancels,
        _gives_nothing,
        RealtimeAgent(name="bad", instructions=_bad_instructions),
    ],
    ids=["raises", "exits", "cancels", "gives nothing", "bad instructions"],
)
async def test_the_users_agent_fails(agent: Any) -> None:
    """A mistake in the user's code ends one call, and the caller hears a sentence."""
    async with bridge(agent=agent) as place:
        record = await place.caller().call([steps.WaitStep(5)])
        await place.empty()

    assert record.said_by_twilio == [spoken_texts.SORRY]
    assert place.metric('bridge_calls_total{outcome="bridge_agent_failed"}') == 1


@pytest.mark.both_loops
async def test_a_frozen_model_does_not_keep_the_call() -> None:
    """The caller hangs up while the model sends nothing more, no close frame either."""
    frozen = Behaviour(turns=LONG.turns, freeze_after=1.0)
    async with bridge(frozen) as place:
        await place.caller().call([steps.WaitStep(1.5), HANG_UP])
        began = asyncio.get_running_loop().time()
        while place.server.calls:
            await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() - began < CLOSED_SECONDS


@pytest.mark.both_loops
async def test_the_bridge_shuts_down() -> None:
    """A caller who is still talking after the drain time hears a sentence, not just a
    click."""
    async with bridge(LONG) as place:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call(STAY))
            await asyncio.sleep(1.5)
            assert place.server.calls == 1
            await place.server.close(drain_seconds=0.1)
        await place.empty()

    assert call.result().said_by_twilio == [spoken_texts.SORRY]
    assert place.metric('bridge_calls_total{outcome="bridge_shutdown"}') == 1


async def test_draining_lets_calls_finish() -> None:
    """A deploy does not cut a call that is about to end; new calls are refused."""
    async with bridge(LONG) as place:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call([*TALK, HANG_UP]))
            await asyncio.sleep(1.0)
            drained = tasks.create_task(place.server.close(drain_seconds=30))
            await asyncio.sleep(0.1)
            refused = await place.caller().call([steps.WaitStep(1)])
            assert not drained.done()
        await place.empty()

    assert refused.said_by_twilio == [spoken_texts.BUSY]
    assert call.result().ended_by == "caller"


async def _many(place: RunningBridge, last: steps.Script, times: int) -> None:
    for _ in range(times):
        await place.caller().call([steps.WaitStep(0.2), *last])


@pytest.mark.both_loops
async def test_one_call_after_another_leaves_nothing() -> None:
    """Forty calls, four at a time, ten of them with a broken stream: no task, socket or
    registry entry remains."""
    back = [steps.DropStep(), steps.SayStep(HELLO[:1600]), HANG_UP]
    async with bridge(LONG) as place:
        async with asyncio.TaskGroup() as tasks:
            for last in ([HANG_UP], [HANG_UP], [HANG_UP], back):
                tasks.create_task(_many(place, last, 10))
        await place.empty()

    # On a busy machine some calls end before the model has answered the handshake.
    assert len(place.model.sessions) > 30
    assert place.metric("bridge_calls_active") == 0


# --- Twilio says that the call is over ---


async def test_a_final_status_ends_a_call_whose_socket_is_half_open(
    server: RedisServer,
) -> None:
    """The caller has gone, and nothing comes on the socket: the session, which costs
    money, ends with Twilio's status, whichever instance gets it."""
    async with pair(server) as (one, two):
        for asked in (one, two):
            sid = f"CA{secrets.token_hex(16)}"
            caller = one.caller(
                auth_token=TOKEN,
                signed_origin=PUBLIC,
                account_sid=ACCOUNT,
                call_sid=sid,
                notice_seconds=60.0,
            )
            # Dropped at once: a caller whose socket closes would be called back.
            script = [steps.DropStep("silence"), steps.WaitStep(60)]
            async with asyncio.TaskGroup() as tasks:
                talking = tasks.create_task(caller.call(script))
                limit = monotonic() + 20
                while sid not in await one.server.registered():
                    assert monotonic() < limit, "the call does not begin"
                    await asyncio.sleep(0.02)  # the model is dialled before
                await until(lambda: one.model.active == 1)
                going = {"CallStatus": "in-progress", "SequenceNumber": "1"}
                over = {"CallStatus": "completed", "SequenceNumber": "2"}
                form = {**FORM, "CallSid": sid}
                assert (await ask(asked, "/call-status", {**form, **going}))[0] == 204
                assert one.server.calls == 1
                assert (await ask(asked, "/call-status", {**form, **over}))[0] == 204
                await one.empty()
                talking.cancel()

    assert one.metric('bridge_calls_total{outcome="caller_hung_up"}') == 2
