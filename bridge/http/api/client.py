"""The control API from outside: what `bridge call` asks a running bridge."""

from typing import Any

import aiohttp

SECONDS = 30.0
"""Twilio may have us wait for a turn before it takes a call."""


class ApiError(Exception):
    """The bridge did not do it; the message says why, for a person."""


async def place_call(url: str, token: str, body: dict[str, Any]) -> str:
    """Has the bridge at `url` call somebody; the call's SID."""
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
        raise ApiError(f"what answers at {url} is no bridge") from None
    raise ApiError(_told(answer) or f"HTTP {response.status}")


def _told(problem: Any) -> str:
    """RFC 9457, as a sentence or two."""
    if not isinstance(problem, dict):
        return ""
    errors = problem.get("errors") or []
    wrong = "; ".join(f"{it.get('at')}: {it.get('what')}" for it in errors)
    parts = (problem.get("title"), problem.get("detail"), wrong)
    return " - ".join(str(part) for part in parts if part)
