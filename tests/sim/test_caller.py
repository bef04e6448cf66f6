"""The fake Twilio over real sockets, against a minimal server."""

import asyncio
import audioop
import json
import wave
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import cast

import pytest
from aiohttp import web
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from bridge.sim.caller import (
    Caller,
    DropStep,
    GapStep,
    HangUpStep,
    HearStep,
    ListenStep,
    Network,
    PressStep,
    SayStep,
    Script,
    SendStep,
    WaitStep,
    place_many,
)
from bridge.sim.twilio.caller_voice import CallerVoice
from bridge.sim.twilio.playout import Playout
from bridge.sim.twilio.record import CallerSpeech, CallRecord, StreamRecord
from bridge.sim.twilio.signature import sign, signed_url
from tests.sim.tiny_bridge import (
    AGENT,
    TinyBridge,
    TinyBridgeStream,
    connect,
    tiny_bridge,
)

TOKEN = "12345"
SPEECH = bytes([0x10, 0x90]) * 1600  # 0.4 s


def caller_of(bridge: TinyBridge, **options: object) -> Caller:
    """A caller who hangs up before the test's own timeout."""
    arguments: dict[str, object] = {"max_seconds": 8.0, **options}
    return Caller(webhook_url=bridge.origin + "/voice", **arguments)  # type: ignore[arg-type]


async def call(bridge: TinyBridge, script: Script, **options: object) -> CallRecord:
    """Place a call and check that no task is left behind."""
    record = await caller_of(bridge, **options).call(script)
    files = [task.get_coro().cr_code.co_filename for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in files if "/bridge/sim/" in name]
    return record


# Signatures


def test_webhook_signature_agrees_with_twilios_published_examples() -> None:
    """The signature is the one of Twilio's security page."""
    form = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675310",
        "Digits": "1234",
        "From": "+14158675310",
        "To": "+18005551212",
    }
    url = "https://example.com/myapp.php?foo=1&bar=2"
    assert sign(TOKEN, url, form) == "L/OH5YylLD5NRKLltdqwSvS0BnU="

    form |= {"Caller": "+14158675309", "From": "+14158675309"}
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    assert sign(TOKEN, url, form) == "RSOYDt4T1cUTdK1PDd93/VVr8B8="


@pytest.mark.parametrize(
    ("url", "signed"),
    [
        ("https://u:p@a.example:8443/v?x=1#ct=2", "https://a.example/v?x=1"),
        ("http://a.example:8080/v", "http://a.example:8080/v"),
    ],
)
def test_parts_of_the_url_that_twilio_does_not_sign(url: str, signed: str) -> None:
    """A port or password in the webhook's URL does not invalidate the signature."""
    assert signed_url(url) == signed


async def test_webhook_and_handshake_are_signed_for_the_public_address() -> None:
    """A bridge behind a public URL can verify the fake's signatures."""
    public = "https://phone.example"
    check = RequestValidator(TOKEN)
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect("wss://phone.example/media/x1")

        await call(
            bridge,
            [WaitStep(0.05), HangUpStep()],
            auth_token=TOKEN,
            signed_origin=public,
        )

        request, form = bridge.requests[0]
        signature = request.headers["X-Twilio-Signature"]
        assert check.validate(public + "/voice", form, signature)
        assert not check.validate(public + "/voice", form | {"From": "x"}, signature)
        handshake = bridge.talks[0].handshake
        stream_url = "wss://phone.example/media/x1"
        assert handshake.headers["X-Twilio-Signature"] == sign(TOKEN, stream_url)
        assert check.compute_signature(stream_url, {}) == sign(TOKEN, stream_url)
        assert handshake.headers["Host"] == request.headers["Host"] == "phone.example"


async def test_handshake_carries_the_headers_twilio_sends_and_no_others() -> None:
    """A bridge that needs an Origin header or compression fails here as it would
    with Twilio."""
    async with tiny_bridge() as bridge:
        await call(bridge, [HangUpStep()], auth_token=TOKEN)

        headers = bridge.talks[0].handshake.headers
        assert headers["User-Agent"] == "Twilio.TmeWs/1.0"
        assert headers["X-Twilio-Signature"] == sign(TOKEN, bridge.media_url)
        for absent in ("Origin", "Protocol", "Extensions", "Authorization"):
            assert f"Sec-WebSocket-{absent}" not in headers
            assert absent not in headers


async def test_unsigned_when_there_is_no_token() -> None:
    """Without an auth token nothing is signed, for bridges in insecure mode."""
    async with tiny_bridge() as bridge:
        await call(bridge, [HangUpStep()])

        assert "X-Twilio-Signature" not in bridge.requests[0][0].headers
        assert "X-Twilio-Signature" not in bridge.talks[0].handshake.headers


# The stream


async def test_the_call_opens_with_connected_start_and_frames_without_a_hole() -> None:
    """The messages, fields, types and numbers are those that Twilio documents."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect(bridge.media_url, name="J & <P>")

        record = await call(
            bridge, [SayStep(SPEECH), PressStep("1#", 0.01), HangUpStep()]
        )

        talk = bridge.talks[0]
        assert [each.message["event"] for each in talk.received[:3]] == [
            "connected",
            "start",
            "media",
        ]
        assert talk.received[0].message == {
            "event": "connected",
            "protocol": "Call",
            "version": "1.0.0",
        }
        start = talk.messages("start")[0]
        assert start["start"]["customParameters"] == {"name": "J & <P>"}
        assert start["start"]["callSid"] == record.call_sid
        assert start["start"]["mediaFormat"]["sampleRate"] == 8000
        numbered = [each.message for each in talk.received[1:]]
        numbers = [each["sequenceNumber"] for each in numbered]
        assert numbers == [str(n + 1) for n in range(len(numbers))]
        frames = talk.messages("media")
        assert list(frames[0]) == ["event", "sequenceNumber", "media", "streamSid"]
        assert list(frames[0]["media"]) == ["track", "chunk", "timestamp", "payload"]
        for index, frame in enumerate(frames):
            assert frame["media"]["chunk"] == str(index + 1)
            assert frame["media"]["timestamp"] == str(index * 20)
        keys = [each["dtmf"] for each in talk.messages("dtmf")]
        assert keys == [{"track": "inbound_track", "digit": key} for key in "1#"]
        assert talk.received[-1].message["event"] == "stop"
        assert talk.socket.close_code == 1000
        assert record.ended_by == "caller" and record.frames_sent == len(frames)
        assert record.warnings == [] and record.error is None


async def test_what_the_caller_says_arrives_byte_for_byte() -> None:
    """Speech is in the media messages at the time that the record says."""
    async with tiny_bridge() as bridge:
        record = await call(
            bridge, [WaitStep(0.05), SayStep(SPEECH[:1000]), HangUpStep()]
        )

        frames = bridge.talks[0].messages("media")
        spoken = record.spoken[0]
        first = round(spoken.start * 50)
        wire = b"".join(
            b64decode(frame["media"]["payload"]) for frame in frames[first:]
        )
        assert wire[:1000] == SPEECH[:1000] == spoken.audio
        assert set(wire[1000:]) <= {0xFF}
        assert spoken.end - spoken.start == pytest.approx(0.125)
        assert record.caller_timeline()[first * 160 :][:1000] == SPEECH[:1000]


async def test_frames_stay_on_the_media_clock_after_a_stall() -> None:
    """A busy machine delays frames, but the media clock does not drift."""

    async def stall() -> None:
        await asyncio.sleep(0.1)
        until = monotonic() + 0.15
        while monotonic() < until:
            pass  # the event loop is blocked on purpose

    async with tiny_bridge() as bridge, asyncio.TaskGroup() as group:
        group.create_task(stall())
        record = await call(
            bridge, [WaitStep(0.5), HangUpStep()], keep_frame_times=True
        )

        began = record.stream_at
        assert began is not None
        late = [
            at - began - (k + 1) * 0.02 for k, at in enumerate(record.frame_sent_at)
        ]
        assert record.frames_sent in (25, 26)
        assert min(late) >= 0 and max(late) > 0.05
        assert late[-1] < 0.02
        stamps = [m["media"]["timestamp"] for m in bridge.talks[0].messages("media")]
        assert stamps == [str(k * 20) for k in range(len(stamps))]


# Playout over the socket


async def test_marks_are_echoed_when_their_audio_was_heard() -> None:
    """Marks are echoed in real time, when the audio before them has been heard."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.mark("idle")
        await talk.media(AGENT[:1600])
        await talk.mark("after 200 ms")

    async with tiny_bridge(play) as bridge:
        record = await call(bridge, [ListenStep(quiet_seconds=0.1), HangUpStep()])

        talk = bridge.talks[0]
        marks = talk.messages("mark")
        assert [m["mark"]["name"] for m in marks] == ["idle", "after 200 ms"]
        assert list(marks[0]) == ["event", "sequenceNumber", "streamSid", "mark"]
        idle, after = record.marks
        assert idle.echoed_at == idle.arrived_at
        run = record.streams[0].heard.runs[0]
        assert after.echoed_at == pytest.approx(run.start + 0.2)
        assert talk.times("mark")[1] - after.echoed_at < 0.05
        assert record.heard == AGENT[:1600]
        assert record.first_media_at is not None
        assert sum(size for _, size in record.media_in) == 1600


async def test_clear_stops_the_agent_and_returns_the_pending_marks() -> None:
    """After a clear the caller hears nothing more of the old answer."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:40_000])
        await talk.mark("never heard")
        await talk.until("media", 12)
        await talk.send("clear")
        await talk.mark("fence")

    async with tiny_bridge(play) as bridge:
        record = await call(
            bridge, [HearStep(100), SayStep(SPEECH), WaitStep(0.1), HangUpStep()]
        )

        assert [m.name for m in record.marks] == ["never heard", "fence"]
        assert [m.played for m in record.marks] == [False, True]
        clear = record.clears[0]
        assert clear.position + clear.flushed == 40_000
        assert len(record.heard) == clear.position == pytest.approx(2000, abs=400)
        assert record.heard == AGENT[: clear.position]
        assert record.underruns.count == 0


async def test_hear_lets_the_caller_interrupt_in_mid_sentence() -> None:
    """The interruption comes at the scripted time, exact to about a frame."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:8000])

    async with tiny_bridge(play) as bridge:
        record = await call(
            bridge, [HearStep(300), SayStep(SPEECH[:160]), HangUpStep()]
        )

        heard_by_then = (
            record.spoken[0].started_at - record.streams[0].heard.runs[0].start
        )
        assert heard_by_then == pytest.approx(0.310, abs=0.03)
        assert 2400 <= len(record.heard) < 3200
        assert record.unheard_at_end == 8000 - len(record.heard)


async def test_listen_waits_through_a_short_stall_and_counts_it_as_a_hole() -> None:
    """ListenStep waits through a short stall, and the record counts the stall."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:800])
        await asyncio.sleep(0.2)
        await talk.media(AGENT[800:1600])

    async with tiny_bridge(play) as bridge:
        record = await call(bridge, [ListenStep(quiet_seconds=0.3), HangUpStep()])

        assert record.heard == AGENT[:1600]
        assert record.underruns.count == 1
        assert record.underruns.seconds == pytest.approx(0.1, abs=0.05)
        assert record.timed_out == []


async def test_listening_to_a_silent_agent_is_recorded_as_a_timeout() -> None:
    """A silent agent is recorded as a timeout of the step."""
    async with tiny_bridge() as bridge:
        script: Script = [
            ListenStep(timeout=0.1),
            HearStep(20, timeout=0.1),
            HangUpStep(),
        ]
        record = await call(bridge, script)

        assert record.timed_out == ["Listen: 0.1 s", "Hear: 0.1 s"]


async def test_frame_playout_gives_the_same_audio_on_a_grid() -> None:
    """A Twilio that plays whole frames gives the same audio and later echoes."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:1000])
        await talk.mark("end")

    async with tiny_bridge(play) as bridge:
        script: Script = [ListenStep(quiet_seconds=0.05), HangUpStep()]
        record = await call(bridge, script, frame_playout=True)

        assert record.heard == AGENT[:1000]
        begun = record.streams[0].heard.runs[0].start
        assert record.marks[0].echoed_at - begun == pytest.approx(7 * 0.020)


# The network


async def test_delays_apply_to_each_direction_and_order_is_kept() -> None:
    """On a slow network the same call takes place later, and no message overtakes
    another."""

    async def play(talk: TinyBridgeStream) -> None:
        for index in range(5):
            await talk.media(AGENT[index * 160 :][:160])
            await talk.mark(str(index))

    network = Network(up_ms=60, down_ms=90, jitter_ms=40, seed=7)
    async with tiny_bridge(play) as bridge:
        script: Script = [ListenStep(quiet_seconds=0.05), WaitStep(0.3), HangUpStep()]
        record = await call(bridge, script, network=network)

        talk = bridge.talks[0]
        assert record.heard == AGENT[:800]
        assert [m["mark"]["name"] for m in talk.messages("mark")] == list("01234")
        first_run = record.streams[0].heard.runs[0]
        assert record.first_media_at is not None
        assert 0.090 <= first_run.start - record.first_media_at < 0.135
        for echo, came in zip(record.marks, talk.times("mark"), strict=True):
            assert 0.060 <= came - echo.echoed_at < 0.125
        stamps = [int(m["media"]["timestamp"]) for m in talk.messages("media")]
        assert stamps == sorted(stamps) and len(stamps) > 10
        assert talk.received[-1].message["event"] == "stop"


def test_jitter_is_the_same_for_the_same_seed_and_never_overtakes() -> None:
    """The same seed repeats a failure."""
    network = Network(up_ms=50, down_ms=20, jitter_ms=100, seed=3)
    sent = [index * 0.02 for index in range(200)]

    up, again, down = network.up(), network.up(), network.down()
    first = [up.arrival(at) for at in sent]

    assert first == [again.arrival(at) for at in sent]
    assert first != [down.arrival(at) + 0.03 for at in sent]
    assert all(a <= b for a, b in pairwise(first))
    waits = [there - at for at, there in zip(sent, first, strict=True)]
    assert min(waits) >= 0.05 and max(waits) <= 0.15 + 1e-9
    assert max(waits) - min(waits) > 0.05


# Gaps, drops and odd messages


@pytest.mark.parametrize(("mode", "lost_chunks"), [("dtx", 0), ("loss", 10)])
async def test_a_gap_leaves_frames_out_while_the_media_clock_goes_on(
    mode: str, lost_chunks: int
) -> None:
    """The bridge sees the jump of timestamps that a real gap causes."""
    async with tiny_bridge() as bridge:
        gap = GapStep(200, mode)  # type: ignore[arg-type]
        await call(bridge, [WaitStep(0.1), gap, WaitStep(0.3), HangUpStep()])

        media = [m["media"] for m in bridge.talks[0].messages("media")]
        stamps = [int(m["timestamp"]) for m in media]
        chunks = [int(m["chunk"]) for m in media]
        jumps = [b - a for a, b in pairwise(stamps) if b - a != 20]
        assert jumps == [220]
        assert chunks[-1] - chunks[0] - (len(chunks) - 1) == lost_chunks


async def test_speech_during_lost_frames_is_recorded_but_does_not_arrive() -> None:
    """Speech during lost frames is missing for the bridge only."""
    async with tiny_bridge() as bridge:
        record = await call(
            bridge, [GapStep(200, "loss"), SayStep(SPEECH), HangUpStep()]
        )

        assert record.spoken[0].audio == SPEECH
        arrived = [
            m
            for m in bridge.talks[0].messages("media")
            if "EJAQ" in m["media"]["payload"]
        ]
        assert len(arrived) == pytest.approx(10, abs=2)


async def test_a_late_network_delivers_everything_in_a_burst() -> None:
    """A delivery gap is not a loss: the timestamps have no hole."""
    async with tiny_bridge() as bridge:
        await call(
            bridge, [WaitStep(0.1), GapStep(200, "late"), WaitStep(0.4), HangUpStep()]
        )

        talk = bridge.talks[0]
        stamps = [int(m["media"]["timestamp"]) for m in talk.messages("media")]
        waits = [b - a for a, b in pairwise(talk.times("media"))]
        assert stamps == list(range(0, len(stamps) * 20, 20))
        assert max(waits) > 0.15
        assert sum(wait < 0.01 for wait in waits) >= 8


async def test_drop_breaks_the_connection_and_the_action_is_requested() -> None:
    """After a lost stream the call continues: Twilio requests the action."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect(
            bridge.media_url, action="/next", callback=bridge.origin + "/stream"
        )
        bridge.documents["/next"] = connect(bridge.media_url)

        record = await call(
            bridge, [WaitStep(0.1), DropStep(), SayStep(SPEECH), HangUpStep()]
        )

        first, second = bridge.talks
        assert first.socket.close_code == 1006 and first.messages("stop") == []
        assert first.stream_sid != second.stream_sid
        assert record.stream_sids == [first.stream_sid, second.stream_sid]
        assert [end.code for end in record.stream_ends] == [31903, 0]
        assert record.spoken[0].stream_sid == second.stream_sid
        events = [form["StreamEvent"] for form in bridge.forms("/stream")]
        assert events == ["stream-started", "stream-error"]
        assert bridge.forms("/next")[0]["CallStatus"] == "in-progress"


async def test_raw_messages_are_sent_unchanged() -> None:
    """A test can send messages that Twilio would not send."""
    async with tiny_bridge() as bridge:
        await call(bridge, [SendStep('{"event":"odd"}'), WaitStep(0.05), HangUpStep()])

        assert bridge.talks[0].messages("odd") == [{"event": "odd"}]


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("{", 31950, "not JSON"),
        ("[]", 31950, "not a JSON object"),
        (b"\x00", 31950, "binary"),
        ('{"event":"keepalive","streamSid":"%s"}', 31951, "unknown event"),
        ('{"event":"clear","streamSid":"%s","x":1}', 31951, "extra field x"),
        ('{"event":"clear","streamSid":"MZ0"}', 31951, "wrong streamSid"),
        ('{"event":"clear"}', 31951, "missing field streamSid"),
        ('{"event":"mark","streamSid":"%s","mark":{}}', 31951, "missing field name"),
        (
            '{"event":"mark","streamSid":"%s","mark":{"name":7}}',
            31951,
            "not a text of at least one",
        ),
        (
            '{"event":"media","streamSid":"%s","media":{"payload":"//8="'
            ',"timestamp":"1"}}',
            31951,
            "extra field timestamp",
        ),
        (
            '{"event":"media","streamSid":"%s","media":{"payload":"?"}}',
            31951,
            "not base64",
        ),
    ],
)
async def test_invalid_messages_are_ignored_with_a_warning(
    text: str | bytes, code: int, reason: str
) -> None:
    """A message that Twilio's debugger would warn about is recorded as a warning."""

    async def play(talk: TinyBridgeStream) -> None:
        if isinstance(text, bytes):
            await talk.socket.send_bytes(text)
        else:
            await talk.socket.send_str(text.replace("%s", talk.stream_sid))
        await talk.media(AGENT[:160])

    async with tiny_bridge(play) as bridge:
        record = await call(bridge, [HearStep(20), HangUpStep()])

        assert [warning.code for warning in record.warnings] == [code]
        assert reason in record.warnings[0].text
        assert record.heard == AGENT[:160]


async def test_more_than_ten_minutes_of_audio_is_refused_with_one_warning() -> None:
    """A full buffer gives one warning; the audio beyond it is refused."""

    async def play(talk: TinyBridgeStream) -> None:
        for _ in range(12):
            await talk.media(bytes(500_000))

    async with tiny_bridge(play) as bridge:
        record = await call(bridge, [WaitStep(3.0), HangUpStep()])

        assert [warning.code for warning in record.warnings] == [31931]
        assert record.streams[0].playout.refused == 3 * 500_000


async def test_a_bridge_that_reads_too_slowly_loses_audio_and_is_warned() -> None:
    """Twilio does not wait for a slow reader: the caller's audio is discarded."""
    big = json.dumps({"event": "big", "filler": "x" * 3_500_000})

    async def play(talk: TinyBridgeStream) -> None:
        # Not checked with isinstance: uvloop's transports are of another class.
        transport = cast(asyncio.Transport, talk.handshake.transport)
        transport.pause_reading()
        await asyncio.sleep(0.6)
        transport.resume_reading()

    async with tiny_bridge(play) as bridge:
        flood = [SendStep(big)] * 4
        script: Script = [
            WaitStep(0.1),
            *flood,
            WaitStep(0.3),
            PressStep("1"),
            WaitStep(0.6),
            HangUpStep(),
        ]
        record = await call(bridge, script)

        talk = bridge.talks[0]
        assert [warning.code for warning in record.warnings] == [31930]
        chunks = [int(m["media"]["chunk"]) for m in talk.messages("media")]
        assert max(b - a for a, b in pairwise(chunks)) > 5
        numbered = [e.message for e in talk.received if "sequenceNumber" in e.message]
        numbers = [int(message["sequenceNumber"]) for message in numbered]
        assert numbers == list(range(1, len(numbers) + 1))
        assert record.ended_by == "caller" and talk.messages("stop") != []


# Documents and webhooks


async def test_when_the_bridge_closes_the_action_is_requested_and_executed() -> None:
    """Hanging up and transferring work without the REST API."""

    async def close(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:1600])
        await talk.until("media", 5)
        await talk.socket.close()

    async with tiny_bridge(close) as bridge:
        bridge.documents["/voice"] = connect(bridge.media_url, action="/voice/next?a=1")
        bridge.documents["/voice/next"] = (
            "<Response><Say>One moment.</Say><Dial>+15550001111</Dial></Response>"
        )

        record = await call(bridge, [WaitStep(5)], auth_token=TOKEN)

        request, form = bridge.requests[1]
        check, url = RequestValidator(TOKEN), bridge.origin + "/voice/next?a=1"
        assert check.validate(url, form, request.headers["X-Twilio-Signature"])
        assert form == {
            **form,
            "CallSid": record.call_sid,
            "AccountSid": "AC" + "0" * 31 + "1",
            "From": "+15551230001",
            "To": "+15557650002",
            "CallStatus": "in-progress",
            "Direction": "inbound",
            "ApiVersion": "2010-04-01",
        }
        assert bridge.forms("/voice")[0]["CallStatus"] == "ringing"
        assert record.said_by_twilio == ["One moment."]
        assert record.dialled == "+15550001111"
        assert record.ended_by == "bridge"
        assert [(r.path, r.status) for r in record.requests] == [
            ("/voice", 200),
            ("/voice/next", 200),
        ]
        assert len(record.twiml) == 2
        assert 0 < len(record.heard) <= 1600
        assert record.stream_ends[0].code == 31921
        assert bridge.talks[0].messages("stop") == []


async def test_without_an_action_the_next_verb_runs() -> None:
    """The verb after </Connect> runs when the bridge closes the stream."""

    async def close(talk: TinyBridgeStream) -> None:
        await talk.socket.close()

    async with tiny_bridge(close) as bridge:
        bridge.documents["/voice"] = connect(
            bridge.media_url,
            then="<Pause length='0'/><Say>Bye</Say><Redirect>/b</Redirect>",
        )
        bridge.documents["/b"] = "<Response><Hangup/><Say>never</Say></Response>"

        record = await call(bridge, [WaitStep(5)])

        assert record.said_by_twilio == ["Bye"]
        assert [request.path for request in record.requests] == ["/voice", "/b"]


async def test_after_hanging_up_no_action_is_requested() -> None:
    """After a hangup only status callbacks are sent."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect(
            bridge.media_url, action="/next", callback=bridge.origin + "/stream"
        )
        status_url = bridge.origin + "/call-status"

        record = await call(
            bridge,
            [WaitStep(0.05), HangUpStep(), SayStep(SPEECH)],
            status_callback_url=status_url,
        )

        assert bridge.forms("/next") == [] and record.spoken == []
        events = [form["StreamEvent"] for form in bridge.forms("/stream")]
        assert events == ["stream-started", "stream-stopped"]
        assert bridge.forms("/call-status")[0]["CallStatus"] == "completed"
        assert record.ended_by == "caller"


@pytest.mark.parametrize("status", [403, 503, 302])
async def test_a_refused_handshake_is_an_error_and_the_call_goes_on(
    status: int,
) -> None:
    """The next verb runs when the stream cannot open; redirects are not followed."""
    async with tiny_bridge() as bridge:
        bridge.refuse = status
        bridge.documents["/voice"] = connect(
            bridge.media_url, callback=bridge.origin + "/s", then="<Say>Sorry</Say>"
        )

        record = await call(bridge, [HangUpStep()])

        assert record.stream_ends[0].code == 31920
        assert record.stream_sids == [] and record.said_by_twilio == ["Sorry"]
        assert str(status) in bridge.forms("/s")[0]["StreamError"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ws://phone.example/media", 31922),
        ("https://phone.example/media", 31922),
        ("wss:nowhere", 31923),
        ("wss://phone.example:99999/media", 31923),
        ("ws://127.0.0.1:1/media", 31902),
    ],
)
async def test_invalid_stream_urls_are_refused(url: str, code: int) -> None:
    """An invalid stream URL ends the call with Twilio's error code."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect(url)

        record = await call(bridge, [HangUpStep()])

        assert [end.code for end in record.stream_ends] == [code]
        assert record.ended_by.startswith(f"error: {code}")


async def test_a_network_of_containers_has_no_tls() -> None:
    """In `docker compose --profile demo up` the stream URL is ws:// on a host that
    is not loopback."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect("ws://balancer.invalid:8080/media")

        record = await call(bridge, [HangUpStep()], allow_ws=True)

        assert [end.code for end in record.stream_ends] == [31902], "was not dialled"


async def test_a_query_string_never_reaches_the_socket() -> None:
    """A query string of the stream URL is dropped, as by Twilio."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect(bridge.media_url + "?token=1")

        record = await call(bridge, [HangUpStep()])

        assert bridge.talks[0].handshake.query_string == ""
        assert [warning.code for warning in record.warnings] == [31920]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (web.Response(status=500), "11217 /voice answered 500"),
        (web.Response(status=302, headers={"Location": "/x"}), "11200 /voice answered"),
        (web.Response(text="<Response>", content_type="text/xml"), "12100"),
        (web.Response(text="{}", content_type="application/json"), "12300"),
        ("<Response><Sing/></Response>", "12200"),
        ("<Response><Reject reason='busy'/></Response>", ""),
    ],
)
async def test_answers_that_end_the_call_before_it_begins(
    answer: str | web.Response, error: str
) -> None:
    """A broken webhook is recorded as an error with Twilio's code."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = answer

        record = await call(bridge, [HangUpStep()])

        assert bridge.talks == [] and record.stream_at is None
        if error:
            assert record.error is not None and record.error.startswith(error)
            assert record.ended_by == f"error: {record.error}"
        else:
            assert (record.rejected, record.answered_at) == ("busy", None)


async def test_plain_text_is_read_aloud() -> None:
    """A plain text answer, such as an error page, is read aloud."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = web.Response(
            text="Oops", content_type="text/plain"
        )

        record = await call(bridge, [HangUpStep()])

        assert record.said_by_twilio == ["Oops"]


async def test_nobody_answers_the_webhook() -> None:
    """A bridge that is down fails the call at once, with an error."""
    record = await Caller(webhook_url="http://127.0.0.1:1/voice").call([HangUpStep()])

    assert record.error is not None and record.error.startswith("11205")
    assert record.requests[0].status == 0


# The record


async def test_the_recording_has_the_caller_left_and_the_agent_right(
    tmp_path: Path,
) -> None:
    """The recording has both sides of the call in step."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.until("media", 10)
        await talk.media(AGENT[:1600])

    async with tiny_bridge(play) as bridge:
        script: Script = [
            SayStep(SPEECH[:800]),
            ListenStep(quiet_seconds=0.1),
            HangUpStep(),
        ]
        record = await call(bridge, script)

    path = tmp_path / "call.wav"
    record.write_wav(path)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 8000)
        stereo = file.readframes(file.getnframes())
    left = audioop.lin2ulaw(audioop.tomono(stereo, 2, 1, 0), 2)
    right = audioop.lin2ulaw(audioop.tomono(stereo, 2, 0, 1), 2)
    assert record.ended_at is not None and record.stream_at is not None
    assert len(left) == round((record.ended_at - record.stream_at) * 8000)
    at = round(record.spoken[0].start * 8000)
    assert left[at : at + 800] == SPEECH[:800]
    assert set(left[:at]) | set(left[at + 800 :]) <= {0xFF}
    heard_at = round((record.streams[0].heard.runs[0].start - record.stream_at) * 8000)
    # 0x7F is the second zero of mu-law: as a 16-bit sample it is the same silence.
    agent = AGENT[:1600].replace(b"\x7f", b"\xff")
    assert right[heard_at : heard_at + 1600] == agent
    assert set(right[:heard_at]) <= {0xFF}


async def test_speech_begins_with_the_first_whole_frame_after_the_decision() -> None:
    """An interruption never begins before its step."""
    record = CallRecord("CA1", started_at=0.0)
    voice = CallerVoice(record)
    async with asyncio.TaskGroup() as group:
        group.create_task(voice.say(SPEECH[:200], now=10.01))
        await asyncio.sleep(0)

        frames = [voice.frame("MZ1", k * 0.02, 10.0 + k * 0.02) for k in range(4)]

    assert frames == [None, SPEECH[:160], SPEECH[160:200] + b"\xff" * 120, None]
    assert (record.spoken[0].started_at, record.spoken[0].start) == (10.02, 0.02)


async def test_speech_between_two_streams_is_lost_not_delayed() -> None:
    """The caller keeps speaking while the bridge has no stream."""
    voice = CallerVoice(CallRecord("CA1", started_at=0.0))
    async with asyncio.TaskGroup() as group:
        group.create_task(voice.say(AGENT[:1600], now=0.0))
        await asyncio.sleep(0)

        assert voice.frame("MZ1", 0.0, 0.0) == AGENT[:160]
        assert voice.frame("MZ2", 0.0, 0.1) == AGENT[800:960]
        voice.frame("MZ2", 0.1, 0.2)


def test_clears_and_turns_are_no_underruns() -> None:
    """Only a pause inside an answer counts as an underrun."""
    cut, stutter = Playout(), Playout()
    cut.media(AGENT[:800], 1.0)
    cut.clear(1.05)
    cut.media(AGENT[:800], 1.2)
    for at in (1.0, 1.5, 3.0):
        stutter.media(AGENT[:800], at)
    record = CallRecord("CA1", started_at=0.0)
    record.streams = [StreamRecord("MZ1", 0.9, cut)]
    assert record.underruns.count == 0

    record.streams = [StreamRecord("MZ1", 0.9, stutter)]

    assert record.underruns.count == 1
    assert record.underruns.seconds == pytest.approx(0.4)
    record.spoken.append(CallerSpeech("MZ1", 0.3, 0.4, 1.2, 1.3, SPEECH[:800]))
    assert record.underruns.count == 0


async def test_on_media_gets_the_audio_when_it_reaches_twilio() -> None:
    """`on_media` gets the bridge's audio without a second socket."""
    seen: list[tuple[bytes, float]] = []

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:160])

    async with tiny_bridge(play) as bridge:
        record = await call(
            bridge,
            [HearStep(10), HangUpStep()],
            network=Network(down_ms=30),
            on_media=lambda audio, now: seen.append((audio, now)),
        )

        assert [audio for audio, _ in seen] == [AGENT[:160]]
        assert seen[0][1] - record.media_in[0][0] == pytest.approx(0.03)


async def test_a_caller_hangs_up_at_max_seconds() -> None:
    """`max_seconds` ends a call whose script has ended."""
    async with tiny_bridge() as bridge:
        record = await call(bridge, [], max_seconds=0.2)

        assert record.timed_out == ["call: 0.2 s"] and record.ended_by == "caller"
        assert bridge.talks[0].messages("stop") != []


async def test_a_cancelled_call_leaves_no_socket() -> None:
    """A cancelled test leaves no open connection to the bridge."""
    async with tiny_bridge() as bridge:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call(bridge, [WaitStep(5)])

        await asyncio.sleep(0.05)
        assert bridge.talks[0].socket.closed


async def test_many_calls_at_once_do_not_disturb_each_other() -> None:
    """Each of fifty callers hears its own answer."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:800])

    async with tiny_bridge(*[play] * 50) as bridge:
        callers = [caller_of(bridge) for _ in range(50)]
        script: Script = [ListenStep(quiet_seconds=0.1), HangUpStep()]
        records = await place_many([(each, script) for each in callers], limit=25)

        assert all(record.heard == AGENT[:800] for record in records)
        assert len({record.call_sid for record in records}) == 50
