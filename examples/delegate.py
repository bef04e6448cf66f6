"""A voice that asks a bigger brain: a tool hands the talk so far to a text agent.

Offline:  .venv/bin/bridge demo --agent examples/delegate.py:agent
For real: BRIDGE_AGENT=examples/delegate.py:agent

The text agent is the SDK's `Agent`, asked over the Responses API with OPENAI_API_KEY of
the environment. Without a key the demo has a fake of it, too.
"""

from typing import Any

from agents import Agent, RunContextWrapper, Runner, function_tool
from agents.realtime import RealtimeAgent

from bridge import LiveCall

lawyer: Agent[Any] = Agent(
    name="lawyer",
    # model="...",  # any that the Responses API has; else the SDK's default
    instructions=(
        "You get a telephone conversation and a question. Answer in two sentences that "
        "can be read aloud. If you are not sure, say so."
    ),
)


# With a limit of its own; without one it would be `tool_seconds` of the route. When it
# is over the model is told, and tells the caller.
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
