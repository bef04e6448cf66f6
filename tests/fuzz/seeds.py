"""The inputs with which a search begins: real messages and one input of each kind."""

import io
import json
import random
import wave
from itertools import accumulate
from pathlib import Path
from urllib.parse import urlencode

from bridge.core.history import HistoryItem, Playing
from bridge.fleet.formats import FORMAT
from bridge.fleet.plan import Plan
from bridge.fleet.snapshot import CallSnapshot, SavedMessage
from tests.fuzz.any_call import STEPS
from tests.fuzz.texts import CALLER_TAGS, MODEL_TAGS, TICKET
from tests.http.divisions import RECORDED

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SERVER_EVENTS = HERE.parent / "sim" / "realtime-server-events.jsonl"

TEXTS = [
    "It is 4111 1111 1111 1111, or four double one two, from a to b.",
    "He pressed these keys on the phone: 4711)",
    "sk-proj-123456 Bearer abcdefgh123 https://me:word@host +1 (415) 555-0100",
    '{"type": "x.segment", "text": "4111", "generated": "41111", "heard": "4"}',
    '{"mark": {"name": "m1"}, "arguments": "[4111111111111111]", "id": "4711"}',
]

SID = "MZ00000000000000000000000000000001"
CALLER = [
    # The examples of https://www.twilio.com/docs/voice/media-streams/websocket-messages
    {"event": "connected", "protocol": "Call", "version": "1.0.0"},
    {
        "event": "start",
        "sequenceNumber": "1",
        "streamSid": SID,
        "start": {
            "accountSid": "AC00000000000000000000000000000001",
            "streamSid": SID,
            "callSid": "CA00000000000000000000000000000001",
            "tracks": ["inbound"],
            "mediaFormat": {
                "encoding": "audio/x-mulaw",
                "sampleRate": 8000,
                "channels": 1,
            },
            "customParameters": {"From": "+14155550100", "Direction": "inbound"},
        },
    },
    {
        "event": "media",
        "sequenceNumber": "3",
        "streamSid": SID,
        "media": {
            "track": "inbound",
            "chunk": "1",
            "timestamp": "5",
            "payload": "f/9/9/8=",
        },
    },
    {
        "event": "dtmf",
        "streamSid": SID,
        "sequenceNumber": "5",
        "dtmf": {"track": "inbound_track", "digit": "1"},
    },
    {
        "event": "mark",
        "sequenceNumber": "4",
        "streamSid": SID,
        "mark": {"name": "m1"},
    },
    {
        "event": "stop",
        "sequenceNumber": "5",
        "streamSid": SID,
        "stop": {"accountSid": "AC1", "callSid": "CA1"},
    },
]

PCM = {"type": "audio/pcm", "rate": 24000}
PCM_EVENTS = [
    {
        "type": kind,
        "session": {
            "type": "realtime",
            "audio": {
                "input": {"format": PCM, "turn_detection": None},
                "output": {"format": PCM},
            },
        },
    }
    for kind in ("session.created", "session.updated")
]
PART = {"response_id": "r1", "item_id": "i1", "output_index": 0, "content_index": 0}
PCM_EVENTS += [
    {"type": "response.output_audio.delta", **PART, "delta": "AAAAAAAA" * 60},
    {"type": "response.output_audio.done", **PART},
    {"type": "response.done", "response": {"id": "r1", "status": "completed"}},
]

MCP_CALL = {
    "id": "mcp_1",
    "type": "mcp_call",
    "server_label": "tables",
    "name": "book",
    "arguments": "{}",
}
ASKED = {**MCP_CALL, "id": "mcpr_1", "type": "mcp_approval_request"}
LISTED = {
    "id": "mcpl_1",
    "type": "mcp_list_tools",
    "server_label": "tables",
    "tools": [{"name": "book", "description": "x", "input_schema": {}}],
}
MCP_EVENTS = [
    {"type": "conversation.item.added", "item": {**LISTED, "tools": []}},
    {"type": "conversation.item.done", "item": LISTED},
    {"type": "mcp_list_tools.failed", "item_id": "mcpl_1"},
    {"type": "response.created", "response": {"id": "r1"}},
    {"type": "response.output_item.added", "response_id": "r1", "item": MCP_CALL},
    {
        "type": "response.mcp_call_arguments.done",
        "item_id": "mcp_1",
        "response_id": "r1",
        "arguments": '{"guests":4}',
    },
    {"type": "response.mcp_call.in_progress", "item_id": "mcp_1"},
    {"type": "response.mcp_call.completed", "item_id": "mcp_1"},
    {"type": "response.mcp_call.failed", "item_id": "mcp_1"},
    {"type": "conversation.item.done", "item": {**MCP_CALL, "output": "table 7"}},
    {
        "type": "conversation.item.done",
        "item": {
            **MCP_CALL,
            "error": {"message": "x"},
            "approval_request_id": "mcpr_1",
        },
    },
    {"type": "response.output_item.added", "response_id": "r1", "item": ASKED},
    {"type": "conversation.item.done", "item": ASKED},
    {"type": "response.done", "response": {"id": "r1", "status": "completed"}},
]

SIP_EVENTS = [
    {"type": "output_audio_buffer.started", "response_id": "r1"},
    {"type": "output_audio_buffer.stopped", "response_id": "r1"},
    {"type": "output_audio_buffer.cleared", "response_id": "r1"},
    {"type": "input_audio_buffer.dtmf_event_received", "event": "#"},
    {"type": "response.created", "response": {"id": "r1"}},
    {"type": "response.output_audio_transcript.delta", **PART, "delta": "Hello you"},
    {"type": "response.done", "response": {"id": "r1", "status": "failed"}},
]

BODIES = [
    {},
    {
        "to": "+14155550100",
        "from": "+14155550101",
        "route": "sales",
        "parameters": {"a": "b"},
        "greeting": "Hello",
        "machine": "message",
        "message": "Call back",
        "ring_seconds": 30,
        "longest_seconds": 60,
    },
    {"number": "+14155550100", "caller_id": "", "ring_seconds": 20},
    {"digits": "12w#"},
    {"text": "Hello", "role": "system", "respond": False},
    {"on": True},
    {"approve": False, "always": True, "message": "no"},
    {"remove": ["i1"], "correct": {"i2": "words"}},
]

CALL = "CA" + "0" * 31 + "1"
STATUSES: list[dict[str, object]] = [
    {"CallSid": CALL, "CallStatus": "ringing", "SequenceNumber": "1", "order": "o1"},
    {"CallSid": CALL, "CallStatus": "completed", "SequenceNumber": "3"},
    {"CallSid": CALL, "CallStatus": "busy", "SipResponseCode": "486", "ErrorCode": ""},
    {"CallSid": CALL, "AnsweredBy": "machine_end_beep", "CallDuration": "61"},
]
DIALS = [
    {"DialCallStatus": "busy", "From": "client:ann", "To": "+14155550100"},
    {
        "DialCallStatus": "failed",
        "ErrorCode": "13214",
        "DialSipResponseCode": "486",
        "ErrorMessage": "Dial: +1 (415) 555-0100 and sip:a@b.example: no",
    },
]
WARM = [
    "Ann. Press 1.\na AnsweredBy=human\nk Digits=1\nn \nc \ns CallStatus=completed",
    "Press 1.\na \nk Digits=2\nk Digits=1\ns CallStatus=completed&ErrorCode=1",
    " \na AnsweredBy=machine_start\nk \nn ",
    " Hello.\na \nk \ns CallStatus=busy&SipResponseCode=486\nj \nn!call=x&warm=ab12",
]
NUMBERS = [
    "+1 (415) 555-0100",
    "+44 (0)20 7946 0958",
    "+36 06 90 123 456",
    "tel:+14155550100;ext=5",
    "sip:desk@pbx.example:5060;transport=tls",
    "sips:a%20b@[::1]",
    "ww42#",
    "+٤٩٣٠",
]
ORDERS: list[dict[str, object]] = [
    {"to": "+14155550100", "from": "+14155550101", "machine": "ignore"},
    {"to": "+14155550100", "send_digits": "ww1#", "machine": "ignore"},
    {
        "to": "+14155550100",
        "parameters": {"name": "Ann"},
        "machine": "message",
        "message": "Call back.",
        "agent_decides": True,
        "campaign": "spring",
        "ring_seconds": 60,
        "longest_seconds": 600,
    },
]

ROUTES = """\
defaults:
  agent: examples/agent.py:agent
  language: en-US
  session: {voice: marin, turn_detection: {type: semantic_vad}, speed: 1.1}
  when_full: {answer: queue, say: Please wait.}
  cost: {limit: 1.5, input_text: 4, input_audio: 32, input_cached: 0.4,
    output_text: 16, output_audio: 64}
routes:
  - name: sales
    number: ["+14155550100", "+14155550101"]
    direction: inbound
    when: {Lang: en}
    greeting: ""
    keys: {"0": {transfer: {number: "+14155550102", ring_seconds: 20}}, "1": {tell: a}}
    key_pause_seconds: 2.5
    key_stops_agent: off
    silence: {seconds: 10, ask: 2, tell: Ask.}
    longest_seconds: 600
    approval: {seconds: 30, default: reject, message: no}
    tool_seconds: 30
    transfers:
      desk: "+14155550103"
      sales: {number: "+14155550103", accept: true, warm: true, whisper: Press 1.}
    on_call: pkg.mod:hook
    report: {to: pkg.mod:report, url: "https://a.example/x"}
    fallback: "+14155550104"
    busy: We are busy.
    sorry: Sorry.
  - number: any
    silence: off
"""

SETTINGS = """\
5
2.5
yes
name
127.0.0.1
module:name
https://bridge.example.com
wss://api.openai.com/v1/realtime?model=x
rediss://:pw@[::1]:6379/0?ssl_cert_reqs=none
{"X-Key": "value"}
X-Key: value; Y: z
ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: one, two; ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb: three
+1 (415) 555-0100
AC00000000000000000000000000000001
whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz
+1,!+1900,+4930
10.0.0.0/8,::1
input_text=4, input_audio=32, input_cached=0.4, output_text=16, output_audio=64
~nobody/x
b"""


def _dumped(messages: list[dict[str, object]]) -> list[bytes]:
    return [json.dumps(message).encode() for message in messages]


def _together(messages: list[bytes], *events: bytes) -> list[bytes]:
    """Each message as an input, and an input of all messages, then `events`."""
    return [*messages, b"\n".join([*messages, *events])]


def seeds(target: str) -> list[bytes]:
    """The inputs with which a search of this target begins."""
    server = SERVER_EVENTS.read_bytes().strip().split(b"\n")
    match target:
        case "caller":
            return _together(_dumped(CALLER))
        case "model":
            return _together(server)
        case "model_audio":
            return _together(_dumped(PCM_EVENTS))
        case "wire":
            events = b"!l !y !n !u !i !".split()
            return _together(_dumped(MCP_EVENTS), *events) + _together(server)
        case "sip":
            events = b"!t !a !ir1 !eitem_a1 !b !f !m !mo !l !w !h !......... !".split()
            return _together(_dumped(SIP_EVENTS), *events) + _together(server)
        case "snapshot":
            return [
                Plan("Hello", "message", "Call back").encoded(FORMAT),
                _snapshot().encoded(FORMAT),
            ]
        case "redaction":
            return _together([*(it.encode() for it in TEXTS), *server])
        case "queue_place":
            return [b"1760000000000-3", b"9999999999999-999999999", b"0-0"]
        case "ticket":
            return [b"AC1\nCA1\n" + TICKET.encode(), b"AC1\nCA2\n68efb000.x.y"]
        case "signature":
            target, settings = b"/voice?bodySHA256=0", b"algorithm=HMAC-SHA256,key=key"
            return [b"\n".join((target, b"abc=", settings, b"a=b&a=c"))]
        case "webhook":
            return _webhooks()
        case "body":
            return _dumped(BODIES)
        case "routes":
            return [ROUTES.encode()]
        case "parameters":
            return [b"\n".join(it) for it in _told()]
        case "status":
            return _together([urlencode(it).encode() for it in STATUSES])
        case "dial_result":
            return _together([urlencode(it).encode() for it in DIALS])
        case "warm":
            return [it.encode() for it in WARM]
        case "number":
            return _together([it.encode() for it in NUMBERS])
        case "wav":
            return [_wav(*it) for it in ((1, 2, 8000), (2, 2, 44100), (1, 1, 16000))]
        case "order":
            return _together(_dumped(ORDERS))
        case "setting":
            return SETTINGS.encode().split(b"\n")
        case _:
            rng = random.Random(5)
            every = bytes(32 if at % 9 == 0 else at for at in range(len(STEPS)))
            return [every, *(rng.randbytes(size) for size in (20, 60, 200) * 8)]


def _webhooks() -> list[bytes]:
    found = []
    for number, it in enumerate(RECORDED.values()):
        lengths = [len(text) for pair in sorted(it.form.items()) for text in pair]
        cuts = " ".join(map(str, accumulate(lengths[:-1])))
        form = urlencode(it.form)
        found.append("\n".join((it.target, form, "x" * number, cuts)).encode())
    more = {
        "ForwardedFrom": "+15550000003",
        "Direction": "outbound-api",
        "SipHeader_X-Account": "42",
        "tenant": "acme",
        "DialCallStatus": "failed",
        "ErrorCode": "13214",
        "ErrorMessage": "Dial: client:ann and +14155550100",
    }
    query = urlencode({"tenant": "x", "parameters": '{"a":"b"}'})
    for caller in ("client:ann", "+14155550100"):
        form = urlencode({"From": caller, "To": "+14155550199", **more})
        found.append("\n".join((f"/voice?{query}", form, "", "0")).encode())
    return found


def _told() -> list[tuple[bytes, bytes, bytes]]:
    client = {"From": "client:ann", "To": "+14155550199", "tenant": "acme"}
    twilios = {"From": "+14155550100", "CallerName": "ANN", "SipHeader_X-A": "1"}
    query = urlencode({"tenant": "x", "parameters": '{"a":"b"}'}).encode()
    return [
        (b"default, tenant", query, urlencode(client).encode()),
        (b"custom, SipHeader_*", b"", urlencode(twilios).encode()),
        (b"none", query, b""),
    ]


def _wav(channels: int, width: int, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(bytes(range(1, 241)) * 4)
    return file.getvalue()


def _snapshot() -> CallSnapshot:
    return CallSnapshot(
        history=(
            HistoryItem("i1", "user", "hello", at=1.0),
            HistoryItem("i2", "assistant", "one", "one two", cut=True),
            HistoryItem("i3", "tool_call", call_id="c1", name="x", arguments="{}"),
        ),
        playing=(Playing("i2", ((0, "one "), (800, "two")), 8000, 800, False),),
        taken_at=1_760_000_000.0,
        stream_count=1,
        parameters={"From": "+14155550100"},
        messages=(SavedMessage("call me", "Ann", "+14155550100"),),
        notes={"a": [1, None]},
    )


def words() -> set[str]:
    """The dictionary of the fuzzer: names and values that have a meaning."""
    found = {*CALLER_TAGS, *MODEL_TAGS}
    phones = (*STATUSES, *DIALS, *ORDERS)
    for message in (*CALLER, *PCM_EVENTS, *MCP_EVENTS, *SIP_EVENTS, *BODIES, *phones):
        found |= _names(message)
    for line in SERVER_EVENTS.read_bytes().strip().split(b"\n"):
        found |= _names(json.loads(line))
    found |= set(ROUTES.replace(":", " ").replace("{", " ").split())
    return {word for word in found if 2 < len(word) < 60 and word.isascii()}


def _names(value: object) -> set[str]:
    if isinstance(value, dict):
        inner = (_names(it) for it in value.values())
        return set(value).union(*inner)
    if isinstance(value, list):
        return set().union(*(_names(it) for it in value))
    return {value} if isinstance(value, str) else set()
