"""The caller's end of a call, in memory: a socket of a stream, and a leg without
one."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.agent.approvals import Approvals
from bridge.agent.live import CallFacts, LiveCall
from bridge.call.leg import LegOwner
from bridge.call.stream import IdentifiedPhone
from bridge.core.capabilities import SIP
from bridge.core.commands import End
from bridge.model.session import SessionOwner, SessionPlan
from bridge.sim.twilio import messages
from bridge.websocket.text_socket import SocketEnd, SocketListener, Why

CALL_SID = "CA" + "1" * 32
ACCOUNT_SID = "AC" + "2" * 32
BYTES_A_SECOND = 8000


class MemoryPhone:
    """Twilio's side of one stream (a bridge.websocket.text_socket.TextSocket). It plays
    what it is sent at the speed of a call, and echoes each mark when it was played."""

    is_paused = False

    def __init__(self, stream_sid: str = "MZ1", **parameters: str) -> None:
        self.stream_sid = stream_sid
        self.closed = asyncio.Event()
        self.heard = 0.0
        """Seconds of audio that it was sent."""
        self._played_at = 0.0
        """When all that it was sent has been played (the event loop's clock)."""
        self._marks: list[tuple[asyncio.TimerHandle, str]] = []
        self._number = 1
        self.bug: Exception | None = None
        """Raised when the call sends a message."""
        self._listener: SocketListener | None = None
        start = messages.start(ACCOUNT_SID, CALL_SID, stream_sid, parameters)
        self._waiting: list[str] = [messages.CONNECTED, start]

    def stop(self) -> None:
        """The caller hangs up."""
        self._number += 1
        text = messages.stop(self._number, ACCOUNT_SID, CALL_SID, self.stream_sid)
        self.give(text)

    def give(self, text: str) -> None:
        """Twilio sends this message."""
        self._waiting.append(text)
        asyncio.get_running_loop().call_soon(self._deliver)

    def lose(self, why: Why = Why.LOST) -> None:
        """The socket is gone without a `stop`."""
        if self._listener:
            self._listener.socket_ended(SocketEnd(why))

    def listen(
        self, listener: SocketListener, first: Iterable[str | bytes] = ()
    ) -> None:
        self._listener = listener
        asyncio.get_running_loop().call_soon(self._deliver)

    def hold(self) -> None:
        self._listener = None

    def leave(self) -> None:
        self._listener = None

    def _deliver(self) -> None:
        while self._waiting and self._listener:
            self._listener.socket_message(self._waiting.pop(0))

    def send_text(self, *texts: str) -> None:
        if self.bug:
            raise self.bug
        for text in texts:
            self._sent(text)

    def _sent(self, text: str) -> None:
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

    async def close_bounded(self, code: int = 1000) -> None:
        self.closed.set()

    def abort(self) -> None:
        self.closed.set()

    def _echo(self, name: str) -> None:
        self._number += 1
        self.give(messages.mark(self._number, self.stream_sid, name))


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

    async def take_over(self, phone: IdentifiedPhone) -> bool:
        return False

    async def close(self, ending: End) -> None:
        self.closed.append(ending)

    def send(self, texts: list[str], now: float) -> None: ...

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
