"""Requests of one instance to another, with an answer.

A request is carried out at most once. It is sent as a message of the Registry to one
instance, is signed (signing.py), and expires. The instance accepts it at once, carries
it out, and answers. This module knows no call and no HTTP: `serve` carries a request
out.
"""

import asyncio
import secrets
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import structlog

from bridge.core import UNREADABLE
from bridge.fleet import MAX_DIRECT_BYTES, Registry
from bridge.fleet.signing import FleetKey

log = structlog.get_logger()

ACCEPT_SECONDS = 3.0
"""An instance that does not accept a request within this time never carries it out."""

LATE_SECONDS = 1.0
"""Then the sender waits so much longer for the message that accepts it."""

PROBE_SECONDS = 2.0
"""While it waits for the answer, the sender looks at this interval whether the instance
still listens."""

MAX_RUNNING = 100
"""Requests of other instances that are carried out at the same time."""

MESSAGES_PER_SECOND = 200.0
MESSAGES_BURST = 400.0
"""Messages that are read, of whoever can write to Redis."""

MAX_BODY_BYTES = 8 * 2**20
"""Size of the body of a request or an answer, before it is compressed."""

PURPOSE = b"message"

Reason = Literal["gone", "registry", "unaccepted", "lost", "late", "too-large"]


class Unanswered(Exception):
    """There is no answer. `maybe`: the request may have been carried out all the same.

    `why`: the instance is gone ("gone") or was lost while it carried the request out
    ("lost"); Redis is away ("registry"); the instance has not accepted the request
    ("unaccepted") or not answered in time ("late"); the request is "too-large".
    """

    def __init__(self, why: Reason, *, maybe: bool) -> None:
        super().__init__(why)
        self.why = why
        self.maybe = maybe


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """`name` says what is to be done, with what the other fields name."""

    name: str
    call_sid: str
    argument: str = ""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """As of HTTP, which the API passes on."""

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


BUSY = Answer(429)
TOO_LARGE = Answer(507)
"""The answer of an instance whose answer is larger than a message may be."""


class _Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What two instances of different versions may exchange: a new field has a default,
    and a new kind is ignored."""

    kind: str
    """request, accepted, answer; or probe, which nobody reads."""
    id: str
    """Of the request; its messages have the same."""
    sender: str
    to: str
    until: float = 0.0
    """By the clock of the registry: when a request expires."""
    name: str = ""
    call_sid: str = ""
    argument: str = ""
    body: bytes = b""
    """Compressed (zlib)."""
    status: int = 0
    content_type: str = ""
    headers: dict[str, str] = {}


@dataclass(slots=True)
class _Asked:
    """A request of this instance that has no answer yet."""

    to: str
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


Serve = Callable[[RemoteRequest], Awaitable[Answer]]
StartTask = Callable[[Coroutine[Any, Any, None], str], object]


class FleetRequests:
    """The requests of one instance, and those that it gets."""

    def __init__(
        self,
        registry: Registry,
        key: FleetKey,
        start_task: StartTask,
        refused: Callable[[str], None],
        hit: Callable[[str], None],
    ) -> None:
        """`refused` and `hit` are called with the reason of a refusal and the name of a
        limit (bridge.telemetry.metrics)."""
        self.serve: Serve | None = None
        """Carries out the requests of other instances; must not raise."""
        self._registry = registry
        self._key = key
        self._start_task = start_task
        self._refused = refused
        self._hit = hit
        self._asked: dict[str, _Asked] = {}
        self._seen: dict[str, float] = {}
        """Requests that were accepted -> when they expire. Their ids are remembered
        until then, so none is carried out twice."""
        self._running = 0
        self._open = True
        self._tokens, self._counted_at = MESSAGES_BURST, 0.0
        registry.receive(self._receive)

    def close(self) -> None:
        """From now on nothing that other instances send is read."""
        self._open = False

    # --- asking another instance ---

    async def ask(
        self, instance: str, request: RemoteRequest, seconds: float
    ) -> Answer:
        """The answer of the instance, within so many seconds. Raises Unanswered."""
        if len(request.body) > MAX_BODY_BYTES:
            raise Unanswered("too-large", maybe=False)
        id, asked = secrets.token_hex(16), _Asked(instance)
        message = _Message(
            "request",
            id,
            self._registry.id,
            instance,
            until=self._registry.clock() + ACCEPT_SECONDS,
            name=request.name,
            call_sid=request.call_sid,
            argument=request.argument,
            body=zlib.compress(request.body, 1),
        )
        self._asked[id] = asked
        try:
            await self._send_request(message)
            await self._wait_until_accepted(asked)
            return await self._wait_for_answer(asked, id, seconds)
        finally:
            del self._asked[id]

    async def _send_request(self, message: _Message) -> None:
        if not await self._registry.reachable():
            raise Unanswered("registry", maybe=False)
        signed = self._signed(message)
        if signed is None:
            raise Unanswered("too-large", maybe=False)
        sent = await self._registry.send(message.to, signed)
        if sent is None:
            raise Unanswered("registry", maybe=True)
        if not sent:
            raise Unanswered("gone", maybe=False)

    async def _wait_until_accepted(self, asked: _Asked) -> None:
        try:
            async with asyncio.timeout(ACCEPT_SECONDS + LATE_SECONDS):
                await asked.accepted.wait()
        except TimeoutError:
            raise Unanswered("unaccepted", maybe=True) from None

    async def _wait_for_answer(self, asked: _Asked, id: str, seconds: float) -> Answer:
        loop = asyncio.get_running_loop()
        late_at = loop.time() + seconds
        probe = _Message("probe", id, self._registry.id, asked.to)
        while (left := late_at - loop.time()) > 0:
            await asyncio.wait([asked.answer], timeout=min(left, PROBE_SECONDS))
            if asked.answer.done():
                return asked.answer.result()
            signed = self._signed(probe)
            assert signed, "a probe is small"
            # None: it is not known. The answer may still come, when Redis is back.
            if await self._registry.send(asked.to, signed) is False:
                # Its last message may have come on the other connection meanwhile.
                await asyncio.wait([asked.answer], timeout=LATE_SECONDS)
                if not asked.answer.done():
                    raise Unanswered("lost", maybe=True)
        raise Unanswered("late", maybe=True)

    # --- what other instances send ---

    def _receive(self, signed: bytes) -> None:
        if not self._open:
            return
        if not self._take_token():
            self._hit("fleet_rate")
            return
        message = self._read(signed)
        if message is None or message.to != self._registry.id:
            # A message for another instance was recorded, and sent here by somebody.
            self._refused("fleet_message")
            return
        if message.kind == "request":
            self._accept(message)
            return
        asked = self._asked.get(message.id)
        if asked is None or asked.to != message.sender:
            return  # too late, or a probe
        if message.kind == "accepted":
            asked.accepted.set()
        elif message.kind == "answer" and not asked.answer.done():
            asked.accepted.set()
            asked.answer.set_result(_answer_of(message))

    def _take_token(self) -> bool:
        now = asyncio.get_running_loop().time()
        since = now - self._counted_at
        tokens = min(self._tokens + since * MESSAGES_PER_SECOND, MESSAGES_BURST)
        self._counted_at, self._tokens = now, max(tokens - 1.0, 0.0)
        return tokens >= 1.0

    def _read(self, signed: bytes) -> _Message | None:
        content = self._key.verified(PURPOSE, signed)
        if content is None:
            return None
        try:
            return msgspec.msgpack.decode(content, type=_Message)
        except UNREADABLE:  # of another version
            return None

    def _accept(self, message: _Message) -> None:
        now = self._registry.clock()
        self._seen = {id: until for id, until in self._seen.items() if until > now}
        if message.until < now or message.id in self._seen:
            self._refused("fleet_message")  # too late, or sent twice
            return
        self._seen[message.id] = message.until
        name = f"fleet {message.name}"
        if self.serve is None or self._running >= MAX_RUNNING:
            self._hit("fleet_rate")
            self._start_task(self._answer(message, BUSY), name)
            return
        self._running += 1
        self._start_task(self._carry_out(message, self.serve), name)

    async def _carry_out(self, message: _Message, serve: Serve) -> None:
        try:
            accepted = _Message(
                "accepted", message.id, self._registry.id, message.sender
            )
            signed = self._signed(accepted)
            assert signed, "it is small"
            await self._registry.send(message.sender, signed)
            body = _unpacked(message.body)
            if body is None:
                answer = TOO_LARGE
            else:
                answer = await serve(
                    RemoteRequest(
                        message.name, message.call_sid, message.argument, body
                    )
                )
            await self._answer(message, answer)
        finally:
            self._running -= 1

    async def _answer(self, request: _Message, answer: Answer) -> None:
        signed = None
        if len(answer.body) <= MAX_BODY_BYTES:
            signed = self._signed(self._answer_message(request, answer))
        if signed is None:
            signed = self._signed(self._answer_message(request, TOO_LARGE))
            assert signed, "it is small"
        await self._registry.send(request.sender, signed)

    def _answer_message(self, request: _Message, answer: Answer) -> _Message:
        return _Message(
            "answer",
            request.id,
            self._registry.id,
            request.sender,
            body=zlib.compress(answer.body, 1),
            status=answer.status,
            content_type=answer.content_type,
            headers=dict(answer.headers),
        )

    def _signed(self, message: _Message) -> bytes | None:
        """None: it is larger than a message may be."""
        signed = self._key.sign(PURPOSE, msgspec.msgpack.encode(message))
        return signed if len(signed) <= MAX_DIRECT_BYTES else None


def _answer_of(message: _Message) -> Answer:
    body = _unpacked(message.body)
    if body is None:
        return TOO_LARGE
    return Answer(message.status, body, message.content_type, message.headers)


def _unpacked(packed: bytes) -> bytes | None:
    """None: it is too large, or no compressed text."""
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, MAX_BODY_BYTES)
    except zlib.error:
        return None
    return body if unpacker.eof else None
