"""A voice agent with a text agent: a tool gives the conversation to a text model.

Offline:  .venv/bin/bridge demo --agent examples/delegate.py:agent
For real: BRIDGE_AGENT=examples/delegate.py:agent

The text agent is the SDK's `Agent`. It uses the Responses API with OPENAI_API_KEY of
the environment. Without a key the demo uses a fake of that API, too.
"""

from typing import Any

from agents import Agent, RunContextWrapper, Runner, function_tool
from agents.realtime import RealtimeAgent

from bridge import LiveCall

lawyer: Agent[Any] = Agent(
    name="lawyer",
    # model="...",  # any model of the Responses API; default: that of the SDK
    instructions=(
        "You get a telephone conversation and a question. Answer in two sentences that "
        "can be read aloud. If you are not sure, say so."
    ),
)


# This tool has its own time limit; the default is `tool_seconds` of the route. When the
# time is over, the model is told, and tells the caller.
@function_tool(timeout=30)
async def ask_the_lawyer(context: RunContextWrapper[LiveCall], question: str) -> str:
    """A thorough answer to a legal question. It takes some seconds."""
    talk = "\n".join(f"{it.kind}: {it.text}" for it in context.context.transcript)
    result = await Runner.run(lawyer, f"{talk}\n\nThe question: {question}")
    return str(result.final_output)


agent: RealtimeAgent[LiveCall] = RealtimeAgent(
    name="front office",
    instructions=(
        "You answer the phone of a law firm, in short sentences. Never give legal "
        "advice of your own: say that you will ask, use the tool, say what it said."
    ),
    tools=[ask_the_lawyer],
)
