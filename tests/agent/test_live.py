"""A call in the hands of the user's code: what it may ask for, and from where."""

import asyncio
import time
from collections.abc import Callable, Coroutine
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
from bridge.core.history import HistoryItem
from tests.support.line import FACTS, Line, live_call

HISTORY = [
    HistoryItem(id="item_1", kind="system", text="Be kind."),
    HistoryItem(id="item_2", kind="user", text="Hello?"),
    HistoryItem(id="item_3", kind="assistant", text="I", generated="I have", cut=True),
    HistoryItem(id="item_4", kind="tool_call", name="look_up", call_id="call_1"),
    HistoryItem(id="item_5", kind="tool_output", text="found", call_id="call_1"),
    HistoryItem(id="item_6", kind="assistant"),
]


def test_whose_number_is_whose() -> None:
    """A route is chosen by our number, whichever way the call went."""
    outbound = replace(FACTS, direction="outbound")

    assert (FACTS.ours, FACTS.theirs) == ("+14155550199", "+14155550101")
    assert (outbound.ours, outbound.theirs) == ("+14155550101", "+14155550199")


async def test_what_is_known_of_a_call() -> None:
    """Its facts, what was said in it, whether it is over."""
    line = Line()
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


async def test_actions_reach_the_line() -> None:
    """Each is asked for as it was meant."""
    line = Line()
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
async def test_what_cannot_be_asked_for(ask: Callable[[LiveCall], None]) -> None:
    """The user's code is told at once, and nothing is done."""
    line = Line()
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
async def test_what_cannot_be_waited_for(
    ask: Callable[[LiveCall], Coroutine[Any, Any, bool]],
) -> None:
    """The same, of what takes its time; no number is in the message."""
    line = Line()
    async with live_call(line) as live:
        with pytest.raises(BadRequest) as refused:
            await ask(live)

    assert line.asked == []
    assert "911" not in str(refused.value) and "Sales" not in str(refused.value)


async def test_the_history_is_changed() -> None:
    """Items go, words are replaced."""
    line = Line()
    line.history = HISTORY
    async with live_call(line) as live:
        live.update_history(remove=["item_4"], correct={"item_3": "I was cut."})

    assert line.asked == [("edit_history", ["item_4"], {"item_3": "I was cut."})]


async def test_half_a_character_ends_no_call() -> None:
    """A text that was cut in the middle of one reaches nobody as it is: what cannot be
    sent or kept would have ended the call later, when nobody knows why."""
    line = Line()
    line.history = HISTORY
    async with live_call(line) as live:
        live.tell("Hello \ud83d")
        live.update_history(correct={"item_2": "\ud83d"})
        live.take_message("Call \ud83d")

        assert line.asked[0] == ("tell", "user", "Hello ?", True)
        assert line.asked[1] == ("edit_history", [], {"item_2": "?"})
        assert live.messages == [Message("Call ?")]


async def test_a_message_is_kept_and_told() -> None:
    """For the report, and for whoever listens."""
    seen: list[CallEvent] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event)

    async with live_call(Line()) as live:
        live.on(keep, "message_taken")
        live.take_message("Call me.", name="Ann", call_back="at noon")

    assert live.messages == [Message("Call me.", "Ann", "at noon")]
    [event] = seen
    assert event.data == {"text": "Call me.", "name": "Ann", "call_back": "at noon"}


async def test_messages_without_end() -> None:
    """A model that takes them again and again fills no report."""
    async with live_call(Line()) as live:
        for _ in range(MAX_MESSAGES):
            live.take_message("Call me.")
        with pytest.raises(BadRequest, match="too many"):
            live.take_message("Call me.")

    assert len(live.messages) == MAX_MESSAGES


async def test_a_call_that_is_over() -> None:
    """Nothing can be done with it, and whoever tries is told."""
    line = Line()
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
    """The call has done all that it can do by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_from_a_tools_thread() -> None:
    """A plain function of the user's runs in a thread: what it asks for is done by the
    call's own, in order; listeners are told there, too."""
    line = Line()
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


async def test_a_tools_thread_that_outlives_the_call() -> None:
    """What it asked for at the last moment is not done any more."""
    line = Line()
    async with live_call(line) as live:
        asked = asyncio.get_running_loop().run_in_executor(None, live.tell, "One.")
        time.sleep(0.1)  # noqa: ASYNC251 - it has asked, and the loop has not come to it
        live.end()
        with pytest.raises(CallOver):
            await asked

    assert line.asked == []


async def test_what_cannot_be_done_is_told_in_the_tools_thread() -> None:
    """A tool that asks too early hears why, and not only the log."""

    class Early(Line):
        def mute(self, on: bool) -> None:
            raise BadRequest("not yet")

    async with live_call(Early()) as live:
        with pytest.raises(BadRequest, match="not yet"):
            await asyncio.to_thread(live.mute)
