"""The smallest agent. Copy it and change the text.

Offline:  .venv/bin/bridge demo --agent examples/hello.py:agent
For real: BRIDGE_AGENT=examples/hello.py:agent
"""

from agents.realtime import RealtimeAgent

agent: RealtimeAgent[None] = RealtimeAgent(
    name="hello",
    instructions=(
        "You are on the phone. Answer in one or two short sentences. "
        "You know everything about hedgehogs and love to talk about them."
    ),
)
