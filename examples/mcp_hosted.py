"""Tools of a hosted MCP server. The model's server calls them, not the bridge.

Offline:  .venv/bin/bridge demo --agent examples/mcp_hosted.py:agent
For real: BRIDGE_AGENT=examples/mcp_hosted.py:agent

Offline, the fake model acts as if the server existed and had one tool, `look_up`.
"""

from agents import (
    HostedMCPTool,
    MCPToolApprovalFunctionResult,
    MCPToolApprovalRequest,
)
from agents.realtime import RealtimeAgent

READS = ("look_up", "search", "list_tables")


def approve(request: MCPToolApprovalRequest) -> MCPToolApprovalFunctionResult:
    """Called before each use of a tool: tools that only read may run, others may not.

    Without `on_approval_request` the approval works as for your own tools: with the
    event `tool_approval_required`, LiveCall.approve, the control API.
    """
    if request.data.name in READS:
        return {"approve": True}
    return {"approve": False, "reason": "Bookings are made by a person. Offer one."}


tables = HostedMCPTool(
    tool_config={
        "type": "mcp",
        "server_label": "tables",
        "server_url": "https://mcp.example.com/tables",  # yours
        # "authorization": os.environ["TABLES_TOKEN"],
        "require_approval": "always",
    },
    on_approval_request=approve,
)

agent: RealtimeAgent[None] = RealtimeAgent(
    name="restaurant",
    instructions="You are on the phone for a restaurant. Short sentences.",
    tools=[tables],
)
