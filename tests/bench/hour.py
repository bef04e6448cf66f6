"""One call of an hour, in about a minute: does it get more expensive, does it grow?

    .venv/bin/python -m tests.bench.hour
    .venv/bin/python -m tests.bench.hour --minutes 20

`bridge serve` takes a call over real sockets. Its clock is moved on by this process, as
soon as it has done the work of each 100 ms (hour_agent.py). The caller speaks every 8
s, each answer is 6 s with its transcript, and every fifth is interrupted. The events of
the model are those of bridge.sim, recorded once.

Prints the CPU time of the bridge for each minute of the call and its memory. Exits 1 if
the last minutes cost more than 1.1 times what the first ones cost.
"""

import argparse
import asyncio
import base64
import json
import mmap
import os
import signal
import statistics
import struct
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from bridge.sim import load
from bridge.sim.model import ModelServer
from bridge.sim.ruler import ruler
from bridge.sim.server_process import ProcessTree, bridge_process
from bridge.sim.twilio import messages

HERE = Path(__file__).resolve().parent
CALL_SID, STREAM_SID, ACCOUNT_SID = "CA" + "1" * 32, "MZ" + "2" * 32, "AC" + "3" * 32
FRAME = base64.b64encode(ruler(1, 20)).decode()
STEP_MS = 100
TURN_MS = 8000
CUT_MS = 4000
"""A turn whose answer is interrupted: the next turn begins then."""

CUT_EVERY = 5
COMPARED_MINUTES = 5
"""The first minutes that are compared with the last ones; minute 1 itself has what is
done once, and is left out."""

MOST_GROWTH = 1.1

UPDATE = {
    "type": "session.update",
    "session": {
        "type": "realtime",
        "audio": {
            "input": {
                "format": {"type": "audio/pcmu"},
                "transcription": {"model": "whisper-1"},
                "turn_detection": {"type": "server_vad"},
            },
            "output": {"format": {"type": "audio/pcmu"}},
        },
    },
}


class SharedClock:
    """The clock of the bridge, which stands still until it is moved on."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(struct.pack("d", 1000.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)

    def set(self, seconds: float) -> None:
        self._shared[:8] = struct.pack("d", 1000.0 + seconds)


@dataclass
class RecordedTurn:
    """What the model sends in one turn: (ms since the caller began, event)."""

    events: list[tuple[int, str]]
    session: dict[str, object]
    ids: tuple[str, str, str, str]
    """Of the answer before, the caller's item, the response and its item."""

    def of(self, number: int) -> list[tuple[int, str]]:
        """The same events with the ids of the nth turn."""
        before = f"item_{number - 1}_answer"
        new = (before, f"item_{number}", f"resp_{number}", f"item_{number}_answer")
        made = []
        for at, text in self.events:
            for old_id, new_id in zip(self.ids, new, strict=True):
                text = text.replace(f'"{old_id}"', f'"{new_id}"')
            made.append((at, text))
        return made


async def recorded_turn() -> RecordedTurn:
    """Two turns with the fake model, of which the second is kept."""
    received: list[tuple[float, dict[str, object]]] = []

    async def read(socket: ClientConnection) -> None:
        async for text in socket:
            received.append((monotonic(), json.loads(text)))

    began = 0.0
    async with (
        ModelServer(load.BEHAVIOUR) as model,
        connect(f"{model.url}?model=gpt-realtime") as socket,
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(read(socket))
        await socket.send(json.dumps(UPDATE))
        for turn in (1, 2):
            began = monotonic()
            audio = ruler(turn, 1000) + b"\xff" * (TURN_MS - 1000) * 8
            for at in range(0, len(audio), 160):
                payload = base64.b64encode(audio[at : at + 160]).decode()
                append = {"type": "input_audio_buffer.append", "audio": payload}
                await socket.send(json.dumps(append))
                await asyncio.sleep(began + at / 8000 - monotonic())
        reader.cancel()
    events = [(at, it) for at, it in received if at >= began]
    added = [it for _, it in received if it["type"] == "conversation.item.added"]
    _, answer_before, of_caller, answer = [it["item"]["id"] for it in added]  # type: ignore[index]
    response = next(it for _, it in events if it["type"] == "response.created")
    return RecordedTurn(
        [(round(1000 * (at - began)), json.dumps(it)) for at, it in events],
        next(it["session"] for _, it in received if it["type"] == "session.updated"),  # type: ignore[misc]
        (answer_before, of_caller, response["response"]["id"], answer),  # type: ignore[index]
    )


@dataclass
class LockstepModel:
    """The model's side: sends what is due, and counts the caller's audio."""

    turn: RecordedTurn
    socket: ServerConnection | None = None
    heard_ms: int = 0
    """Audio of the caller."""
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, socket: ServerConnection) -> None:
        self.socket = socket
        session = {**self.turn.session, "id": "sess_1"}
        await self._send("session.created", session=session)
        async for text in socket:
            event = json.loads(text)
            match event["type"]:
                case "input_audio_buffer.append":
                    self.heard_ms += len(base64.b64decode(event["audio"])) // 8
                    self.progress.set()
                case "session.update":
                    await self._send("session.updated", session=session)
                case "conversation.item.truncate":
                    done = {key: event[key] for key in ("item_id", "audio_end_ms")}
                    await self._send(
                        "conversation.item.truncated", content_index=0, **done
                    )

    async def _send(self, kind: str, **event: object) -> None:
        assert self.socket is not None
        await self.socket.send(json.dumps({"type": kind, "event_id": "e", **event}))


class LockstepPhone:
    """Twilio's side: 50 frames a second, and each mark when it was played."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 1
        self._played_at = 0.0
        self._marks: deque[tuple[float, str]] = deque()
        self._now_ms = 0.0
        self._tail = messages.media_tail(STREAM_SID)
        self.clears = 0

    async def start(self) -> None:
        await self._socket.send(messages.CONNECTED)
        start = messages.start(ACCOUNT_SID, CALL_SID, STREAM_SID, {})
        await self._socket.send(start)

    async def read(self) -> None:
        async for text in self._socket:
            match messages.read(text, STREAM_SID):
                case messages.MediaMessage(audio):
                    begins = max(self._played_at, self._now_ms)
                    self._played_at = begins + len(audio) / 8
                case messages.MarkMessage(name):
                    self._marks.append((self._played_at, name))
                case messages.ClearMessage():
                    self.clears += 1
                    self._played_at = self._now_ms
                    self._marks = deque((0.0, name) for _, name in self._marks)
                case unknown:
                    raise AssertionError(unknown)

    async def step(self, now_ms: int) -> None:
        """The frames until now, and the marks that were played."""
        self._now_ms = now_ms
        for at in range(now_ms - STEP_MS, now_ms, 20):
            self._number += 1
            await self._socket.send(
                messages.media(self._number, self._number, at, FRAME, self._tail)
            )
        while self._marks and self._marks[0][0] <= now_ms:
            self._number += 1
            _, name = self._marks.popleft()
            await self._socket.send(messages.mark(self._number, STREAM_SID, name))


@dataclass(frozen=True, slots=True)
class Minute:
    cpu_ms: float
    rss_mb: float


@asynccontextmanager
async def running_call(
    turn: RecordedTurn,
) -> AsyncIterator[tuple[SharedClock, LockstepModel, LockstepPhone, int]]:
    model = LockstepModel(turn)
    with tempfile.TemporaryDirectory() as folder:
        clock = SharedClock(Path(folder, "clock"))
        more = {
            "BRIDGE_INSECURE": "1",
            "BRIDGE_TICKETS": "off",
            "BRIDGE_AGENT": f"{HERE / 'hour_agent.py'}:AGENT",
            "BRIDGE_SESSION_SECONDS": "0",
            "HOUR_CLOCK": str(Path(folder, "clock")),
            "PYTHONPATH": str(HERE.parents[1]),  # this tree, also if it is a worktree
        }
        async with serve(model.serve, "127.0.0.1", 0, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with (
                bridge_process(f"ws://127.0.0.1:{port}", more=more) as process,
                connect(
                    process.webhook_url.replace("http", "ws", 1)[: -len("voice")]
                    + "media",
                    compression=None,
                    ping_interval=None,
                ) as socket,
                asyncio.TaskGroup() as tasks,
            ):
                phone = LockstepPhone(socket)
                await phone.start()
                reader = tasks.create_task(phone.read())
                try:
                    yield clock, model, phone, process.pid
                finally:
                    reader.cancel()
                    # Its clock stands still, so it would wait for ever for the end.
                    os.kill(process.pid, signal.SIGKILL)


def cpu_ms(pid: int) -> float:
    """CPU time of all threads; more exact than the ticks of /proc/<pid>/stat."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(it.read_text().split()[0]) for it in tasks) / 1e6


async def run(minutes: int) -> list[Minute]:
    turn = await recorded_turn()
    measured: list[Minute] = []
    async with running_call(turn) as (clock, model, phone, pid):
        tree, spent = ProcessTree(pid), cpu_ms(pid)
        due: deque[tuple[int, str]] = deque()
        turns = next_turn_ms = 0
        for now_ms in range(STEP_MS, minutes * 60_000 + 1, STEP_MS):
            clock.set(now_ms / 1000)
            await phone.step(now_ms)
            while due and due[0][0] <= now_ms:
                assert model.socket is not None
                await model.socket.send(due.popleft()[1])
            async with asyncio.timeout(30):
                while model.heard_ms < now_ms:
                    model.progress.clear()
                    await model.progress.wait()
            if now_ms >= next_turn_ms:
                turns += 1
                due += [(now_ms + at, text) for at, text in turn.of(turns)]
                next_turn_ms = now_ms + (CUT_MS if turns % CUT_EVERY == 0 else TURN_MS)
            if now_ms % 60_000 == 0:
                before, spent = spent, cpu_ms(pid)
                measured.append(Minute(spent - before, tree.memory_mb() or 0.0))
                show = f"minute {len(measured):2}: {measured[-1].cpu_ms:6.1f} ms"
                print(f"{show} CPU, {measured[-1].rss_mb:.2f} MB", flush=True)
        assert phone.clears, "no answer was interrupted"
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=int, default=60)
    measured = asyncio.run(run(parser.parse_args().minutes))
    first, last = measured[1 : 1 + COMPARED_MINUTES], measured[-COMPARED_MINUTES:]
    cpu = [statistics.median(it.cpu_ms for it in part) for part in (first, last)]
    rss = [part[-1].rss_mb for part in (first, last)]
    print(
        f"first minutes {cpu[0]:.1f} ms, last minutes {cpu[1]:.1f} ms of CPU: "
        f"{cpu[1] / cpu[0]:.3f} times; memory {rss[1] - rss[0]:+.2f} MB"
    )
    return 0 if cpu[1] <= MOST_GROWTH * cpu[0] else 1


if __name__ == "__main__":
    sys.exit(main())
