"""Sessions of the model: an input has one message of the model a line, in order.

A line that begins with `!` is not a message, but an action of the user's code, the
operator or the network.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, cast

from agents import HostedMCPTool

from bridge.agent.approvals import ApprovalRule, Approvals
from bridge.core import ProtocolError, realtime_events
from bridge.core.capabilities import SIP
from bridge.core.commands import Command, End, ToModel, WaitDone
from bridge.core.conversation import Conversation
from bridge.core.inputs import (
    Ask,
    Begin,
    Dialled,
    Edit,
    EndCall,
    FromModel,
    Input,
    Interrupt,
    ModelLost,
    MuteCaller,
    SetRules,
    Tell,
    Tick,
    ToolRunning,
    WhenHeard,
)
from bridge.core.rules import Prices, Rules
from bridge.model.hosted_mcp import HostedMcp
from bridge.model.wire import Wire
from tests.fuzz.any_call import DOCUMENTED
from tests.fuzz.texts import lines


def now_or_never(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until it waits for the first time, and drops it there."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()


class WireCall:
    """The parts of a call that Wire and HostedMcp use."""

    call_sid = "CA1"
    agent_name = "desk"

    def __init__(self) -> None:
        self.running_tools: list[str] = []
        self.approvals = Approvals(
            ApprovalRule(), self.start, self.call_sid, self.running
        )
        self.hosted = HostedMcp(
            self, self.approvals, self.start, self.send, self.ask, self.running
        )
        booking = {"type": "mcp", "server_label": "tables", "allowed_tools": ["book"]}
        tool = HostedMCPTool(tool_config=cast(Any, booking))
        self.hosted.take({"tools": [tool]})
        self.hosted.put_into({"tools": [{"type": "function", "name": "hours"}]})
        self.wire = Wire(
            self.dial,
            self,
            cast(asyncio.TaskGroup, None),
            self.call_sid,
            self.interrupted,
            lambda seconds: None,
            lambda session: None,
            on_left=self.hosted.session_lost,
        )
        self.lost = 0

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        work.close()

    def send(self, event: dict[str, Any]) -> None:
        assert event["type"] == "conversation.item.create"
        self.wire.put(json.dumps(event))

    def send_to_model(self, text: str) -> None:
        kind = json.loads(text)["type"]
        assert kind == "conversation.item.create"

    def ask(self) -> None:
        pass

    def running(self, change: int, call_id: str = "") -> None:
        if change > 0:
            self.running_tools.append(call_id)
        else:
            self.running_tools.remove(call_id)

    def emit(self, event_type: str, **data: Any) -> None:
        json.dumps([event_type, data])

    async def dial(self) -> Any:
        raise AssertionError("nobody dials")

    async def interrupted(self, item_id: str, content_index: int) -> None:
        pass

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        if not isinstance(event, realtime_events.AudioDelta):
            self.hosted.model_event(text)

    def model_misread(self, reason: str, kind: str = "") -> None:
        assert reason

    def model_dialled(self, connection: int) -> None:
        pass

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        pass

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        self.lost += 1

    def model_stuck(self, why: str) -> None:
        pass

    def model_limit(self, limit: str) -> None:
        pass

    # --- actions ---

    def act(self, action: str) -> None:
        match action[:1]:
            case "l":
                self.wire.connection_lost(1, "lost", 1006)
                assert not self.running_tools, "a lost session has nothing at work"
            case "y" | "n" if self.approvals.pending:
                approval = self.approvals.pending[0]
                yes = action[:1] == "y"
                always = action[1:2] == "a"
                decide = self.approvals.approve if yes else self.approvals.reject
                now_or_never(decide(approval.call_id, always=always))
            case "u":
                update = {"type": "session.update", "session": {"instructions": action}}
                self.wire.put(json.dumps(update))
            case "i":
                self.wire.interrupted(action, 0)
            case _:
                # The SDK reads all events that are waiting for it.
                waiting = self.wire._sdk_events._waiting
                while not waiting.empty():
                    event = waiting.get_nowait()
                    assert isinstance(event, tuple) or json.loads(event)["type"]


def wire(data: bytes) -> int:
    """bridge.model.wire and hosted_mcp: each message of the model is read, passed on or
    counted; nothing raises."""
    call, count = WireCall(), 0
    for text in lines(data):
        if text.startswith("!"):
            call.act(text[1:])
        else:
            count += 1
            call.wire.take(1, text)
    call.act("l")
    return count


RULES = Rules(
    greeting="Say hello.",
    silent_seconds=3.0,
    prices=Prices(output_audio=1.0),
    cost_limit=1e6,
    key_actions=("1", "12#"),
)

SIP_TYPES = DOCUMENTED.keys() | {"output_audio_buffer.clear"}


MAX_TICKS = 3
"""Most ticks at one moment."""


class SipCall:
    """A SIP call, whose audio the model's server plays, and the actions in the call."""

    def __init__(self) -> None:
        self.now = 100.0
        self.conversation = Conversation(now=self.now, capabilities=SIP)
        self.ended = False
        self.waits = 0
        self.waiting: set[int] = set()
        for given in (Begin(), SetRules(RULES), Dialled(1)):
            self.feed(given)
        self.receive('{"type":"session.updated","session":{}}')

    def feed(self, given: Input) -> None:
        self.check(self.conversation.handle(given, self.now))

    def receive(self, text: str) -> None:
        try:
            event = realtime_events.decode(text)
        except ProtocolError:
            return
        if not isinstance(event, realtime_events.Other):
            self.feed(FromModel(1, event))

    def act(self, action: str) -> None:
        # of the user's code: valid text
        action = action.encode(errors="replace").decode()
        actions: dict[str, Input] = {
            "t": Tell("system", action, True),
            "a": Ask(),
            "i": Interrupt("application", action[1:] or None),
            "e": Edit((action[1:],), {action[1:]: "other"}),
            "b": ToolRunning(+1),
            "f": ToolRunning(-1),
            "m": MuteCaller(action[1:] == ""),
            "l": ModelLost(1, "lost"),
        }
        if action[:1] in actions:
            self.feed(actions[action[:1]])
        elif action[:1] in ("w", "h"):
            self.waits += 1
            self.waiting.add(self.waits)
            then = ("agent", "hung_up") if action[:1] == "h" else None
            self.feed(WhenHeard(self.waits, then))
        else:
            self.pass_time(len(action) ** 2 * 0.05)

    def pass_time(self, seconds: float) -> None:
        until, ticks = self.now + seconds, 0
        for _ in range(30):
            due = self.conversation.deadline
            if due is None or due > until:
                break
            # What one tick decides may make something else due at once.
            ticks = ticks + 1 if due <= self.now else 0
            assert ticks < MAX_TICKS, "a clock spins"
            self.now = max(due, self.now)
            self.feed(Tick())
        self.now = until

    def check(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, WaitDone):
                self.waiting.remove(command.wait)
                continue
            assert not self.ended, "something follows the end"
            if isinstance(command, End):
                self.ended = True
            elif isinstance(command, ToModel):
                assert json.loads(command.text)["type"] in SIP_TYPES


def sip(data: bytes) -> int:
    """The core of a SIP call: no exception, for any events in any order."""
    call, count = SipCall(), 0
    for text in lines(data):
        if text.startswith("!"):
            call.act(text[1:])
        else:
            count += 1
            call.receive(text)
    call.feed(EndCall("bridge", "shutdown"))
    assert call.ended and not call.waiting
    return count
