"""A local MCP server over stdio, for the tests: it adds numbers and returns its pid.

It is written without the package `mcp`, whose import takes a second at each start.
examples/mcp_tools_server.py is a server with that package.
"""

import json
import os
import sys
from typing import Any

VERSION = "2025-06-18"
NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
TOOLS = [
    {
        "name": "add",
        "description": "Adds two numbers.",
        "inputSchema": {
            "type": "object",
            "properties": NUMBERS,
            "required": list(NUMBERS),
        },
    },
    {
        "name": "divide",
        "description": "Divides two numbers.",
        "inputSchema": {
            "type": "object",
            "properties": NUMBERS,
            "required": list(NUMBERS),
        },
    },
    {
        "name": "pid",
        "description": "The ID of the server's process.",
        "inputSchema": {"type": "object", "properties": {}},
    },
]


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "divide" and arguments["b"] == 0:
        text = f"{arguments['a']} cannot be divided by 0"
        return {"content": [{"type": "text", "text": text}], "isError": True}
    value = os.getpid() if name == "pid" else arguments["a"] + arguments["b"]
    return {"content": [{"type": "text", "text": str(value)}]}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    match method:
        case "initialize":
            return {
                "protocolVersion": VERSION,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "sums", "version": "1"},
            }
        case "tools/list":
            return {"tools": TOOLS}
        case "tools/call":
            return call(params["name"], params["arguments"])
        case "ping":
            return {}
    return None


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:  # a notification
            continue
        result = answer(message["method"], message.get("params") or {})
        told: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            told["error"] = {"code": -32601, "message": "Method not found"}
        else:
            told["result"] = result
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
