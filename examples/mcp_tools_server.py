"""A local MCP server, for mcp_local.py: a program that speaks MCP on stdin and stdout.

By itself: .venv/bin/python examples/mcp_tools_server.py
"""

from mcp.server.mcpserver import MCPServer

STOCK = {"lamp": 4, "bulb": 120, "shade": 0}

server = MCPServer("warehouse")


@server.tool()
def in_stock(article: str) -> str:
    """How many of an article there are: lamp, bulb or shade."""
    count = STOCK.get(article.strip().lower())
    return "no such article" if count is None else f"{count} in stock"


@server.tool()
def next_delivery() -> str:
    """When the next truck comes."""
    return "on Thursday morning"


if __name__ == "__main__":
    server.run("stdio")
