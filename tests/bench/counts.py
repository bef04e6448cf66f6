"""Counts of the hot path: what the bridge does for one message of a call.

    .venv/bin/python -m tests.bench.counts            compares with counts.json
    .venv/bin/python -m tests.bench.counts --write    makes this version the baseline

Times differ from machine to machine and from hour to hour; these counts do not. So they
show in a review what a change costs. A whole bridge has one call, whose two sockets get
transports in memory, and a clock that only this module moves. The sockets then get the
messages as packets, as from the event loop.

- instructions: bytecode instructions, of the bridge and of Python libraries
- calls: of Python functions
- C calls: of functions that are not Python
- handles: callbacks that were scheduled on the event loop
- writes: to transports; each is a system call if the peer reads
- bytes: that were written

What tasks do in the next turns of the event loop counts, too; the event loop itself and
this module do not. A count is the median of many messages.
"""

import argparse
import asyncio
import base64
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from statistics import median_low
from types import FrameType
from typing import Any

import structlog
from websockets.frames import Frame, Opcode

from bridge.sim.model import Behaviour
from bridge.telemetry import log
from bridge.websocket import frames
from bridge.websocket.direct_connection import DirectConnection, PhoneConnection
from bridge.websocket.model_connections import ModelClientConnection
from tests.e2e.bridge import bridge
from tests.e2e.test_back_again import stream
from tests.support.waiting import until

BASELINE = Path(__file__).with_name("counts.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

KINDS = ("instructions", "calls", "C calls", "handles", "writes", "bytes")
EXACT = ("handles", "writes")
"""Any growth of these counts is a regression."""
TOLERANCE = 1.05
FRAME_SECONDS, DELTA_SECONDS = 0.02, 0.2
ANSWERS, DELTAS = 4, 5
"""An answer takes less than two seconds, so pings are answered in time."""

TURNS = 10
"""Turns of the event loop within which the tasks have done everything."""

NOT_COUNTED = (os.path.dirname(asyncio.__file__), __file__)

PING = 0x80 | Opcode.PING

Counts = dict[str, int]


class Recorder(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def take(self) -> list[tuple[int, bytes]]:
        """The frames since the last call of this: head and payload."""
        data, self.written = b"".join(self.written), []
        found = []
        while size := frames.frame_size(data):
            start, end = size[0], sum(size)
            mask = data[start - 4 : start] if data[1] & frames.MASKED else bytes(4)
            found.append((data[0], frames.unmasked(data[start:end], mask)))
            data = data[end:]
        assert not data
        return found

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


class Meter:
    """Counts what runs in this thread while it is on."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def on(self) -> Iterator[None]:
        self.found = Counter()
        call_soon, call_at = self._loop.call_soon, self._loop.call_at

        def counted(schedule: Callable[..., Any]) -> Callable[..., Any]:
            def scheduled(*args: Any, **more: Any) -> Any:
                self.found["handles"] += 1
                return schedule(*args, **more)

            return scheduled

        self._loop.call_soon = counted(call_soon)  # type: ignore[method-assign]
        self._loop.call_at = counted(call_at)  # type: ignore[method-assign]
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            del self._loop.call_soon, self._loop.call_at

    def _profile(self, frame: FrameType, what: str, given: Any) -> None:
        if what == "c_call" and _is_counted(frame):
            self.found["C calls"] += 1

    def _trace(self, frame: FrameType, what: str, given: Any) -> Any:
        if not _is_counted(frame):
            return None
        self.found["calls"] += 1
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._instruction

    def _instruction(self, frame: FrameType, what: str, given: Any) -> Any:
        if what == "opcode":
            self.found["instructions"] += 1
        return self._instruction


def _is_counted(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(NOT_COUNTED)


class Call:
    """A call whose sockets are in memory, and the counts of each kind of message."""

    def __init__(self, phone: DirectConnection, model: DirectConnection) -> None:
        self.counts: dict[str, list[Counter[str]]] = {}
        self._phone, self._model = phone, model
        self._to_phone, self._to_model = Recorder(), Recorder()
        self._meter = Meter()
        self._own = Counter[str]()
        """What the measurement itself costs."""
        self._seconds = 0.0
        self._frames, self._answers, self._events = count(2), count(1), count(1)
        self._real = phone.transport, model.transport, time.monotonic
        self._began = time.monotonic()

    def __enter__(self) -> "Call":
        self._phone.transport, self._model.transport = self._to_phone, self._to_model
        time.monotonic = lambda: self._began + self._seconds
        return self

    def __exit__(self, *exc: object) -> None:
        self._phone.transport, self._model.transport, time.monotonic = self._real

    async def run(self) -> None:
        for _ in range(10):
            await self._measure("nothing", None, b"")
        idle = self.counts.pop("nothing")
        self._own = Counter(
            {kind: median_low(it[kind] for it in idle) for kind in KINDS}
        )
        await self._answer()
        self.counts.clear()  # Python counts code incompletely until it has run once
        for _ in range(ANSWERS):
            await self._answer()

    def medians(self) -> dict[str, Counts]:
        """Message -> its counts."""
        return {
            name: {kind: median_low(it[kind] for it in found) for kind in KINDS}
            for name, found in self.counts.items()
        }

    async def _answer(self) -> None:
        """An answer of the model that the caller interrupts in its last delta."""
        number = next(self._answers)
        response, item = f"resp_{number}", f"item_{number}"
        of_response = {"response_id": response, "output_index": 0}
        ids = {**of_response, "item_id": item, "content_index": 0}
        shape = {"id": item, "type": "message", "role": "assistant", "content": []}
        part = {"type": "audio", "transcript": ""}
        await self._from_model("response.created", response=_response(response))
        await self._from_model("response.output_item.added", **of_response, item=shape)
        await self._from_model("conversation.item.added", item=shape)
        await self._from_model("response.content_part.added", **ids, part=part)
        for _ in range(DELTAS):
            marks = await self._delta(ids)
            for _ in range(round(DELTA_SECONDS / FRAME_SECONDS)):
                await self._frame("caller frame")
            await self._return_marks(marks, "mark")
        marks = await self._delta(ids)
        await self._frame()
        await self._interrupt(response, marks)

    async def _delta(self, ids: dict[str, Any]) -> list[Any]:
        """A piece of an answer; returns the marks that are sent with it."""
        kind = "response.output_audio_transcript.delta"
        await self._from_model(kind, "transcript delta", **ids, delta="and so on ")
        audio = base64.b64encode(bytes([0x7F]) * int(8000 * DELTA_SECONDS)).decode()
        kind = "response.output_audio.delta"
        await self._from_model(kind, "audio delta", **ids, delta=audio)
        sent = self._sent(self._to_phone)
        assert "media" in {it["event"] for it in sent}
        return [it["mark"] for it in sent if it["event"] == "mark"]

    async def _interrupt(self, response: str, marks: list[Any]) -> None:
        """The caller speaks: a clear; then, with the first mark that Twilio flushes, a
        truncate. All of this is one entry."""
        before = self.counts.pop("barge-in", [])
        self._sent(self._to_model)
        began = {"audio_start_ms": round(1000 * self._seconds)}
        began["item_id"] = f"{response}_interrupted"
        kind = "input_audio_buffer.speech_started"
        await self._from_model(kind, "barge-in", **began)
        sent = self._sent(self._to_phone)
        assert "clear" in {it["event"] for it in sent}
        flushed = [it["mark"] for it in sent if it["event"] == "mark"]
        await self._return_marks(marks + flushed, "barge-in")
        whole = sum(self.counts["barge-in"], Counter[str]())
        self.counts["barge-in"] = [*before, whole]
        sent = self._sent(self._to_model)
        [told] = [it for it in sent if it["type"] == "conversation.item.truncate"]
        done = {key: told[key] for key in ("item_id", "content_index", "audio_end_ms")}
        await self._from_model(
            "response.done", response=_response(response, "cancelled")
        )
        await self._from_model("conversation.item.truncated", **done)
        for _ in range(5):
            await self._frame()

    def _sent(self, recorder: Recorder) -> list[dict[str, Any]]:
        """The messages since the last call of this. Answers the pings between them."""
        found = recorder.take()
        for head, payload in found:
            if head == PING:
                pong = Frame(Opcode.PONG, payload).serialize(mask=False)
                self._model.data_received(pong)
        return [json.loads(text) for head, text in found if head == frames.TEXT]

    async def _frame(self, name: str = "") -> None:
        """20 ms of the caller."""
        self._seconds += FRAME_SECONDS
        await self._from_phone(name, _media(next(self._frames)))

    async def _return_marks(self, marks: list[Any], name: str) -> None:
        for mark in marks:
            message = {"event": "mark", "streamSid": "MZ1", "mark": mark}
            await self._from_phone(name, message)

    async def _from_phone(self, name: str, message: dict[str, Any]) -> None:
        data = frames.client_frame(json.dumps(message).encode())
        await self._measure(name, self._phone, data)

    async def _from_model(self, kind: str, name: str = "", **event: Any) -> None:
        event |= {"type": kind, "event_id": f"event_{next(self._events)}"}
        data = frames.server_frame(json.dumps(event).encode())
        await self._measure(name, self._model, data)

    async def _measure(
        self, name: str, socket: DirectConnection | None, data: bytes
    ) -> None:
        """Gives the data to the socket. An empty name: what follows is not counted."""
        lists = self._to_phone.written, self._to_model.written
        before = [len(it) for it in lists]
        with self._meter.on() if name else nullcontext():
            if socket is not None:
                socket.data_received(data)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        if name:
            new = [data for it, n in zip(lists, before, strict=True) for data in it[n:]]
            found = self._meter.found
            found["writes"], found["bytes"] = len(new), sum(map(len, new))
            found.subtract(self._own)
            self.counts.setdefault(name, []).append(found)


def _media(number: int) -> dict[str, Any]:
    """The caller's nth frame."""
    media = {"track": "inbound", "chunk": str(number)}
    media["timestamp"] = str(round(1000 * FRAME_SECONDS) * number)
    media["payload"] = base64.b64encode(bytes([0xFF]) * 160).decode()
    return {"event": "media", "streamSid": "MZ1", "media": media}


def _response(number: str, status: str = "in_progress") -> dict[str, Any]:
    return {"id": number, "status": status, "output": []}


@asynccontextmanager
async def call_in_memory() -> AsyncIterator[Call]:
    """A call of a bridge with a model that says nothing of its own."""
    known = set(map(id, _sockets()))
    async with bridge(Behaviour()) as place, stream(place, "MZ1") as caller:
        await caller.send(json.dumps(_media(1)))
        # Before the session is ready, the bridge keeps the audio.
        await until(lambda: place.model.sessions and place.session.appends)
        mine = [it for it in _sockets() if id(it) not in known]
        [phone] = [it for it in mine if isinstance(it, PhoneConnection)]
        [model] = [it for it in mine if isinstance(it, ModelClientConnection)]
        with Call(phone, model) as call:
            yield call


def _sockets() -> list[DirectConnection]:
    return [it for it in gc.get_objects() if isinstance(it, DirectConnection)]


async def measure() -> dict[str, Counts]:
    """Message -> its counts."""
    async with call_in_memory() as call:
        gc.collect()
        gc.disable()
        try:
            await call.run()
        finally:
            gc.enable()
    return call.medians()


def grown(now: dict[str, Counts], before: dict[str, Counts]) -> list[str]:
    """What has become more than the baseline allows."""
    return [
        f"{name}: {now[name][kind]} {kind}, before {was}"
        for name, counts in before.items()
        for kind, was in counts.items()
        if now[name][kind] > was * (1.0 if kind in EXACT else TOLERANCE)
    ]


def counted() -> dict[str, Counts]:
    """Measures on asyncio, because uvloop runs outside of Python; with the log of
    `bridge serve`, at a level at which it writes nothing."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    log.configure("json", logging.CRITICAL)
    try:
        return asyncio.run(measure())
    finally:
        root.handlers, root.level = handlers, level
        structlog.configure(**config)


def baselines() -> dict[str, dict[str, Counts]]:
    """Version of Python -> message -> counts: each version has other instructions."""
    read: dict[str, dict[str, Counts]] = json.loads(BASELINE.read_text("utf-8"))
    return read


def baseline() -> dict[str, Counts]:
    """That of this Python; if there is none, the counts that all versions share."""
    known = baselines()
    if PYTHON in known:
        return known[PYTHON]
    shared = next(iter(known.values()))
    return {
        name: {kind: counts[kind] for kind in EXACT} for name, counts in shared.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write counts.json")
    options = parser.parse_args()
    now = counted()
    if options.write:
        known = baselines() if BASELINE.exists() else {}
        text = json.dumps({**known, PYTHON: now}, indent=2, sort_keys=True)
        BASELINE.write_text(text + "\n", "utf-8")
    before = baseline()
    print(table(now, before))
    worse = grown(now, before)
    print(*worse, sep="\n")
    return 1 if worse else 0


def table(now: dict[str, Counts], before: dict[str, Counts]) -> str:
    """The counts, and how they differ from the baseline."""
    rows = [f"{'':18}" + "".join(f"{kind:>16}" for kind in KINDS)]
    for name, counts in now.items():
        cells = []
        for kind in KINDS:
            change = counts[kind] - before.get(name, {}).get(kind, counts[kind])
            cells.append(
                f"{counts[kind]} ({change:+})" if change else f"{counts[kind]}"
            )
        rows.append(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
