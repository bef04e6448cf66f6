"""A client of the control API: `bridge call` uses it to place a call on a running
bridge."""

from typing import Any

import aiohttp

SECONDS = 30.0
"""Time limit of the request: Twilio may queue it before it accepts a call."""


class ApiError(Exception):
    """The bridge did not place the call; the message gives the reason for the user."""


async def place_call(url: str, token: str, body: dict[str, Any]) -> str:
    """Places a call through the bridge at `url`; returns the call's SID."""
    try:
        async with (
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {token}"},
                timeout=aiohttp.ClientTimeout(total=SECONDS),
            ) as http,
            http.post(f"{url.rstrip('/')}/api/calls", json=body) as response,
        ):
            answer = await response.json(content_type=None)
            if response.status == 201:
                return str(answer["call_sid"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ApiError(f"no bridge answers at {url}: {type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        raise ApiError(f"the server at {url} is not a bridge") from None
    raise ApiError(_problem_text(answer) or f"HTTP {response.status}")


def _problem_text(problem: Any) -> str:
    """A problem document (RFC 9457) as one or two sentences."""
    if not isinstance(problem, dict):
        return ""
    errors = problem.get("errors") or []
    wrong = "; ".join(f"{it.get('at')}: {it.get('what')}" for it in errors)
    parts = (problem.get("title"), problem.get("detail"), wrong)
    return " - ".join(str(part) for part in parts if part)
