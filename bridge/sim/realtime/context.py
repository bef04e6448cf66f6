"""State that the parts of one fake session share: connection, configuration,
conversation, tasks.

The parts (caller input, responses, hosted MCP servers, phone leg, faults) import this
module. `session.py` builds on it and imports the parts; no part imports `session.py`.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from bridge.sim.realtime.client_events import Json
from bridge.sim.realtime.configuration import default_session
from bridge.sim.realtime.connection import ModelSocket
from bridge.sim.realtime.event_sender import EventSender
from bridge.sim.realtime.history import ModelHistory
from bridge.sim.realtime.items import ModelItem
from bridge.sim.realtime.turns import Behaviour, ToolOutput


class SessionContext:
    """Shared state of one session, and what every part may do to the session."""

    def __init__(
        self, connection: ModelSocket, behaviour: Behaviour, model: str
    ) -> None:
        self.behaviour = behaviour
        self.model = model
        self.id = secrets.token_hex(4)
        self.conversation_id = f"conv_{self.id}"
        self.session = default_session(f"sess_{self.id}", model)
        self.connection = connection
        self.out = EventSender(connection)
        self.history = ModelHistory()
        # outputs that no response has spoken about yet
        self.tool_outputs: list[ToolOutput] = []
        self.closed: str | None = None  # which side ended the session, and how
        self._thawed = asyncio.Event()  # unset while the session is frozen
        self._thawed.set()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = 0
        self._ruler_number = 0

    @staticmethod
    def now() -> float:
        return time.monotonic()

    # --- tasks and connection -------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that ends with the session."""
        assert self._group is not None
        task = self._group.create_task(work, name=f"model {self.id} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def later(self, seconds: float, action: Callable[[], None]) -> asyncio.Task[None]:
        """Call `action` after `seconds`, unless the session has ended by then."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            action()

        return self.spawn(wait(), "later")

    def abort(self, why: str) -> None:
        """End the TCP connection without a close frame."""
        self.closed = why
        self._thawed.set()
        self.connection.transport.abort()

    @property
    def frozen(self) -> bool:
        return not self._thawed.is_set()

    def freeze(self) -> None:
        """Stop reading, sending and answering pings, until `thaw`."""
        self._thawed.clear()
        self.out.hold()
        self.connection.transport.pause_reading()
        if self.connection.keepalive_task is not None:
            # Otherwise the server's own keepalive would notice the missing pongs.
            self.connection.keepalive_task.cancel()

    def thaw(self) -> None:
        """Send the held frames and continue to read."""
        self._thawed.set()
        self.out.release()
        self.connection.transport.resume_reading()

    # --- the conversation -----------------------------------------------------------

    def new_id(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}_{self.id}{self._serial:04}"

    def next_ruler_number(self) -> int:
        self._ruler_number += 1
        return self._ruler_number

    def add_item(self, item: ModelItem, *, finished: bool) -> None:
        """Append an item to the conversation and announce it."""
        self.history.place(item)
        self.emit_item("added", item)
        if finished:
            self.emit_item("done", item)

    def finish_item(self, item: ModelItem) -> None:
        if not item.deleted:
            self.emit_item("done", item)

    def emit_item(self, what: Literal["added", "done"], item: ModelItem) -> None:
        self.out.emit(
            {
                "type": f"conversation.item.{what}",
                "previous_item_id": self.history.previous(item),
                "item": item.wire(),
            }
        )

    def add_tool_output(self, output: ToolOutput) -> None:
        """Add an output that the next response speaks about."""
        self.tool_outputs.append(output)

    def context_tokens(self) -> tuple[int, int]:
        """Text and audio tokens that the conversation costs as input."""
        text = len(self.session["instructions"]) // 4
        audio = 0
        for item in self.history.items.values():
            if item.deleted:
                continue
            text += len(item.output or "") // 4
            if item.role == "assistant" or item.type != "message":
                text += len(item.text) // 4
            audio += int(item.believed_ms / 100)
        return text, audio

    @property
    def interrupt_response(self) -> bool:
        """The caller's speech cancels the response (turn_detection)."""
        detection: Json | None = self.session["audio"]["input"]["turn_detection"]
        return bool(detection and detection["interrupt_response"])
