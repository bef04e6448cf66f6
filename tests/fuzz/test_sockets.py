"""A running bridge, attacked over real sockets with input that Hypothesis generates.

In the test suite the input is the same in each run. FUZZ_EXAMPLES=2500 (of each kind)
searches for minutes, with other input in each run; -s shows counts of what was sent.
Each finding is kept here as an @example.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus
from xml.etree import ElementTree

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from multidict import MultiDict
from pydantic import SecretStr
from structlog.testing import capture_logs
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge.fleet import CallEntry, NextStep, Then
from bridge.http.api import auth, openapi
from bridge.http.connection_guard import HEADERS
from bridge.http.tickets import Tickets
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.core.rubbish import WORDS, mangled
from tests.e2e.bridge import HELLO, RunningBridge, bridge

# Hypothesis warns that its report about a large body is too large.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
ANSWER_SECONDS = 20.0

PUBLIC, HOST = "https://bridge.example", "bridge.example"
AUTH_TOKEN, API_TOKEN = "0123456789abcdef" * 2, "the token of the control API"
ACCOUNT, CALL = "AC" + "0" * 31 + "1", "CA" + "1" * 32
PLAN_B = "+15550001111"
SIGNS = RequestValidator(AUTH_TOKEN)
MARK = "Zq7Zq7"
"""Part of many requests; no response to an unauthenticated client may repeat it."""

VERBS = {
    *("Response", "Connect", "Stream", "Parameter", "Say", "Hangup", "Reject"),
    *("Dial", "Number", "Gather"),
}
"""The elements of all TwiML documents in these tests, which have no queue."""

EVIL = '"/></Stream></Connect><Dial>+19005550100</Dial><Say x="'

ODD = (
    "",
    EVIL,
    "]]><!--&x;%s{0}",
    "\r\nX-Evil: 1\r\n\r\n",
    "\x00",
    "\ufffe\u2028",
    "a" * 5000,
    "../../../etc/passwd",
    "%2e%2e%2f%00",
    "sip:a@b;c=d?e",
    "client:anna",
    "+15551230001",
    "+19005550100",
    "-1",
    "NaN",
    "9" * 4400,
    "٣",
    MARK,
    *(f"CA{n}" + "2" * 31 for n in range(3)),
    "busy",
    "no-answer",
    "completed",
    "in-progress",
    "stream-error",
    "machine_start",
    "human",
    "0-0",
    "9999999999999-1",
)
TEXTS = st.one_of(st.sampled_from(ODD), WORDS)
QUOTED = TEXTS.map(lambda text: quote_plus(text, errors="surrogatepass"))
"""Percent-encoded, so that the HTTP parser accepts the text."""

ANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


# --- the bridge, and the rules that hold for any input ---


@dataclass
class Attack:
    """A bridge, and counts of what was sent to it and of its answers."""

    place: RunningBridge
    loop: asyncio.AbstractEventLoop
    sent: "Counter[str]"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs `work` in the event loop, called from Hypothesis's thread."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()
        except TimeoutError:
            # A TimeoutError would lose Hypothesis's report when it leaves the thread.
            raise AssertionError("not in time") from None

    async def search(self, test: Callable[[], None]) -> None:
        """Runs the search of Hypothesis, in a thread because it blocks."""
        await asyncio.to_thread(test)

    async def ask(self, head: bytes, body: bytes = b"") -> "Answer":
        """Sends one request exactly as given. Its answer must arrive within
        ANSWER_SECONDS and have what every answer has."""
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.place.server.port
            )
            try:
                writer.write(head + b"\r\n" + body)
                status, headers = await _head(reader)
                if status == 100:
                    status, headers = await _head(reader)
                text = b""
                if not head.startswith(b"HEAD "):
                    # Do not read to the end of the connection: the bridge keeps it open
                    # while it waits for announced bytes that were not sent.
                    size = headers.get("content-length")
                    text = await (
                        reader.readexactly(int(size)) if size else reader.read()
                    )
            finally:
                writer.transport.abort()
        answer = Answer(status, headers, text)
        self.sent[f"answered {answer.status}"] += 1
        for name, value in HEADERS.items():
            assert headers[name.lower()] == value
        assert not [it for it in headers if it.startswith("access-control")]
        assert "x-evil" not in headers
        assert b"Traceback" not in text
        return answer


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = first.removesuffix("\r\n\r\n").split("\r\n")
    named = (it.partition(": ") for it in lines)
    return int(line.split(" ")[1]), {name.lower(): value for name, _, value in named}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: bytes


@asynccontextmanager
async def attacked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Attack]:
    """A bridge as in production. After the attack it takes a call as usual, has no
    leaks, and has logged no error."""
    monkeypatch.setattr(auth, "NO_TOKEN_BURST", 1e9)
    behaviour = Behaviour(fallback=[PlayRuler(300)])
    conf = {
        "public_url": PUBLIC,
        "twilio_auth_token": SecretStr(AUTH_TOKEN),
        "twilio_account_sid": ACCOUNT,
        "api_token": SecretStr(API_TOKEN),
        "api_per_second": 10_000,
        "fallback_number": PLAN_B,
        "body_seconds": 0.2,
    }
    sent: Counter[str] = Counter()
    with capture_logs() as logged:
        async with bridge(behaviour, **conf) as place:
            yield Attack(place, asyncio.get_running_loop(), sent)
            await place.empty()
            caller = place.caller(auth_token=AUTH_TOKEN, signed_origin=PUBLIC)
            record = await caller.call(
                [
                    steps.SayStep(HELLO),
                    steps.ListenStep(quiet_seconds=0.3),
                    steps.HangUpStep(),
                ]
            )
            assert read_ruler(record.heard).heard_ms == {1: 300}
            await place.empty()
    worse = [it for it in logged if it["log_level"] in ("error", "critical")]
    assert worse == []
    # The fake model logs errors of calls that end while it is being dialled.
    ours = [it for it in caplog.records if it.name != "websockets.server"]
    assert [it for it in ours if it.levelname in ("ERROR", "CRITICAL")] == []
    print(dict(sorted(sent.items())))


def in_line(text: str) -> str:
    """`text` for the request line or a header, without characters that would end it."""
    kept = text.encode("utf-8", "surrogatepass").decode("latin-1")
    return "".join(it for it in kept if it not in "\r\n\x00")


# --- webhooks that Twilio has signed ---

NAMES = st.one_of(
    st.sampled_from(
        ["CallSid", "AccountSid", "From", "To", "CallerName", "CallStatus",
         "DialCallStatus", "StreamEvent", "StreamError", "SequenceNumber",
         "CallDuration", "AnsweredBy", "Direction", "Digits", "ErrorCode",
         "ErrorMessage", "ForwardedFrom", "SipHeader_X-Id", "tenant"]
    ),
    WORDS,
)  # fmt: skip
PAIRS = st.lists(st.tuples(NAMES, TEXTS), max_size=6)
TRANSFERRED = "CA" + "7" * 32
"""A call that is being transferred, with a whisper that user code has written."""
QUERY = st.lists(
    st.tuples(
        st.sampled_from(
            ["waiting", "returning", "back", "order", "parameters", "tenant", MARK]
        ),
        TEXTS,
    )
    | st.just(("call", TRANSFERRED))
    | st.tuples(st.just("call"), TEXTS),
    max_size=2,
)
PATHS = st.sampled_from(
    ["/voice", "/voice/next", "/stream-status", "/call-status", "/amd-status",
     "/voice/whisper", "/voice/accept"]
)  # fmt: skip
KNOWN = [
    *(("AccountSid", ACCOUNT), ("CallSid", CALL)),
    *(("From", "+15551230001"), ("To", PLAN_B)),
]


@dataclass(frozen=True)
class Signed:
    """A signed webhook, whose content the caller or Twilio chooses."""

    path: str
    query: list[tuple[str, str]]
    known: bool
    pairs: list[tuple[str, str]]
    as_json: bool

    def request(self) -> tuple[bytes, bytes]:
        pairs = [*KNOWN, *self.pairs] if self.known else self.pairs
        query = _encoded(self.query)
        if self.as_json:
            body = json.dumps(dict(pairs)).encode()
            query += f"&bodySHA256={hashlib.sha256(body).hexdigest()}"
            signed: Any = {}
            kind = "application/json"
        else:
            body, kind = _encoded(pairs).encode(), "application/x-www-form-urlencoded"
            signed = MultiDict(pairs)
        target = self.path + (f"?{query}" if query else "")
        try:
            signature = SIGNS.compute_signature(PUBLIC + target, signed)
        except UnicodeEncodeError:
            signature = "none"
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\n"
            f"X-Twilio-Signature: {signature}\r\nContent-Length: {len(body)}\r\n"
        )
        return head.encode(), body


def _encoded(pairs: list[tuple[str, str]]) -> str:
    return "&".join(
        "=".join(quote_plus(it, errors="surrogatepass") for it in pair)
        for pair in pairs
    )


OF_IT = [("call", TRANSFERRED)]
SIGNED = st.builds(
    Signed, PATHS, QUERY, st.sampled_from([True, True, True, False]), PAIRS,
    st.sampled_from([False, False, True]),
)  # fmt: skip


async def test_signed_webhooks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any caller name and any parameter of Twilio gives TwiML that does only what the
    bridge intends."""
    async with attacked(caplog, monkeypatch) as it:
        step = NextStep(Then.TRANSFER, PLAN_B, whisper=EVIL, accept=True)
        entry = CallEntry(TRANSFERRED, "MZ" + "7" * 32, 0.0)
        await it.place.server.registry.closed(entry, step)

        @ANY
        @given(st.lists(SIGNED, min_size=1, max_size=20))
        @example([Signed("/voice", [], True, [("From", EVIL), ("To", EVIL)], False)])
        @example([Signed("/voice/whisper", OF_IT, True, [], False)])
        @example(
            [
                Signed(
                    "/voice/accept",
                    OF_IT,
                    True,
                    [("Digits", "1")],
                    False,
                )
            ]
        )
        def search(webhooks: list[Signed]) -> None:
            it.run(all_of(webhooks))

        async def all_of(webhooks: list[Signed]) -> None:
            for webhook in webhooks:
                it.sent["signed webhooks"] += 1
                answer = await it.ask(*webhook.request())
                assert answer.status in (200, 204, 400, 403, 431), answer.text
                if answer.status == 200:
                    it.sent[f"answered {webhook.path}"] += 1
                    _does_only_what_the_bridge_intends(answer.text)

        await it.search(search)
        for path in ("/voice", "/voice/whisper", "/voice/accept"):
            assert it.sent[f"answered {path}"], "nothing was tested"


def _does_only_what_the_bridge_intends(text: bytes) -> None:
    document = ElementTree.fromstring(text.decode())
    for element in document.iter():
        assert element.tag in VERBS, element.tag
        for name in ("url", "action", "statusCallback"):
            url = element.attrib.get(name)
            assert url is None or url.startswith((PUBLIC, f"wss://{HOST}/media/"))
    for dial in document.iter("Dial"):
        assert "".join(dial.itertext()).strip() == PLAN_B


# --- anything, unsigned ---

METHODS = st.sampled_from(
    [*["GET", "POST"] * 5, "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE",
     "CONNECT", "PROPFIND", "get", "G\tT"]
)  # fmt: skip
PLACES = st.sampled_from(
    ["/", "/voice", "/voice/next", "/stream-status", "/call-status", "/amd-status",
     "/openai/webhook", "/media", f"/media/{ACCOUNT}/{CALL}/x", "/healthz", "/readyz",
     "/metrics", "/api", "/api/calls", f"/api/calls/{CALL}/events", "//api/calls",
     "/api/../metrics", "/api/%2e%2e/metrics", "/%61pi/calls;x", "*", "http://x/api",
     f"http://{MARK}.example/voice", f"/{MARK}", "/voice%00", "/api/calls\\..\\x"]
)  # fmt: skip
TAILS = st.one_of(
    st.just(""),
    st.just(""),
    st.builds("{}{}".format, st.sampled_from(["", "/", "?raw=", ";", "#"]), QUOTED),
    TEXTS,
)
HEADER_NAMES = st.sampled_from(
    ["Host", "Authorization", "Cookie", "Origin", "Accept", "Range", "X-Forwarded-For",
     "X-Forwarded-Proto", "X-Twilio-Signature", "Sec-Fetch-Site", "Webhook-Id",
     "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions",
     "Content-Type", "Content-Length", "Transfer-Encoding", MARK]
)  # fmt: skip
LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "Content-Type: application/x-www-form-urlencoded",
                "Content-Type: application/json",
                "Content-Type: multipart/form-data; boundary=x",
                f"Content-Type: text/{MARK}; charset={MARK}",
                "Content-Encoding: gzip",
                f"Content-Encoding: {MARK}",
                "Transfer-Encoding: chunked",
                f"Transfer-Encoding: {MARK}",
                "Content-Length: 7",
                "Content-Length: -1",
                "Expect: 100-continue",
                f"Expect: {MARK}",
                "Connection: Upgrade",
                "Upgrade: websocket",
                f"Upgrade: {MARK}",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                f"Authorization: Bearer {MARK}",
                f"Authorization: Basic {MARK}",
                f"Cookie: token={API_TOKEN}",
                f"Origin: https://{MARK}.example",
                "X-Twilio-Signature: AAAA",
                f"X-Twilio-Signature-Settings: alg=HMAC-SHA256,key={MARK}",
                f"X-Forwarded-For: {MARK}, 1.2.3.4",
                f"X-Forwarded-Host: {MARK}.example",
                "X-HTTP-Method-Override: DELETE",
                "Webhook-Id: x",
                "Webhook-Timestamp: 9" + "9" * 400,
                "Webhook-Signature: v1,AAAA",
                f" {MARK}",
            ]
        ),
        st.builds("{}: {}".format, HEADER_NAMES, QUOTED),
        st.builds("{}: {}".format, HEADER_NAMES, TEXTS),
    ),
    max_size=3,
)
BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=30),
    st.sampled_from([b"CallSid=CA1", b'{"CallSid":"CA1"}', b"3\r\nabc\r\n0\r\n\r\n"]),
    st.sampled_from([b"[" * 60_000, b"a=" * 30_000, b"%ff=%", b"\x1f\x8b\x08\x00"]),
)


@dataclass(frozen=True)
class Raw:
    method: str
    path: str
    lines: list[str]
    body: bytes
    right_length: bool

    def request(self) -> tuple[bytes, bytes]:
        lines = [f"{self.method} {in_line(self.path)} HTTP/1.1", f"Host: {HOST}"]
        lines += [in_line(it) for it in self.lines]
        if self.right_length:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "".join(f"{it}\r\n" for it in lines)
        return head.encode("latin-1"), self.body


RAW = st.builds(
    Raw, METHODS, st.builds("{}{}".format, PLACES, TAILS), LINES, BODIES,
    st.booleans(),
)  # fmt: skip

A_FORM = ["Content-Type: application/x-www-form-urlencoded"]
PUBLIC_STATUSES = frozenset({200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 431})


async def test_unauthenticated_requests(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without token and signature is refused; the answer repeats none of its
    input."""
    async with attacked(caplog, monkeypatch) as it:

        @ANY
        @given(st.lists(RAW, min_size=1, max_size=20))
        # aiohttp repeats an unknown Expect header, before the token is checked.
        @example([Raw("GET", "/api/calls", [f"Expect: {MARK}"], b"", False)])
        # aiohttp logs the error of a body that the handler did not read.
        @example([Raw("POST", f"/{MARK}", ["Content-Encoding: gzip"], b"none", True)])
        @example([Raw("POST", "/voice", [*A_FORM, "Content-Length: 7"], b"", False)])
        def search(requests: list[Raw]) -> None:
            it.run(all_of(requests))

        async def all_of(requests: list[Raw]) -> None:
            for request in requests:
                it.sent["unauthenticated requests"] += 1
                answer = await it.ask(*request.request())
                assert answer.status in PUBLIC_STATUSES, answer.text
                assert MARK not in f"{answer.headers}{answer.text!r}"

        await it.search(search)
        assert it.place.model.sessions == []
        assert it.sent["answered 401"] and it.sent["answered 404"]


# --- the control API, with the token ---

OPERATIONS = [it for it in openapi.OPERATIONS if it.name != "place_call"]
API_BODIES = st.sampled_from(["[" * 60_000, '{"a":' * 12_000, "1" * 60_000]) | mangled(
    [
        {},
        {"text": "Hello", "role": "user", "respond": True},
        {"number": "+15551230001", "caller_id": "", "ring_seconds": 20},
        {"digits": "12#w"},
        {"on": True},
        {"approve": True, "always": False, "message": "no"},
        {"remove": ["i1"], "correct": {"i2": "words"}},
        {"to": "+15551230001", "from": "+1", "parameters": {"a": "b"}},
    ]
)
# 405, 417 and 431 are answered before an operation is found.
API_STATUSES = {
    *(it.success for it in OPERATIONS),
    *openapi.PROBLEMS,
    *(405, 417, 431),
} - {500}


@dataclass(frozen=True)
class ApiRequest:
    method: str
    path: str
    body: str
    lines: list[str]

    def request(self) -> tuple[bytes, bytes]:
        body = self.body.encode("utf-8", "surrogatepass")
        lines = [
            f"{self.method} /api{in_line(self.path)} HTTP/1.1",
            f"Host: {HOST}",
            f"Authorization: Bearer {API_TOKEN}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *map(in_line, self.lines),
        ]
        return "".join(f"{it}\r\n" for it in lines).encode("latin-1"), body


@st.composite
def api_requests(draw: st.DrawFn) -> ApiRequest:
    operation = draw(st.sampled_from(OPERATIONS))
    sid = CALL if draw(st.integers(0, 3)) else draw(QUOTED)
    path = operation.path.replace("{sid}", sid).replace("{call_id}", draw(QUOTED))
    if draw(st.integers(0, 9)) == 0:
        path += draw(TEXTS)
    method = draw(METHODS) if draw(st.integers(0, 9)) == 0 else operation.method
    lines = draw(LINES) if draw(st.integers(0, 4)) == 0 else []
    return ApiRequest(method, path, draw(API_BODIES), lines)


async def test_the_control_api(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faulty program that has the token breaks no call, and gets only statuses of the
    OpenAPI document."""
    async with attacked(caplog, monkeypatch) as it, running_call(it) as call:

        @ANY
        @given(st.lists(api_requests(), min_size=1, max_size=20))
        def search(requests: list[ApiRequest]) -> None:
            it.run(all_of(requests))

        async def all_of(requests: list[ApiRequest]) -> None:
            for request in requests:
                await call.ensure_running()
                it.sent["requests with the token"] += 1
                if "/events" in request.path:  # which ends with the call
                    asked = (it.ask(*request.request()), call.hang_up(0.05))
                    answer, _ = await asyncio.gather(*asked)
                else:
                    answer = await it.ask(*request.request())
                assert answer.status in API_STATUSES, answer.text

        await it.search(search)


class RunningCall:
    """A call from a fake phone that returns marks; `ensure_running` starts it again."""

    def __init__(self, attack: Attack, tasks: asyncio.TaskGroup) -> None:
        self._attack = attack
        self._tasks = tasks
        self._socket: ClientConnection | None = None

    async def ensure_running(self) -> None:
        if self._attack.place.server.live(CALL):
            return
        self._socket = await opened(self._attack)
        self._tasks.create_task(self._play(self._socket), name="a fake phone")
        await self._socket.send(json.dumps(start(CALL)))
        async with asyncio.timeout(20):
            while not self._attack.place.server.live(CALL):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def _play(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in socket:
                if json.loads(text)["event"] == "mark":
                    await socket.send(text)

    async def hang_up(self, after: float = 0.0) -> None:
        await asyncio.sleep(after)
        if self._socket:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(json.dumps(STOP))


@asynccontextmanager
async def running_call(attack: Attack) -> AsyncIterator[RunningCall]:
    async with asyncio.TaskGroup() as tasks:
        call = RunningCall(attack, tasks)
        yield call
        await call.hang_up()


# --- handshakes and streams ---


def start(call: str) -> dict[str, Any]:
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    details = {
        "callSid": call,
        "accountSid": ACCOUNT,
        "mediaFormat": form,
        "customParameters": {"From": "+15551230001", "To": EVIL},
    }
    return {"event": "start", "streamSid": "MZ1", "start": details}


MEDIA = {"track": "inbound", "timestamp": "20", "payload": "/" * 216}
STOP = {"event": "stop", "streamSid": "MZ1"}
MESSAGES = mangled(
    [
        {"event": "connected", "protocol": "Call"},
        start(CALL),
        {"event": "media", "streamSid": "MZ1", "media": MEDIA},
        {"event": "media", "streamSid": "MZ1", "media": MEDIA},
        {"event": "mark", "streamSid": "MZ1", "mark": {"name": "1"}},
        {"event": "dtmf", "streamSid": "MZ1", "dtmf": {"digit": "5"}},
        STOP,
    ]
)
SENT = st.one_of(
    MESSAGES,
    MESSAGES,
    TEXTS,
    st.binary(max_size=20),
    st.sampled_from([b"\x00" * 3000, "[" * 9000, "x" * 70_000, '{"event":']),
)
CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009})


def signed_handshake(path: str) -> str:
    return str(SIGNS.compute_signature(f"wss://{HOST}{path}", {}))


async def opened(attack: Attack) -> ClientConnection:
    path = Tickets([AUTH_TOKEN], attack.place.server.registry).path(ACCOUNT, CALL)
    return await connect(
        f"ws://{HOST}{path}",
        host="127.0.0.1",
        port=attack.place.server.port,
        additional_headers={"X-Twilio-Signature": signed_handshake(path)},
        compression=None,
        proxy=None,
    )


async def test_streams(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any messages, a stream continues or ends with a close code of
    CLOSE_CODES."""
    async with attacked(caplog, monkeypatch) as it:

        @ANY
        @given(st.booleans(), st.lists(SENT, max_size=40))
        @example(True, [json.dumps(start(CALL)), json.dumps(start("CA2"))])
        def search(begun: bool, messages: list[str | bytes]) -> None:
            it.run(stream(begun, messages))

        async def stream(begun: bool, messages: list[str | bytes]) -> None:
            it.sent["streams"] += 1
            first: list[str | bytes] = [json.dumps(start(CALL))] if begun else []
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                socket = await opened(it)
                with contextlib.suppress(ConnectionClosed):
                    for message in [*first, *messages, json.dumps(STOP)]:
                        await socket.send(_fit(message))
                        it.sent["messages"] += 1
                        if message in first:
                            await asyncio.sleep(0.02)  # the model is dialled
                await socket.close()
            code = socket.close_code
            it.sent[f"closed {code}"] += 1
            assert code in CLOSE_CODES

        await it.search(search)
        assert it.place.model.sessions


def _fit(message: str | bytes) -> str | bytes:
    """Text of a WebSocket is UTF-8: lone surrogates are replaced."""
    if isinstance(message, bytes):
        return message
    return message.encode("utf-8", "replace").decode()


HANDSHAKES = st.builds(
    Raw,
    st.just("GET"),
    st.builds(
        "/media{}".format,
        st.one_of(
            TAILS,
            st.builds(f"/{ACCOUNT}/{CALL}/{{}}".format, QUOTED),
            st.builds("/{}/{}/{}.{}.{}".format, *[QUOTED] * 5),
            st.builds("/{}/{}/69c0ffee.{}.{}".format, *[QUOTED] * 4),
            st.lists(QUOTED, max_size=5).map("/".join),
        ),
    ),
    LINES,
    st.just(b""),
    st.just(False),
)


async def test_handshakes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path opens a stream only if the bridge issued its ticket, even if Twilio signed
    the request. A refused handshake opens no session at the model."""
    async with attacked(caplog, monkeypatch) as it:

        @ANY
        @given(st.lists(st.tuples(HANDSHAKES, st.booleans()), min_size=1, max_size=20))
        def search(handshakes: list[tuple[Raw, bool]]) -> None:
            it.run(all_of(handshakes))

        async def all_of(handshakes: list[tuple[Raw, bool]]) -> None:
            for handshake, signed in handshakes:
                it.sent["handshakes"] += 1
                head, _ = handshake.request()
                head += UPGRADE
                if signed:
                    path = head.split(b" ")[1].decode("latin-1")
                    head += f"X-Twilio-Signature: {signed_handshake(path)}\r\n".encode()
                answer = await it.ask(head)
                assert answer.status in PUBLIC_STATUSES - {200}, answer.text
                assert MARK not in f"{answer.headers}{answer.text!r}"

        await it.search(search)
        assert it.place.model.sessions == []


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(b"0" * 16) + b"\r\n"
)
