"""LiveCall as user code uses it: which actions are possible, and from which thread."""

import asyncio
import time
from collections import UserDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import pytest

from bridge.agent.events import CallEvent
from bridge.agent.live import (
    MAX_DIGITS,
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    BadRequest,
    CallOver,
    LiveCall,
    Message,
    Transfer,
)
from bridge.agent.user_code import UserCodeFailed, in_thread
from bridge.core.history import HistoryItem
from tests.support.call_control import FACTS, FakeCallControl, live_call

HISTORY = [
    HistoryItem(id="item_1", kind="system", text="Be kind."),
    HistoryItem(id="item_2", kind="user", text="Hello?"),
    HistoryItem(id="item_3", kind="assistant", text="I", generated="I have", cut=True),
    HistoryItem(id="item_4", kind="tool_call", name="look_up", call_id="call_1"),
    HistoryItem(id="item_5", kind="tool_output", text="found", call_id="call_1"),
    HistoryItem(id="item_6", kind="assistant"),
]


def test_ours_and_theirs_follow_the_direction() -> None:
    """A route is chosen by our number, for inbound and for outbound calls."""
    outbound = replace(FACTS, direction="outbound")

    assert (FACTS.ours, FACTS.theirs) == ("+14155550199", "+14155550101")
    assert (outbound.ours, outbound.theirs) == ("+14155550101", "+14155550199")


async def test_a_call_shows_its_facts_and_conversation() -> None:
    """The facts, what was said, and whether the call is over."""
    line = FakeCallControl()
    line.history = HISTORY
    async with live_call(line) as live:
        assert live.call_sid == FACTS.call_sid
        assert live.history == HISTORY
        assert [item.id for item in live.transcript] == ["item_2", "item_3"]
        assert live.approvals == [] and not live.over
        live.history.clear()
        assert line.history == HISTORY
    assert live.over


# --- actions ---


async def test_actions_reach_the_call() -> None:
    """Each action arrives at the call with its arguments."""
    line = FakeCallControl()
    async with live_call(line) as live:
        live.tell("Hello.")
        live.tell("Be brief.", role="system", respond=False)
        live.interrupt()
        live.mute()
        assert live.muted
        live.mute(False)
        live.send_raw({"type": "response.create"})
        assert await live.heard() and await live.hang_up()
        assert await live.send_digits("12w#")
        transfer = live.transfer(
            "+1 415 555-0111", caller_id="+14155550199", ring_seconds=30
        )
        assert await transfer

    assert line.asked == [
        ("tell", "user", "Hello.", True),
        ("tell", "system", "Be brief.", False),
        ("interrupt", "application"),
        ("mute", True),
        ("mute", False),
        ("send_raw", {"type": "response.create"}),
        ("heard",),
        ("hang_up",),
        ("send_digits", "12w#"),
        ("transfer", Transfer("+14155550111", "+14155550199", 30)),
    ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda live: live.tell("  "),
        lambda live: live.tell("x" * (MAX_TEXT_CHARS + 1)),
        lambda live: live.tell("x", role="assistant"),
        lambda live: live.send_raw({"no": "type"}),
        lambda live: live.take_message("  "),
        lambda live: live.take_message("x" * 8001),
        lambda live: live.update_history(remove=["item_9"]),
        lambda live: live.update_history(correct={"item_9": "x"}),
        lambda live: live.update_history(correct={"item_4": "x"}),
    ],
)
async def test_impossible_actions_are_refused(ask: Callable[[LiveCall], None]) -> None:
    """User code gets an error at once, and nothing is done."""
    line = FakeCallControl()
    line.history = HISTORY
    async with live_call(line) as live:
        with pytest.raises(BadRequest):
            ask(live)

    assert line.asked == [] and live.messages == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda live: live.transfer("911"),
        lambda live: live.transfer("+14155550111", caller_id="Sales"),
        lambda live: live.transfer("+14155550111", ring_seconds=601),
        lambda live: live.send_digits(""),
        lambda live: live.send_digits("12x"),
        lambda live: live.send_digits("1" * (MAX_DIGITS + 1)),
    ],
)
async def test_impossible_async_actions_are_refused(
    ask: Callable[[LiveCall], Coroutine[Any, Any, bool]],
) -> None:
    """As above, for actions that wait; the message contains no phone number."""
    line = FakeCallControl()
    async with live_call(line) as live:
        with pytest.raises(BadRequest) as refused:
            await ask(live)

    assert line.asked == []
    assert "911" not in str(refused.value) and "Sales" not in str(refused.value)


async def test_history_items_are_removed_and_corrected() -> None:
    """Items are removed from the history, and texts are replaced."""
    line = FakeCallControl()
    line.history = HISTORY
    async with live_call(line) as live:
        live.update_history(remove=["item_4"], correct={"item_3": "I was cut."})

    assert line.asked == [("edit_history", ["item_4"], {"item_3": "I was cut."})]


async def test_a_lone_surrogate_does_not_end_the_call() -> None:
    """A text that user code cut within a character is repaired. It cannot be sent or
    stored, and would end the call later without a visible cause."""
    line = FakeCallControl()
    line.history = HISTORY
    async with live_call(line) as live:
        live.tell("Hello \ud83d")
        live.update_history(correct={"item_2": "\ud83d"})
        live.take_message("Call \ud83d")

        assert line.asked[0] == ("tell", "user", "Hello ?", True)
        assert line.asked[1] == ("edit_history", [], {"item_2": "?"})
        assert live.messages == [Message("Call ?")]


async def test_a_message_is_kept_and_emitted() -> None:
    """The message is in the report, and listeners get an event."""
    seen: list[CallEvent] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event)

    async with live_call(FakeCallControl()) as live:
        live.on(keep, "message_taken")
        live.take_message("Call me.", name="Ann", call_back="at noon")

    assert live.messages == [Message("Call me.", "Ann", "at noon")]
    [event] = seen
    assert event.data == {"text": "Call me.", "name": "Ann", "call_back": "at noon"}


async def test_the_number_of_messages_is_bounded() -> None:
    """A model that takes messages again and again does not fill the report."""
    async with live_call(FakeCallControl()) as live:
        for _ in range(MAX_MESSAGES):
            live.take_message("Call me.")
        with pytest.raises(BadRequest, match="too many"):
            live.take_message("Call me.")

    assert len(live.messages) == MAX_MESSAGES


async def test_no_action_is_possible_after_the_call() -> None:
    """Every action raises CallOver."""
    line = FakeCallControl()
    line.history = HISTORY
    async with live_call(line) as live:
        pass

    actions: list[Callable[[], object]] = [
        lambda: live.tell("Hello."),
        live.interrupt,
        live.mute,
        lambda: live.send_raw({"type": "response.create"}),
        lambda: live.update_history(remove=["item_2"]),
        lambda: live.on(lambda event: None),
    ]
    for action in actions:
        with pytest.raises(CallOver):
            action()
    waiting: list[Callable[[], Coroutine[Any, Any, object]]] = [
        live.heard,
        live.hang_up,
        lambda: live.transfer("+14155550111"),
        lambda: live.send_digits("1"),
        lambda: live.approve("call_1"),
        lambda: live.reject("call_1"),
    ]
    for wait in waiting:
        with pytest.raises(CallOver):
            await wait()
    assert line.asked == []


# --- a tool's thread ---


async def settled() -> None:
    """Waits until everything that can happen without further input has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_actions_from_a_tools_thread_run_in_the_event_loop() -> None:
    """A plain user function runs in a thread: its actions are done in the event loop,
    in order, and listeners are called."""
    line = FakeCallControl()
    seen: list[str] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event.type)

    def tool(live: LiveCall) -> None:
        live.tell("One.")
        live.mute()
        live.take_message("Call me.")
        live.emit("mine")

    async with live_call(line) as live:
        live.on(keep)
        await asyncio.to_thread(tool, live)
        await settled()

    assert line.asked == [("tell", "user", "One.", True), ("mute", True)]
    assert seen == ["message_taken", "mine"]


async def test_a_thread_that_outlives_the_call_does_nothing() -> None:
    """An action that is requested at the last moment is not carried out."""
    line = FakeCallControl()
    async with live_call(line) as live:
        asked = asyncio.get_running_loop().run_in_executor(None, live.tell, "One.")
        time.sleep(0.1)  # noqa: ASYNC251 - the event loop must not run yet
        live.end()
        with pytest.raises(CallOver):
            await asked

    assert line.asked == []


async def test_the_tools_thread_gets_the_error_of_its_action() -> None:
    """A tool that acts too early gets the reason, not only the log."""

    class Early(FakeCallControl):
        def mute(self, on: bool) -> None:
            raise BadRequest("not yet")

    async with live_call(Early()) as live:
        with pytest.raises(BadRequest, match="not yet"):
            await asyncio.to_thread(live.mute)


async def test_an_event_of_user_code_that_ends_the_process() -> None:
    """The tool's thread gets the error; the event loop goes on."""

    class Encodes(FakeCallControl):
        def send_raw(self, event: Mapping[str, Any]) -> None:
            dict(event)

    class Event(UserDict[str, Any]):
        def __iter__(self) -> Any:
            raise SystemExit("theirs")

    async with live_call(Encodes()) as live:
        with pytest.raises(UserCodeFailed):
            event = Event(type="response.cancel")
            await in_thread(live.send_raw, event, name="tool")
