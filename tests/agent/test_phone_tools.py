"""The phone tools: what the model is told, and what they do to the call."""

import asyncio
import json
from typing import Any

import pytest
from agents import FunctionTool
from agents.realtime import RealtimeAgent
from agents.run_context import RunContextWrapper
from agents.tool_context import ToolContext

from bridge.agent import phone_tools
from bridge.agent.live import LiveCall, Message, Transfer
from bridge.agent.phone_tools import OVER, PHONE_TOOLS, SPOKE
from tests.support.call_control import FakeCallControl, live_call

SALES = Transfer("+14155550111", "+14155550199", 30, "orders and prices")
DESK = Transfer("+14155550112")


async def call(tool: FunctionTool, live: LiveCall, **arguments: str) -> str:
    """Calls the tool as the SDK does: with JSON; returns its text."""
    text = json.dumps(arguments)
    context = ToolContext(
        live, tool_name=tool.name, tool_call_id="c", tool_arguments=text
    )
    return str(await tool.on_invoke_tool(context, text))


async def offered(live: Any) -> list[str]:
    """Names of the tools that a model on this call sees."""
    agent: RealtimeAgent[Any] = RealtimeAgent(name="all", tools=PHONE_TOOLS)
    tools = await agent.get_all_tools(RunContextWrapper(live))
    return [tool.name for tool in tools]


# --- hanging up ---


async def test_no_answer_is_generated_after_the_hang_up() -> None:
    """No response is generated and paid for that the caller would not hear."""
    line = FakeCallControl()
    async with live_call(line) as live, asyncio.TaskGroup() as tasks:
        tool = tasks.create_task(call(phone_tools.hang_up, live))
        await asyncio.sleep(0.05)

        assert line.asked == [("hang_up",)]
        assert not tool.done()
        tool.cancel()  # as the session does when it closes


async def test_a_tool_returns_if_the_session_does_not_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool never hangs for ever, even if the call does not end."""
    monkeypatch.setattr(phone_tools, "END_SECONDS", 0.01)
    async with live_call(FakeCallControl()) as live:
        assert await call(phone_tools.hang_up, live) == OVER


async def test_a_caller_who_interrupts_the_goodbye_stays() -> None:
    """The caller says `one more thing`: the model is told to answer it."""
    line = FakeCallControl()
    line.done = False
    async with live_call(line) as live:
        assert await call(phone_tools.hang_up, live) == SPOKE


async def test_a_tool_after_the_call_gets_a_sentence() -> None:
    """A late tool call gets a sentence, not an exception."""
    async with live_call(FakeCallControl()) as live:
        live.transfers = {"sales": SALES}
        live.end()

        assert await call(phone_tools.hang_up, live) == OVER
        assert await call(phone_tools.transfer_call, live, target="sales") == OVER
        assert await call(phone_tools.send_digits, live, digits="1") == OVER


# --- putting through ---


@pytest.mark.parametrize("name", ["sales", " Sales "])
async def test_a_transfer_uses_the_target_of_the_route(name: str) -> None:
    """The named target is dialled, with the caller id that the route gives."""
    line = FakeCallControl()
    async with live_call(line) as live, asyncio.TaskGroup() as tasks:
        live.transfers = {"sales": SALES, "desk": DESK}
        tool = tasks.create_task(call(phone_tools.transfer_call, live, target=name))
        await asyncio.sleep(0.05)

        [(_, asked)] = line.asked
        assert (asked.number, asked.caller_id) == (SALES.number, SALES.caller_id)
        assert asked.ring_seconds == SALES.ring_seconds
        assert not tool.done()
        tool.cancel()


@pytest.mark.parametrize("target", ["", "boss", "+19005550100"])
async def test_a_number_from_the_model_is_not_dialled(target: str) -> None:
    """A caller cannot talk the model into dialling a number of their choice."""
    line = FakeCallControl()
    async with live_call(line) as live:
        live.transfers = {"sales": SALES, "desk": DESK}
        told = await call(phone_tools.transfer_call, live, target=target)

    assert "sales (orders and prices); desk." in told
    assert ("no such target" in told) is bool(target)
    assert line.asked == []
    assert SALES.number not in told


async def test_a_transfer_is_given_up_when_the_caller_speaks() -> None:
    """A caller who says `no, wait` stays with the agent."""
    line = FakeCallControl()
    line.done = False
    async with live_call(line) as live:
        live.transfers = {"sales": SALES}
        assert await call(phone_tools.transfer_call, live, target="sales") == SPOKE


async def test_a_forbidden_transfer_is_reported_without_the_number() -> None:
    """The agent tells the caller and goes on; it does not learn the number."""
    async with live_call(line := FakeCallControl()) as live:
        line.allowed = False
        live.transfers = {"sales": SALES}
        told = await call(phone_tools.transfer_call, live, target="sales")

    assert told.startswith("Not done: it is not allowed.") and line.asked == []


async def test_a_failed_transfer_is_reported() -> None:
    """A wrong number in the configuration does not leave the caller in silence."""
    async with live_call(FakeCallControl()) as live:
        live.transfers = {"sales": Transfer("12")}
        told = await call(phone_tools.transfer_call, live, target="sales")

    assert told.startswith("Not done: a target is an E.164 number")
    assert "Tell the caller" in told


async def test_the_transfer_tool_needs_targets() -> None:
    """A model on a route without targets does not promise a transfer."""
    rest = ["hang_up", "send_digits", "take_message"]
    async with live_call(FakeCallControl()) as live:
        assert sorted(await offered(live)) == rest
        live.transfers = {"sales": SALES}
        assert sorted(await offered(live)) == [*rest, "transfer_call"]
    assert sorted(await offered(None)) == rest


async def test_without_targets_a_message_is_offered() -> None:
    """An agent that lists the tool anyway is told to take a message instead."""
    async with live_call(FakeCallControl()) as live:
        told = await call(phone_tools.transfer_call, live, target="sales")

    assert told.endswith("Offer to take a message instead.")


# --- keys and messages ---


async def test_keys_are_pressed() -> None:
    """The line hears the tones, and the model is told to listen."""
    line = FakeCallControl()
    async with live_call(line) as live:
        told = await call(phone_tools.send_digits, live, digits="1w42#")
        line.done = False
        cut = await call(phone_tools.send_digits, live, digits="9")

    assert line.asked == [("send_digits", "1w42#"), ("send_digits", "9")]
    assert told.startswith("The keys were pressed.")
    assert cut == SPOKE


async def test_invalid_keys_are_refused() -> None:
    """A model that writes words is told which keys exist."""
    line = FakeCallControl()
    async with live_call(line) as live:
        told = await call(phone_tools.send_digits, live, digits="one")

    assert told.startswith("Not done: digits are 1 to 64 of 0-9")
    assert line.asked == []


async def test_a_message_is_kept() -> None:
    """The people whom the agent answers for can read the caller's message."""
    async with live_call(FakeCallControl()) as live:
        told = await call(
            phone_tools.take_message,
            live,
            text="Call me.",
            name="Ann",
            call_back="noon",
        )
        empty = await call(phone_tools.take_message, live, text=" ")

    assert live.messages == [Message("Call me.", "Ann", "noon")]
    assert told.startswith("The message is kept.")
    assert empty.startswith("Not kept: the message is empty.")
