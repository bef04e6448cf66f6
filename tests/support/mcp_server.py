"""A local MCP server over stdio, for the tests: it adds numbers and returns its pid."""

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def pid() -> int:
    """The ID of the server's process."""
    return os.getpid()


if __name__ == "__main__":
    server.run("stdio")
