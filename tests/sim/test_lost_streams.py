"""The fake Twilio where a stream is lost and the call goes on over another one."""

import asyncio
from time import monotonic

import pytest

from bridge.sim import counting
from bridge.sim.caller import (
    Caller,
    DropStep,
    HangUpStep,
    HearStep,
    ListenStep,
    WaitStep,
)
from tests.sim.tiny_bridge import Talk, TinyBridge, connect, tiny_bridge

FIRST, SECOND = (
    counting.sound(counting.utterance("agent", 0, turn, 1)) for turn in (1, 2)
)


def goes_on(bridge: TinyBridge) -> None:
    """Whenever a stream ends, another one is asked for."""
    bridge.documents["/voice"] = connect(bridge.media_url, action="/next")
    bridge.documents["/next"] = connect(bridge.media_url, action="/next")


async def die(talk: Talk) -> None:
    """The bridge says something, and is gone: no close frame."""
    await talk.media(FIRST)
    await asyncio.sleep(0.45)
    assert talk.handshake.transport is not None
    talk.handshake.transport.abort()


async def test_a_stream_that_falls_silent_is_noticed_late() -> None:
    """A network that is gone tells nobody: the bridge sees a silent socket, the caller
    waits until Twilio has noticed and asked what follows."""

    async def play(talk: Talk) -> None:
        await talk.media(FIRST)
        await talk.until("media", 8)
        await asyncio.sleep(0.1)
        await talk.media(SECOND)  # into nothing

    async def go_on(talk: Talk) -> None:
        await talk.media(SECOND)

    async with tiny_bridge(play, go_on) as bridge:
        goes_on(bridge)
        caller = Caller(webhook_url=bridge.origin + "/voice", notice_seconds=0.3)
        record = await caller.call(
            [WaitStep(0.17), DropStep("silence"), HearStep(390, 5), HangUpStep()]
        )

    lost, after = bridge.talks
    assert lost.messages("stop") == [] and lost.stream_sid != after.stream_sid
    assert len(lost.messages("media")) == pytest.approx(8, abs=2)
    assert lost.socket.close_code == 1006  # once the call was over
    waited = after.times("start")[0] - record.stream_ends[0].at
    assert waited == pytest.approx(0.3, abs=0.1)
    assert record.stream_ends[0].code == 31903
    assert counting.understood_words(record.heard) == list(
        counting.utterance("agent", 0, 2, 1)
    )


async def test_a_bridge_that_dies_is_asked_about_and_the_call_goes_on() -> None:
    """What the caller hears is one stretch of time, with the silence of the gap."""

    async def go_on(talk: Talk) -> None:
        await talk.media(SECOND)

    async with tiny_bridge(die, go_on) as bridge:
        goes_on(bridge)
        caller = Caller(webhook_url=bridge.origin + "/voice", notice_seconds=0.2)
        record = await caller.call([HearStep(400, 5), HearStep(390, 5), HangUpStep()])

    starts = [talk.messages("start")[0]["start"] for talk in bridge.talks]
    assert {start["callSid"] for start in starts} == {record.call_sid}
    assert len(set(record.stream_sids)) == 2
    assert [end.code for end in record.stream_ends] == [31903, 0]
    assert bridge.forms("/next")[0]["CallSid"] == record.call_sid
    one, two = counting.word_segments(record.heard_timeline())
    # From the end of the first word: 50 ms of life, then Twilio notices, asks, dials.
    assert 240 <= two.at_ms - one.at_ms - one.ms <= 450


async def test_two_streams_may_have_one_call_sid() -> None:
    """Somebody forges a stream of a call that is going on: both are there at once."""
    async with tiny_bridge() as bridge:
        real, forged = (
            Caller(webhook_url=bridge.origin + "/voice", call_sid="CA" + "7" * 32)
            for _ in range(2)
        )
        began = monotonic()
        async with asyncio.TaskGroup() as calls:
            calls.create_task(real.call([WaitStep(0.3), HangUpStep()]))
            calls.create_task(forged.call([WaitStep(0.1), HangUpStep()]))
        assert monotonic() - began < 1

    one, two = (talk.messages("start")[0]["start"] for talk in bridge.talks)
    assert one["callSid"] == two["callSid"] and one["streamSid"] != two["streamSid"]


async def test_who_listens_goes_on_listening_on_another_stream() -> None:
    """A pause between two streams is no longer than any other: nobody hangs up as soon
    as they are back, because the new stream has not said anything yet."""

    async def go_on(talk: Talk) -> None:
        await asyncio.sleep(0.3)
        await talk.media(SECOND)

    async with tiny_bridge(die, go_on) as bridge:
        goes_on(bridge)
        caller = Caller(webhook_url=bridge.origin + "/voice")
        record = await caller.call(
            [ListenStep(quiet_seconds=0.6, timeout=5), HangUpStep()]
        )

    assert [word.turn for word in counting.understood_words(record.heard)] == [1, 2]
