"""The caller's end of a call, in memory: a socket of a stream, and a leg without
one."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bridge.agent.approvals import Approvals
from bridge.agent.live import CallFacts, LiveCall
from bridge.call.leg import LegOwner
from bridge.call.stream import Phone
from bridge.core.capabilities import SIP
from bridge.core.commands import End
from bridge.model.session import SessionOwner, SessionPlan
from bridge.sim.twilio import messages

CALL_SID = "CA" + "1" * 32
ACCOUNT_SID = "AC" + "2" * 32
BYTES_A_SECOND = 8000


class MemoryPhone:
    """Twilio's side of one stream (a bridge.call.stream.Phone). It plays what it is
    sent at the speed of a call, and echoes each mark when it was played."""

    def __init__(self, stream_sid: str = "MZ1", **parameters: str) -> None:
        self.stream_sid = stream_sid
        self.closed = asyncio.Event()
        self.heard = 0.0
        """Seconds of audio that it was sent."""
        self._played_at = 0.0
        """When all that it was sent has been played (the event loop's clock)."""
        self._marks: list[tuple[asyncio.TimerHandle, str]] = []
        self._number = 1
        self._inbox: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._inbox.put_nowait(messages.CONNECTED)
        start = messages.start(ACCOUNT_SID, CALL_SID, stream_sid, parameters)
        self._inbox.put_nowait(start)

    def stop(self) -> None:
        """The caller hangs up."""
        self._number += 1
        text = messages.stop(self._number, ACCOUNT_SID, CALL_SID, self.stream_sid)
        self._inbox.put_nowait(text)

    def lose(self, error: Exception | None = None) -> None:
        """The socket is gone without a `stop`; or reading it raises an error."""
        self._inbox.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while (message := await self._inbox.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    async def send(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        match messages.read(text, self.stream_sid):
            case messages.MediaMessage(audio):
                seconds = len(audio) / BYTES_A_SECOND
                self._played_at = max(self._played_at, loop.time()) + seconds
                self.heard += seconds
            case messages.MarkMessage(name):
                echo = loop.call_at(self._played_at, self._echo, name)
                self._marks.append((echo, name))
            case messages.ClearMessage():
                self._played_at = loop.time()
                for echo, name in self._marks:
                    if not echo.cancelled() and echo.when() > loop.time():
                        echo.cancel()
                        self._echo(name)
            case messages.IgnoredMessage(text=why):
                raise AssertionError(f"Twilio ignores this message: {why}")

    async def close(self) -> None:
        self.closed.set()

    def _echo(self, name: str) -> None:
        self._number += 1
        self._inbox.put_nowait(messages.mark(self._number, self.stream_sid, name))


class MemoryLeg:
    """A leg that has neither audio nor a next step, as a SIP call. It is also the
    session of its call, which ends when the caller hangs up."""

    capabilities = SIP
    refer = None

    def __init__(self) -> None:
        self.closed: list[End] = []
        self.running = False
        self.hung_up = asyncio.Event()

    def open(self, owner: LegOwner) -> None:
        owner.begin(CallFacts(CALL_SID))

    def session(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        tasks: asyncio.TaskGroup,
    ) -> "MemoryLeg":
        return self

    async def take_over(self, phone: Phone) -> bool:
        return False

    async def close(self, ending: End) -> None:
        self.closed.append(ending)

    def send(self, text: str, now: float) -> None: ...

    # --- the session (bridge.call.leg.SessionControl) ---

    async def run(self) -> None:
        self.running = True
        await self.hung_up.wait()

    def post(self, text: str) -> None: ...
    def dial(self, connection: int, seconds: float) -> None: ...
    def switch(self, connection: int) -> None: ...
    def leave(self, connection: int) -> None: ...
    def interrupted(self, item_id: str, content_index: int) -> None: ...
    def heard(self, item_id: str, content_index: int, text: str) -> None: ...
    def model_event(self, text: str) -> None: ...
    def mute(self, on: bool) -> None: ...
    def send_raw(self, event: Mapping[str, Any]) -> bool:
        return False
