"""Who may use the control API: token, rate, origin, size and form of what is sent.

Every answer leaves through here, so all errors are problems and nothing is cached.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from pydantic import ValidationError

from bridge.console.bodies import Body, Mistake
from bridge.console.problems import Problem, invalid

log = structlog.get_logger()

PER_SECOND = 20.0
BURST = 40.0
"""Requests of one address, those with the token and those without counted apart: a
rate, and how many may come at once."""

MAX_ADDRESSES = 1000
"""Remembered before those are forgotten that have rested."""

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Model = TypeVar("Model", bound=Body)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Rates:
    """A bucket of tokens for each address. `now`: seconds of a monotonic clock."""

    def __init__(self, per_second: float = PER_SECOND, burst: float = BURST) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}
        """Address -> tokens left, at that moment."""

    def take(self, address: str, now: float) -> float:
        """0: go on. Else the seconds until there is a token in the bucket."""
        if len(self._buckets) >= MAX_ADDRESSES and address not in self._buckets:
            self._forget(now)
        left = self._left(address, now)
        if left < 1.0:
            return (1.0 - left) / self._per_second
        self._buckets[address] = (left - 1.0, now)
        return 0.0

    def _left(self, address: str, now: float) -> float:
        tokens, since = self._buckets.get(address, (self._burst, now))
        return min(tokens + (now - since) * self._per_second, self._burst)

    def _forget(self, now: float) -> None:
        rested = [it for it in self._buckets if self._left(it, now) >= self._burst]
        for address in rested:
            del self._buckets[address]


def gate(token: str, rates: Rates) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The API's middleware. ValueError without a token: it would let anybody in."""
    if not token:
        raise ValueError("the control API needs a token")
    expected = token.encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            known = _has_token(request, expected)
            _check_rate(request, rates, known)
            if not known:
                raise _no_token(request)
            _check_origin(request)
            response = await handler(request)
        except Problem as problem:
            response = problem.response()
        except web.HTTPException as error:
            response = _problem_of(error).response()
        except Exception:
            # Ours to mend. What was asked for is in the traceback's frames, not here.
            log.exception("api_failed", method=request.method)
            response = Problem(500, "internal", "Something broke here").response()
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guard


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as this model; Problem for what is none, or not such a one."""
    raw = await _read(request)
    if not raw and not model.model_fields:
        return model()
    if request.content_type != "application/json":
        raise Problem(415, "media-type", "The body is to be application/json")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        mistakes = [
            Mistake(at=".".join(map(str, it["loc"])), what=it["msg"])
            for it in error.errors(
                include_url=False, include_context=False, include_input=False
            )
        ]
        if any(it["type"] == "json_invalid" for it in error.errors()):
            title = "The body is no JSON"
            raise Problem(400, "json", title, errors=mistakes) from None
        raise invalid(mistakes) from None


async def _read(request: web.Request) -> bytes:
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.content.iter_any():
                raw += piece
                if len(raw) > MAX_BODY_BYTES:
                    raise Problem(
                        413, "too-large", f"A body has {MAX_BODY_BYTES} bytes at most"
                    )
    except TimeoutError:
        raise Problem(408, "too-slow", "The body did not come in time") from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(400, "body", "The body cannot be read") from None
    return bytes(raw)


def _check_rate(request: web.Request, rates: Rates, known: bool) -> None:
    """Behind a proxy all have one address: what strangers ask is counted apart, so that
    they cannot keep out who has the token."""
    who = f"{'known' if known else 'stranger'} {request.remote}"
    wait = rates.take(who, time.monotonic())
    if wait:
        raise Problem(
            429,
            "rate",
            "Too many requests",
            headers={"Retry-After": str(math.ceil(wait))},
        )


def _has_token(request: web.Request, expected: bytes) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # As bytes: a header may hold what is no ASCII, which compare_digest refuses.
    token = given.strip().encode("utf-8", "surrogateescape")
    return scheme.lower() == "bearer" and hmac.compare_digest(token, expected)


def _no_token(request: web.Request) -> Problem:
    challenge = 'Bearer realm="bridge"'
    if request.headers.get("Authorization"):
        challenge += ', error="invalid_token"'
    return Problem(
        401,
        "token",
        "The API's token is needed",
        "Send it as `Authorization: Bearer <token>`.",
        headers={"WWW-Authenticate": challenge},
    )


def _check_origin(request: web.Request) -> None:
    """No page of another site: no browser is to be made to speak for its user."""
    origin = request.headers.get("Origin")
    if origin is not None and _host(origin) != request.host.lower():
        raise Problem(403, "origin", "Pages of other origins may not use the API")


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _problem_of(error: web.HTTPException) -> Problem:
    """aiohttp's own: no such path, not this method."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            405,
            "method",
            "This path does not know the method",
            f"It knows {allowed}.",
            headers={"Allow": allowed},
        )
    if isinstance(error, web.HTTPNotFound):
        return Problem(404, "path", "There is no such path")
    return Problem(error.status, "http", error.reason)
