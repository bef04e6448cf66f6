"""A mu-law bridge with a PCM model: audio, events, and a call to the fake model."""

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from bridge.audio.resample import DELAY, Samples
from bridge.core import realtime_events, realtime_requests
from bridge.model.transcode import (
    MAX_PARTS,
    MULAW_FORMAT,
    PCM_FORMAT,
    AnswerTranscoder,
    CallerTranscoder,
    ModelAudio,
    from_mulaw,
    to_mulaw,
)
from bridge.sim.model import Behaviour, ModelServer, ModelSession, SayText
from bridge.sim.voice import resample, speak
from tests.bench.resampling import (
    TONES_HZ,
    coded,
    down,
    noise,
    round_trip,
    snr_db,
    speech,
    tone,
    tone_snr_db,
    up,
)
from tests.core.phone import payload
from tests.core.rubbish import mangled

Event = dict[str, Any]


def encoded(sound: bytes) -> str:
    return base64.b64encode(sound).decode()


def pcm_of(samples: Samples) -> bytes:
    return samples.astype("<i2").tobytes()


def delta(pcm: bytes, item: str = "item_1", part: int = 0, **fields: Any) -> str:
    event = {
        "type": "response.output_audio.delta",
        "event_id": "event_1",
        "response_id": "resp_1",
        "item_id": item,
        "output_index": 0,
        "content_index": part,
        "delta": encoded(pcm),
    }
    return json.dumps(event | fields)


def done(item: str = "item_1", part: int = 0) -> str:
    event = {"type": "response.output_audio.done", "response_id": "resp_1"}
    return json.dumps(event | {"item_id": item, "content_index": part})


def response_done(response: str = "resp_1") -> str:
    return json.dumps({"type": "response.done", "response": {"id": response}})


def heard(texts: Sequence[str], item: str = "item_1", part: int = 0) -> bytes:
    """The mu-law in the deltas of a part."""
    events = [realtime_events.decode(text) for text in texts]
    return b"".join(
        base64.b64decode(event.delta)
        for event in events
        if isinstance(event, realtime_events.AudioDelta)
        and (event.item_id, event.content_index) == (item, part)
    )


def said(audio: ModelAudio, *texts: str) -> list[str]:
    return [out for text in texts for out in audio.from_model(text)]


# ------------------------------------------------------------------------------ audio


def test_mulaw_survives_decoding_and_encoding() -> None:
    """Transcoding mu-law to samples and back is lossless, except that one of the two
    codes of zero is used."""
    codes = bytes(range(256))

    assert to_mulaw(from_mulaw(codes)) == codes.replace(b"\x7f", b"\xff")


@given(st.integers(-32767, 32767))
def test_mulaw_is_symmetric_around_zero(sample: int) -> None:
    """Near-silence does not hiss: a sample and its negative get mirrored codes."""
    there, back = from_mulaw(to_mulaw(np.array([sample, -sample], np.int16)))

    assert there == -back
    assert abs(int(there) - sample) <= max(8, abs(sample) / 16, abs(sample) - 32124)


@given(st.lists(st.integers(0, 400), max_size=8))
def test_the_model_gets_as_many_ms_as_the_caller_sent(sizes: list[int]) -> None:
    """Each frame is passed on at once and whole, delayed by 4.5 ms; none is empty."""
    stream = CallerTranscoder()
    sound = noise()
    got = []
    position = 0
    for size in sizes:
        frame = to_mulaw(sound[position : position + size])
        got.append(base64.b64decode(stream.feed(encoded(frame))))
        position += size

    assert [len(pcm) for pcm in got] == [6 * size for size in sizes]
    late = np.concatenate((np.zeros(DELAY, np.int16), coded(sound[:position])))
    assert b"".join(got) == pcm_of(up(late)[: 3 * position])


@given(st.lists(st.integers(0, 1200), max_size=8))
def test_deltas_may_be_split_within_a_sample(sizes: list[int]) -> None:
    """Audio sounds the same wherever the model splits its bytes."""
    samples = up(noise())[: 1 + sum(sizes) // 2]
    pcm = pcm_of(samples)
    stream = AnswerTranscoder()
    position = 0
    payloads = []
    for size in [*sizes, len(pcm)]:
        payloads.append(stream.feed(encoded(pcm[position : position + size])))
        position += size
    payloads.append(stream.flush())

    got = b"".join(map(base64.b64decode, payloads))
    assert got == to_mulaw(down(samples))
    assert len(got) == len(samples) // 3


def test_half_a_sample_at_the_end_is_dropped() -> None:
    """An answer that ends within a sample does not spoil the next one."""
    stream = AnswerTranscoder()
    sound = pcm_of(tone(440, 24_000, seconds=0.1))

    stream.feed(encoded(sound[:-1]))
    stream.flush()

    whole = stream.feed(encoded(sound)) + stream.flush()
    assert whole == AnswerTranscoder().feed(encoded(sound)) + _tail_of(sound)


def _tail_of(pcm: bytes) -> str:
    stream = AnswerTranscoder()
    stream.feed(encoded(pcm))
    return stream.flush()


@pytest.mark.parametrize("hz", TONES_HZ)
def test_a_tone_has_the_quality_of_mulaw(hz: float) -> None:
    """With a PCM model the line sounds like any telephone line."""
    sound = tone(hz + 0.7, 8000)

    once, twice = coded(sound), round_trip(sound)

    assert tone_snr_db(once, hz + 0.7) > 36.5
    assert tone_snr_db(twice, hz + 0.7) > tone_snr_db(once, hz + 0.7) - 0.5


def test_speech_and_noise_survive_both_directions() -> None:
    """Transcoding adds less noise than mu-law coding itself."""
    for sound in (speech(), noise()):
        assert snr_db(coded(sound), round_trip(sound)) > 37


# ---------------------------------------------------------------- events to the model


def test_an_append_is_transcoded_to_pcm() -> None:
    """The model hears the caller; the event's other fields are kept."""
    frame = to_mulaw(tone(440, 8000, seconds=0.02))
    append = {"event_id": "a", "type": "input_audio_buffer.append"}
    text = json.dumps(append | {"audio": encoded(frame)})

    event = json.loads(ModelAudio().to_model(text))

    pcm = CallerTranscoder().feed(encoded(frame))
    assert event == append | {"audio": pcm}
    assert len(base64.b64decode(pcm)) == 960


def test_an_append_that_is_not_base64_raises() -> None:
    """The caller's audio was checked before, so this is a bug of the bridge."""
    with pytest.raises(ValueError):
        ModelAudio().to_model(realtime_requests.append("not base64"))


def test_session_updates_request_pcm() -> None:
    """Every session update has the formats that the model supports."""
    side = {"format": MULAW_FORMAT, "voice": "marin"}
    session = {"instructions": "Ü", "audio": {"input": {}, "output": side}}
    update = {"type": "session.update", "event_id": "a", "session": session}

    event = json.loads(ModelAudio().to_model(json.dumps(update)))

    assert event["session"]["audio"] == {
        "input": {},
        "output": {"format": PCM_FORMAT, "voice": "marin"},
    }
    assert event["session"]["instructions"] == "Ü" and event["event_id"] == "a"


@pytest.mark.parametrize(
    "text",
    [
        realtime_requests.create_response("a"),
        realtime_requests.delete("item_1", "a"),
        # Contains the name of a relevant event as text.
        '{"type":"conversation.item.truncate", "a":"session.update"}',
        '{"type":"x","audio":"input_audio_buffer.append"}',
    ],
)
def test_other_client_events_are_unchanged(text: str) -> None:
    """The model gets each other event byte for byte."""
    assert ModelAudio().to_model(text) == text


def test_replayed_caller_audio_is_transcoded() -> None:
    """Caller audio without a transcript is not noise to the session after a lost
    one."""
    event = json.loads(
        ModelAudio().to_model(realtime_requests.spoken(payload(200), "e1", "item_1"))
    )

    [part] = event["item"]["content"]
    assert part["audio"] == CallerTranscoder().feed(payload(200))
    assert (event["event_id"], event["item"]["id"]) == ("e1", "item_1")


@pytest.mark.parametrize("content", [None, "x", [1, {"audio": None}, {"text": "hi"}]])
def test_an_item_without_audio_is_unchanged(content: Any) -> None:
    """Text that mentions `input_audio` is not audio."""
    item = {"type": "message", "x": "input_audio", "content": content}
    event = {"type": "conversation.item.create", "item": item}

    assert json.loads(ModelAudio().to_model(json.dumps(event))) == event


def test_an_update_without_audio_gets_no_format() -> None:
    """An update of tracing alone does not change formats."""
    text = '{"type":"session.update","session":{"type":"realtime","tracing":null}}'

    assert json.loads(ModelAudio().to_model(text)) == json.loads(text)


# -------------------------------------------------------------- events from the model


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_a_part_keeps_its_length(sizes: list[int]) -> None:
    """The heard position is never beyond the model's audio, and no ms is missing."""
    pcm = pcm_of(up(noise()))[: sum(sizes)]
    ends = np.cumsum(sizes)
    texts = [delta(pcm[e - n : e]) for n, e in zip(sizes, ends, strict=True)]
    audio = ModelAudio()

    before = said(audio, *texts)
    after = said(audio, done())

    assert len(heard(before)) <= len(pcm) // 6
    assert len(heard(before + after)) == len(pcm) // 6
    assert after[-1] == done()
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2")
    assert heard(before + after) == to_mulaw(down(samples))


def test_a_delta_keeps_its_other_fields() -> None:
    """The ids that a truncate needs, and fields that only others read, are kept."""
    text = delta(bytes(4800), extra={"big": 10**30})

    first, tail, _ = said(ModelAudio(), text, done())

    silence = {"delta": encoded(b"\xff" * 764)}  # 100 ms, less 4.5
    assert json.loads(first) == json.loads(text) | silence
    assert json.loads(tail) == json.loads(text) | {"delta": encoded(b"\xff" * 36)}


def test_tiny_deltas_give_no_empty_delta() -> None:
    """The bridge treats an empty delta as an error."""
    audio = ModelAudio()

    assert said(audio, *[delta(bytes(50))] * 4) == []
    assert said(audio, done()) == [delta_of(33), done()]


def delta_of(count: int) -> str:
    event = json.loads(delta(b"")) | {"delta": encoded(b"\xff" * count)}
    return json.dumps(event, separators=(",", ":"))


def test_less_than_a_sample_gives_no_audio() -> None:
    """An answer of a byte or two ends without any audio."""
    assert said(ModelAudio(), delta(b"\1"), done()) == [done()]


def test_two_parts_do_not_mix() -> None:
    """Items that arrive together sound as if each had come alone."""
    one, two = (pcm_of(tone(hz, 24_000, seconds=0.05)) for hz in (440, 900))
    pieces = [(one, "item_1", 0), (two, "item_1", 1), (two, "item_2", 0)]
    audio = ModelAudio()

    texts = said(audio, *[delta(p[:999], i, n) for p, i, n in pieces])
    texts += said(audio, *[delta(p[999:], i, n) for p, i, n in pieces])
    texts += said(audio, *[done(i, n) for _, i, n in pieces])

    for pcm, item, part in pieces:
        alone = AnswerTranscoder().feed(encoded(pcm)), _tail_of(pcm)
        whole = b"".join(map(base64.b64decode, alone))
        assert heard(texts, item, part) == whole


def test_the_tail_is_sent_at_the_end_of_the_response() -> None:
    """Without an audio.done event the last 4.5 ms are sent with the response's end."""
    audio = ModelAudio()
    said(audio, delta(bytes(960)), delta(bytes(960), "item_2"))
    said(audio, delta(bytes(960), "item_3", response_id="resp_2"))

    texts = said(audio, response_done())

    assert texts[-1] == response_done()
    assert [len(heard(texts, f"item_{n}")) for n in (1, 2, 3)] == [36, 36, 0]
    assert said(audio, response_done()) == [response_done()]
    assert len(heard(said(audio, response_done("resp_2")), "item_3")) == 36


def test_an_interrupted_part_leaves_nothing_behind() -> None:
    """After an interruption the next answer does not begin with sound of the old
    one."""
    audio = ModelAudio()
    loud = pcm_of(tone(440, 24_000, seconds=0.1))
    said(audio, delta(loud[:-1]), done())

    assert set(heard(said(audio, delta(bytes(960)), done()))) == {0xFF}


def test_parts_that_never_end_are_bounded() -> None:
    """A faulty server can neither fill the memory nor cause lost audio."""
    audio = ModelAudio()
    names = [f"item_{n}" for n in range(3 * MAX_PARTS)]

    texts = said(audio, *[delta(bytes(960), name) for name in names])

    ended = [name for name in names if len(heard(texts, name)) == 160]
    assert ended == names[:-MAX_PARTS]


@pytest.mark.parametrize("type_", ["session.created", "session.updated"])
def test_the_session_is_reported_as_mulaw(type_: str) -> None:
    """The bridge sees its own format; a missing rate means the only one there is."""
    sides: Event = {"input": {"format": {"type": "audio/pcm"}}}
    sides["output"] = {"format": PCM_FORMAT, "speed": 1.0}
    event = {"type": type_, "event_id": "a", "session": {"audio": sides, "id": "s"}}

    (text,) = ModelAudio().from_model(json.dumps(event))

    mulaw: Event = {"input": {"format": MULAW_FORMAT}}
    mulaw["output"] = {"format": MULAW_FORMAT, "speed": 1.0}
    assert json.loads(text)["session"] == {"audio": mulaw, "id": "s"}


@pytest.mark.parametrize(
    "form", [MULAW_FORMAT, {"type": "audio/pcma"}, PCM_FORMAT | {"rate": 16_000}]
)
def test_a_server_that_does_not_use_pcm_is_detected(form: Event) -> None:
    """Any other format would be noise: the call ends with that reason."""
    session = {"audio": {"input": None, "output": {"format": form}}}
    event = {"type": "session.updated", "session": session}

    (text,) = ModelAudio().from_model(json.dumps(event))

    updated = realtime_events.decode(text)
    assert isinstance(updated, realtime_events.SessionUpdated)
    assert updated.formats[1] not in (None, realtime_events.MULAW)


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "response.output_audio_transcript.delta", "delta": "a"}',
        '{"type": "response.text", "a": "response.done"}',
        '{"type": "session.updated", "session": {"audio": 1}}',
        '{"type": "session.updated", "session": {"audio": null}',
        '{"type": "response.output_audio.delta", "delta": "AAAA"}',
        delta(b""),
        delta(b"").replace('"delta": ""', '"delta": "not base64"'),
        '{"type": "session.created", "session": {"a": 1e999}}',
        "no JSON at all",
    ],
)
def test_unreadable_events_are_unchanged(text: str) -> None:
    """The parser behind it reports what is wrong with an event."""
    assert ModelAudio().from_model(text) == [text]


@given(
    mangled(
        [
            json.loads(delta(bytes(960))),
            json.loads(done()),
            json.loads(response_done()),
            {"type": "session.updated", "session": {"audio": {"input": {}}}},
        ]
    )
)
def test_no_server_event_raises(text: str) -> None:
    """The parser reports the events of a broken model, not the transcoder."""
    for out in said(ModelAudio(), delta(bytes(960)), text):
        assert isinstance(out, str)


# -------------------------------------------------------------- a call to a fake model


class Phone:
    """A mu-law client of a PCM server, with a ModelAudio before its socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._audio = ModelAudio()
        self.texts: list[str] = []

    async def send(self, text: str) -> None:
        await self._socket.send(self._audio.to_model(text))

    async def say(self, sound: bytes) -> None:
        for at in range(0, len(sound), 160):
            await self.send(realtime_requests.append(encoded(sound[at : at + 160])))

    async def until(self, type_: str) -> Event:
        async with asyncio.timeout(8):
            while True:
                raw = await self._socket.recv(decode=True)
                self.texts += self._audio.from_model(raw)
                event: Event = json.loads(self.texts[-1])
                if event["type"] == type_:
                    return event


async def call(phone: Phone, caller: bytes) -> None:
    created = await phone.until("session.created")
    assert created["session"]["audio"]["input"]["format"] == MULAW_FORMAT
    side = {"format": MULAW_FORMAT}
    session = {"type": "realtime", "audio": {"input": side, "output": side}}
    await phone.send(json.dumps({"type": "session.update", "session": session}))
    await phone.until("session.updated")
    await phone.say(caller + b"\xff" * 8000)
    await phone.until("response.done")


async def place(caller: bytes, answer: str) -> tuple[Phone, ModelSession]:
    behaviour = Behaviour(turns=[[SayText(answer)]], think_seconds=0.02, speed=40.0)
    async with (
        ModelServer(behaviour) as server,
        connect(server.url, compression=None, close_timeout=0.2) as socket,
    ):
        phone = Phone(socket)
        await call(phone, caller)
        return phone, server.sessions[0]


async def test_a_pcm_model_hears_the_caller_and_is_heard() -> None:
    """On a server without mu-law the caller speaks, is understood and is answered."""
    caller = speak("Hello, is anybody there?").mulaw()

    phone, model = await place(caller, "Good morning, what can I do for you?")

    updated = next(t for t in phone.texts if '"session.updated"' in t)
    event = realtime_events.decode(updated)
    assert isinstance(event, realtime_events.SessionUpdated)
    assert event.formats == (realtime_events.MULAW, realtime_events.MULAW)
    assert model.session["audio"]["input"]["format"] == PCM_FORMAT
    assert any('"input_audio_buffer.speech_started"' in t for t in phone.texts)
    took = np.frombuffer(bytes(model.caller_audio), "<i2")
    wanted = up(from_mulaw(caller))
    late = 3 * DELAY
    assert np.array_equal(took[late : len(wanted)], wanted[:-late])

    (item,) = model.responses[0].items
    got = heard(phone.texts, item.id)
    sent = b"".join(item.chunks)
    assert len(got) / 8 == item.sent_ms > 1000
    theirs = np.frombuffer(resample(sent, 24_000, 8000), "<i2")
    assert snr_db(theirs, from_mulaw(got)) > 33
