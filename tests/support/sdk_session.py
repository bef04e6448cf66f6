"""A session of the SDK with PhoneModel, over a fake connection that records all."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agents.realtime import (
    RealtimeAgent,
    RealtimeRunner,
    RealtimeSession,
    RealtimeSessionEvent,
)

from bridge.model.sdk_model import PhoneModel
from bridge.model.session import ModelTarget
from bridge.model.wire import Wire

URL = "wss://model.example/v1/realtime?model=m"
TARGET = ModelTarget(URL, "gpt-realtime-2.1", "marin")
SAMPLES = Path(__file__).parent.parent / "sim" / "realtime-server-events.jsonl"
EVENTS: list[dict[str, Any]] = [
    json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()
]


def sample(kind: str, **changes: Any) -> dict[str, Any]:
    event = next(event for event in EVENTS if event["type"] == kind)
    return {**event, **changes}


class Connection:
    """A fake Wire: `async for`, `send` and `close`. Uses of other attributes are kept
    in `strange`."""

    def __init__(self) -> None:
        self.dialled: list[tuple[str, dict[str, str]]] = []
        self.sent: list[dict[str, Any]] = []
        self.closed = 0
        self.strange: list[str] = []
        """Attributes that the SDK used and that a Wire does not have."""
        self._inbox: asyncio.Queue[str | None] = asyncio.Queue()

    async def dial(self, url: str, headers: dict[str, str]) -> Wire:
        self.dialled.append((url, headers))
        return cast(Wire, self)

    def says(self, *events: dict[str, Any]) -> None:
        for event in events:
            self._inbox.put_nowait(json.dumps(event))

    def ends(self) -> None:
        self._inbox.put_nowait(None)

    def sent_types(self) -> list[str]:
        return [event["type"] for event in self.sent]

    async def settled(self) -> None:
        """Waits until the SDK has handled all events."""
        for _ in range(50):
            await asyncio.sleep(0)

    def __getattr__(self, name: str) -> Any:
        self.strange.append(name)
        raise AttributeError(name)

    # --- the methods of a Wire ---

    def __aiter__(self) -> "Connection":
        return self

    async def __anext__(self) -> str:
        text = await self._inbox.get()
        if text is None:
            raise StopAsyncIteration
        return text

    async def send(self, text: str) -> None:
        assert isinstance(text, str)
        self.sent.append(json.loads(text))

    async def close(self) -> None:
        self.closed += 1
        self.ends()


@dataclass
class SdkSession:
    """The parts of a session that tests check."""

    connection: Connection
    model: PhoneModel
    session: RealtimeSession
    interrupts: list[tuple[str, str | None]] = field(default_factory=list)
    events: list[RealtimeSessionEvent] = field(default_factory=list)

    async def listen(self) -> None:
        async for event in self.session:
            self.events.append(event)

    def heard(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]


@asynccontextmanager
async def talk(
    agent: RealtimeAgent[Any] | None = None,
    target: ModelTarget = TARGET,
    **run_config: Any,
) -> AsyncIterator[SdkSession]:
    """A session as AgentSession opens it, with a listener for its events."""
    connection = Connection()
    interrupts: list[tuple[str, str | None]] = []
    model = PhoneModel(
        connection.dial,
        lambda by, answer: interrupts.append((by, answer)),
        lambda settings: settings,
    )
    runner = RealtimeRunner(
        agent or RealtimeAgent(name="desk", instructions="Be kind."),
        model=model,
        config=cast(Any, run_config) or None,
    )
    session = await runner.run(
        model_config={
            "url": target.address,
            "headers": target.headers,
            "initial_model_settings": target.settings,
        }
    )
    await session.enter()
    found = SdkSession(connection, model, session, interrupts)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(found.listen(), name="listener")
        try:
            yield found
            await connection.settled()
        finally:
            await session.close()
