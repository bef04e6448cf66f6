"""Tools of a local MCP server: a program on this machine.

Offline:  .venv/bin/bridge demo --agent examples/mcp_local.py:agent
For real: BRIDGE_AGENT=examples/mcp_local.py:agent

The bridge connects the MCP servers of your agents and of the agents that they hand over
to. For an agent in a module this happens when the bridge starts, for an agent that is
made for a call when that call starts. The bridge reconnects a server that dies.
MCPServerStreamableHttp works the same way.
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
    cache_tools_list=True,  # else each call requests it while the caller waits
)

agent: RealtimeAgent[None] = RealtimeAgent(
    name="shop",
    instructions=(
        "You are on the phone for a shop that sells lamps. Short sentences. "
        "Look up what there is, never guess."
    ),
    mcp_servers=[warehouse],
)
