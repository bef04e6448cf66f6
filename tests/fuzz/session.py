"""The model's side where it is more than a parser: one message a line, in order.

A line that begins with `!` is no message, but something that happens meanwhile.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

from agents import HostedMCPTool

from bridge.agent.approvals import ApprovalRule, Approvals
from bridge.core import ProtocolError, realtime_events
from bridge.core.commands import Command, End, ToModel, WaitDone
from bridge.core.rules import Prices, Rules
from bridge.model.hosted_mcp import HostedMcp
from bridge.model.wire import Wire
from bridge.sip.sip_talk import SipTalk
from tests.fuzz.talk import DOCUMENTED
from tests.fuzz.texts import lines


def now_or_never(work: Coroutine[Any, Any, None]) -> None:
    """What does not wait is done; what waits, is dropped where it does."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()


class Line:
    """The call, as Wire and HostedMcp see it."""

    call_sid = "CA1"
    agent_name = "desk"

    def __init__(self) -> None:
        self.at_work: list[str] = []
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
            self.at_work.append(call_id)
        else:
            self.at_work.remove(call_id)

    def emit(self, event_type: str, **data: Any) -> None:
        json.dumps([event_type, data])

    async def dial(self) -> Any:
        raise AssertionError("nobody dials")

    async def interrupted(self, item_id: str, content_index: int) -> None:
        pass

    def model_event(self, event: realtime_events.ServerEvent, text: str) -> None:
        if not isinstance(event, realtime_events.AudioDelta):
            self.hosted.model_event(text)

    def model_misread(self, reason: str) -> None:
        assert reason

    def model_dialled(self) -> None:
        pass

    def model_not_dialled(self, why: str, fatal: bool) -> None:
        pass

    def model_lost(self, why: str, code: int | None) -> None:
        self.lost += 1

    def model_stuck(self, why: str) -> None:
        pass

    def model_limit(self, limit: str) -> None:
        pass

    # --- what happens meanwhile ---

    def does(self, what: str) -> None:
        match what[:1]:
            case "l":
                self.wire.connection_lost("lost", 1006)
                assert not self.at_work, "a lost session has nothing at work"
            case "y" | "n" if self.approvals.pending:
                approval = self.approvals.pending[0]
                yes = what[:1] == "y"
                always = what[1:2] == "a"
                decide = self.approvals.approve if yes else self.approvals.reject
                now_or_never(decide(approval.call_id, always=always))
            case "u":
                update = {"type": "session.update", "session": {"instructions": what}}
                self.wire.put(json.dumps(update))
            case "i":
                self.wire.interrupted(what, 0)
            case _:
                # The SDK takes what there is for it.
                while not self.wire._to_sdk.empty():
                    event = self.wire._to_sdk.get_nowait()
                    assert isinstance(event, tuple) or json.loads(event)["type"]


def wire(data: bytes) -> int:
    """bridge.model.wire and hosted_mcp: whatever the model sends is read, handed on or
    counted; nothing raises."""
    line, count = Line(), 0
    for text in lines(data):
        if text.startswith("!"):
            line.does(text[1:])
        else:
            count += 1
            line.wire.take(text)
    line.does("l")
    return count


RULES = Rules(
    greeting="Say hello.",
    silent_seconds=3.0,
    prices=Prices(output_audio=1.0),
    cost_limit=1e6,
    key_actions=("1", "12#"),
)

SIP_TYPES = DOCUMENTED.keys() | {"output_audio_buffer.clear"}


class SipLine:
    """A call whose audio the server plays, and what may happen in it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.talk = SipTalk(RULES, self.now)
        self.ended = False
        self.waits = 0
        self.waiting: set[int] = set()
        self.took(self.talk.attached(self.now))

    def hears(self, text: str) -> None:
        try:
            event = realtime_events.decode(text)
        except ProtocolError:
            return
        self.took(self.talk.from_model(event, text, self.now))

    def does(self, what: str) -> None:
        what = what.encode(errors="replace").decode()  # no model's, but the user's own
        talk, now = self.talk, self.now
        does: dict[str, Callable[[], list[Command]]] = {
            "t": lambda: talk.tell("system", what, True),
            "a": talk.ask,
            "i": lambda: talk.interrupt("application", now, what[1:] or None),
            "e": lambda: talk.edit([what[1:]], {what[1:]: "other"}),
            "b": lambda: talk.busy(+1, now),
            "f": lambda: talk.busy(-1, now),
        }
        if what[:1] in does:
            self.took(does[what[:1]]())
        elif what[:1] in ("w", "h"):
            self.waits += 1
            self.waiting.add(self.waits)
            then = ("agent", "hung_up") if what[:1] == "h" else None
            self.took(talk.when_heard(self.waits, now, then))
        else:
            self.now += len(what) ** 2 * 0.05
            for _ in range(30):
                due = talk.deadline
                if due is None or due > self.now:
                    break
                self.took(talk.tick(max(due, now)))
                assert talk.deadline is None or talk.deadline > due, "a clock spins"

    def took(self, commands: list[Command]) -> None:
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
    """bridge.sip.sip_talk: as the conversation of a stream, for calls over SIP."""
    line, count = SipLine(), 0
    for text in lines(data):
        if text.startswith("!"):
            line.does(text[1:])
        else:
            count += 1
            line.hears(text)
    line.took(line.talk.end("bridge", "shutdown", line.now))
    assert line.ended and not line.waiting
    return count
