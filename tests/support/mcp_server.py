"""A local MCP server over stdio, for the tests: adds, tells its pid, dies when told."""

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def pid() -> int:
    """The process that answers."""
    return os.getpid()


if __name__ == "__main__":
    server.run("stdio")
