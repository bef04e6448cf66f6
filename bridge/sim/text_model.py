"""A fake of OpenAI's Responses API, for text agents that a voice agent's tools call.

One fixed answer in one piece: no tool calls, no streaming. Requests are kept. It
imports nothing of the rest of `bridge`.
"""

import secrets
import time
from typing import Any, Self

from aiohttp import web

_PATH = "/v1"
_MAX_BYTES = 16 * 1024 * 1024
# characters of the question that the answer repeats, because it may be spoken
_SHORTEN_AT = 80


class TextModel:
    """`async with TextModel() as model:` - then OPENAI_BASE_URL is `model.url`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        """Request bodies, unchanged."""
        self.keys: list[str] = []
        """The Authorization header of each request."""
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}{_PATH}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MAX_BYTES)
        app.add_routes([web.post(f"{_PATH}/responses", self._respond)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, self._host, self._port).start()
        self._port = runner.addresses[0][1]
        self._runner = runner
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            return _refusal("The body is not JSON.", "invalid_json", None)
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            text = "Missing required parameter: 'model'."
            return _refusal(text, "missing_required_parameter", "model")
        if body.get("stream"):
            text = "This fake does not stream."
            return _refusal(text, "unsupported_value", "stream")
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        question = _question(body.get("input") or "")
        answer = (
            "I am the built-in text model, not a real one. I was asked: "
            f"{question[-_SHORTEN_AT:]}"
        )
        response = web.json_response(_response(body, answer))
        # Close the connection: a client may continue with another event loop.
        response.force_close()
        return response


def _question(given: Any) -> str:
    """The last line of the latest user message."""
    if isinstance(given, list):
        messages = [it.get("content", "") for it in given if it.get("role") == "user"]
        given = messages[-1] if messages else ""
    if isinstance(given, list):
        given = " ".join(part.get("text", "") for part in given)
    return str(given).strip().rpartition("\n")[2]


def _response(body: dict[str, Any], answer: str) -> dict[str, Any]:
    """Fields as in openai.types.responses.Response."""
    tokens_in, tokens_out = len(str(body.get("input"))) // 4, len(answer) // 4
    text = {"type": "output_text", "text": answer, "annotations": []}
    message = {
        "id": f"msg_{secrets.token_hex(8)}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    return {
        "id": f"resp_{secrets.token_hex(8)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "output": [message],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0),
        "usage": {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _refusal(message: str, code: str, param: str | None) -> web.Response:
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }
    return web.json_response({"error": error}, status=400)
