"""The fake Twilio when a stream is lost and the call continues on another stream."""

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
from tests.sim.tiny_bridge import TinyBridge, TinyBridgeStream, connect, tiny_bridge

FIRST, SECOND = (
    counting.sound(counting.utterance("agent", 0, turn, 1)) for turn in (1, 2)
)


def goes_on(bridge: TinyBridge) -> None:
    """Answer the end of each stream with another stream."""
    bridge.documents["/voice"] = connect(bridge.media_url, action="/next")
    bridge.documents["/next"] = connect(bridge.media_url, action="/next")


async def die(talk: TinyBridgeStream) -> None:
    """Send some audio, then break the connection without a close frame."""
    await talk.media(FIRST)
    await asyncio.sleep(0.45)
    assert talk.handshake.transport is not None
    talk.handshake.transport.abort()


async def test_a_stream_that_falls_silent_is_noticed_late() -> None:
    """A dead network gives no sign: the bridge sees a silent socket, and the caller
    waits until Twilio notices and requests the next document."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(FIRST)
        await talk.until("media", 8)
        await asyncio.sleep(0.1)
        await talk.media(SECOND)  # reaches no one: the network is dead

    async def go_on(talk: TinyBridgeStream) -> None:
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
    assert lost.socket.close_code == 1006  # after the end of the call
    waited = after.times("start")[0] - record.stream_ends[0].at
    assert waited == pytest.approx(0.3, abs=0.1)
    assert record.stream_ends[0].code == 31903
    assert counting.understood_words(record.heard) == list(
        counting.utterance("agent", 0, 2, 1)
    )


async def test_after_a_lost_stream_the_call_continues() -> None:
    """The caller hears one continuous time, with silence in the gap between the
    streams."""

    async def go_on(talk: TinyBridgeStream) -> None:
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
    # After the end of the first word: 50 ms, then Twilio notices, requests and
    # connects.
    assert 240 <= two.at_ms - one.at_ms - one.ms <= 450


async def test_two_streams_may_have_one_call_sid() -> None:
    """A forged second stream of a running call: both exist at the same time."""
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


async def test_a_listen_step_continues_on_another_stream() -> None:
    """A listening step continues over two streams: the pause between them alone does
    not end it."""

    async def go_on(talk: TinyBridgeStream) -> None:
        await asyncio.sleep(0.3)
        await talk.media(SECOND)

    async with tiny_bridge(die, go_on) as bridge:
        goes_on(bridge)
        caller = Caller(webhook_url=bridge.origin + "/voice")
        record = await caller.call(
            [ListenStep(quiet_seconds=0.6, timeout=5), HangUpStep()]
        )

    assert [word.turn for word in counting.understood_words(record.heard)] == [1, 2]
