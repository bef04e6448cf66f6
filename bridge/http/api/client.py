"""A client of the control API, for the commands: `bridge call` places a call on a
running bridge, `bridge fallback` uses the fallback switch."""

from typing import Any

import aiohttp

SECONDS = 30.0
"""Time limit of the request: Twilio may queue it before it accepts a call."""


class ApiError(Exception):
    """The bridge did not do it; the message gives the reason for the user."""


async def place_call(url: str, token: str, body: dict[str, Any]) -> str:
    """Places a call through the bridge at `url`; returns the call's SID."""
    return str((await _ask(url, token, "POST", "/calls", body))["call_sid"])


async def get_fallback(url: str, token: str) -> dict[str, Any]:
    """The fallback switch of the bridge at `url` and its fleet."""
    return await _ask(url, token, "GET", "/fallback")


async def set_fallback(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    return await _ask(url, token, "PUT", "/fallback", body)


async def _ask(
    url: str, token: str, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    try:
        async with (
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {token}"},
                timeout=aiohttp.ClientTimeout(total=SECONDS),
            ) as http,
            http.request(method, f"{url.rstrip('/')}/api{path}", json=body) as response,
        ):
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ApiError(f"no bridge answers at {url}: {type(error).__name__}") from None
    except ValueError:
        raise ApiError(f"the server at {url} is not a bridge") from None
    if response.status not in (200, 201):
        raise ApiError(_problem_text(answer) or f"HTTP {response.status}")
    if not isinstance(answer, dict) or answer.keys().isdisjoint(("call_sid", "on")):
        raise ApiError(f"the server at {url} is not a bridge")
    return answer


def _problem_text(problem: Any) -> str:
    """A problem document (RFC 9457) as one or two sentences."""
    if not isinstance(problem, dict):
        return ""
    errors = problem.get("errors") or []
    wrong = "; ".join(f"{it.get('at')}: {it.get('what')}" for it in errors)
    parts = (problem.get("title"), problem.get("detail"), wrong)
    return " - ".join(str(part) for part in parts if part)
