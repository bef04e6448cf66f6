"""Tools of a local MCP server: a program on this machine.

Offline:  .venv/bin/bridge demo --agent examples/mcp_local.py:agent
For real: BRIDGE_AGENT=examples/mcp_local.py:agent

The bridge connects the servers of your agents, and of those they hand over to: of an
agent that stands here when it starts, of one made for a call with that call. One that
dies is connected anew. MCPServerStreamableHttp works the same way.
"""

import sys
from pathlib import Path

from agents.mcp import MCPServerStdio
from agents.realtime import RealtimeAgent

warehouse = MCPServerStdio(
    name="warehouse",
    params={
        "command": sys.executable,
        "args": [str(Path(__file__).with_name("mcp_tools_server.py"))],
    },
    cache_tools_list=True,  # else each call asks for it while somebody waits
)

agent: RealtimeAgent[None] = RealtimeAgent(
    name="shop",
    instructions=(
        "You are on the phone for a shop that sells lamps. Short sentences. "
        "Look up what there is, never guess."
    ),
    mcp_servers=[warehouse],
)
