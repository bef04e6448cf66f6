"""Direct access: the model's own events, raw events to it, the running call's switches.

Offline:  .venv/bin/bridge demo --agent examples/direct.py:agent
For real: BRIDGE_AGENT=examples/direct.py:agent

The socket to the model, opened by you: BRIDGE_MODEL_CONNECT=examples/direct.py:connect
"""

import asyncio
from typing import Any

from agents import RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent, RealtimeModelEvent, RealtimeModelListener
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket

from bridge import CallEvent, LiveCall


async def connect(url: str, headers: dict[str, str]) -> ClientConnection:
    """In place of the bridge's own: a proxy, a certificate, another library's socket.
    It has ten seconds."""
    return await open_socket(
        url, additional_headers=headers, compression=None, max_size=8 * 1024 * 1024
    )


class RateLimits(RealtimeModelListener):
    """What the SDK knows no event for still comes by here."""

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
        """An answer begins: by now there is the SDK's own session."""
        if call.session is not None:
            call.session.model.add_listener(limits)  # once, however often

    async def caller_said(event: CallEvent) -> None:
        if "be quiet" in event.data["text"].lower():
            call.interrupt()  # in mid-word; `await call.session.interrupt()` as well
            # Text into the running call: role="user" would be the caller's own words,
            # respond=False would leave it for the next answer.
            call.tell("Ask in three words whether to go on.", role="system")

    call.on(began, "agent_start")
    call.on(caller_said, "caller_said")
    return RealtimeAgent(
        name="direct",
        instructions="You are on the phone. Help with whatever is asked, briefly.",
        tools=[speak_slower, look_away],
    )
