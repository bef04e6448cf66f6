"""Direct access: the model's events, raw events to the model, control of the call.

Offline:  .venv/bin/bridge demo --agent examples/direct.py:agent
For real: BRIDGE_AGENT=examples/direct.py:agent

To open the socket to the model yourself:
BRIDGE_MODEL_CONNECT=examples/direct.py:connect
"""

import asyncio
from typing import Any

from agents import RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent, RealtimeModelEvent, RealtimeModelListener
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket

from bridge import CallEvent, LiveCall


async def connect(url: str, headers: dict[str, str]) -> ClientConnection:
    """Replaces the bridge's own connect, for a proxy, a certificate or the socket of
    another library. It must return within ten seconds."""
    return await open_socket(
        url, additional_headers=headers, compression=None, max_size=8 * 1024 * 1024
    )


class RateLimits(RealtimeModelListener):
    """Gets server events for which the SDK has no event of its own."""

    def __init__(self, call: LiveCall) -> None:
        self._call = call

    async def on_event(self, event: RealtimeModelEvent) -> None:
        if event.type != "raw_server_event":
            return
        if event.data["type"] == "rate_limits.updated":
            self._call.notes["rate_limits"] = event.data["rate_limits"]


@function_tool
def speak_slower(context: RunContextWrapper[LiveCall]) -> str:
    """Speak more slowly from now on."""
    audio = {"output": {"speed": 0.8}}
    session = {"type": "realtime", "audio": audio}
    context.context.send_raw({"type": "session.update", "session": session})
    return "done"


@function_tool
async def look_away(context: RunContextWrapper[LiveCall]) -> str:
    """Stop listening for a second, while the caller says something private."""
    call = context.context
    call.mute()  # the model hears silence
    await asyncio.sleep(1)
    call.mute(False)
    return "you heard nothing for a second"


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """The agent of one call."""

    limits = RateLimits(call)

    async def began(event: CallEvent) -> None:
        """When an answer begins, the SDK's own session exists."""
        if call.session is not None:
            call.session.model.add_listener(limits)  # a second time has no effect

    async def caller_said(event: CallEvent) -> None:
        if "be quiet" in event.data["text"].lower():
            call.interrupt()  # at once; `await call.session.interrupt()` also works
            # Text into the running call. With role="user" it counts as the caller's own
            # words; with respond=False it waits for the next answer.
            call.tell("Ask in three words whether to go on.", role="system")

    call.on(began, "agent_start")
    call.on(caller_said, "caller_said")
    return RealtimeAgent(
        name="direct",
        instructions="You are on the phone. Help with whatever is asked, briefly.",
        tools=[speak_slower, look_away],
    )
