"""Access to the control API: token, rate, size and form of requests.

Every answer passes through here, so every error becomes a problem document. The headers
that every answer of the bridge has are set by connection_guard.py.
"""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog
from aiohttp import web
from pydantic import ValidationError

from bridge.http.api.bodies import Body, Mistake
from bridge.http.api.problems import Problem, invalid
from bridge.http.authenticated import mark_authenticated
from bridge.http.connection_guard import ConnectionGuard, client_network

log = structlog.get_logger()

BURST_SECONDS = 2.0
"""Burst size: as many requests as the rate allows in this time may come at once."""

NO_TOKEN_PER_SECOND = 1.0
NO_TOKEN_BURST = 10.0
"""Rate for clients without the token. It only saves work: the token's length prevents
guessing. A request with the correct token is not counted here."""

MAX_ADDRESSES = 1000
"""Most addresses that are remembered; beyond that the address with the oldest last
request is forgotten."""

MAX_LISTENERS = 100
"""Event streams at once; each is a connection that stays open."""

Model = TypeVar("Model", bound=Body)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Rates:
    """A token bucket per address. `now`: monotonic seconds."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address -> (tokens left, time of that count), in order of the last
        request."""

    def take(self, address: str, now: float) -> float:
        """Takes a token. Returns 0 if there was one, else the seconds until there is
        one."""
        tokens, since = self._buckets.pop(address, (self._burst, now))
        left = min(tokens + (now - since) * self._per_second, self._burst)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._per_second
        self._buckets[address] = (left if wait else left - 1.0, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return wait


class ApiAuth:
    """Checks every request of one API. `refused` is called with the reason of each
    refusal (bridge.telemetry.metrics.REFUSALS)."""

    def __init__(
        self,
        token: str,
        guard: ConnectionGuard,
        refused: Callable[[str], None],
    ) -> None:
        """ValueError if the token is empty, because an empty token would admit every
        client."""
        if not token:
            raise ValueError("the control API needs a token")
        self.guard = guard
        self._expected = token.encode()
        self._refused = refused
        per_second = guard.limits.api_per_second
        self._with_token = Rates(per_second, per_second * BURST_SECONDS)
        self._without_token = Rates(NO_TOKEN_PER_SECOND, NO_TOKEN_BURST)
        self._listeners = 0

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        try:
            known = has_token(request, self._expected)
            self.check_rate(request, known)
            if not known:
                log.warning("api_refused", why="token")
                self._refused("token")
                raise _no_token(request)
            mark_authenticated(request)
            return await handler(request)
        except Problem as problem:
            return problem.response()
        except web.HTTPException as error:
            return _problem_of(error).response()
        except Exception:
            # A bug. The log entry names the method only; the request's content may
            # still stand in the traceback's frames.
            log.exception("api_failed", method=request.method)
            return Problem(500, "internal", "Internal error").response()

    @contextmanager
    def listening(self, request: web.Request) -> Iterator[None]:
        """Context of an event stream, which lasts as long as its call. Problem if too
        many are open."""
        if self._listeners >= MAX_LISTENERS:
            self.guard.hit("api_rate")
            raise Problem(429, "rate", "Too many event streams are open")
        self._listeners += 1
        try:
            self.guard.exempt_from_limits(request)
            yield
        finally:
            self._listeners -= 1

    def check_rate(self, request: web.Request, known: bool) -> None:
        """Problem if the client, which is `known` by the token, sends too many
        requests. Behind a proxy that is not configured as trusted, all clients have one
        address. Clients without the token are therefore counted separately, so that
        they cannot lock out clients with it."""
        rates = self._with_token if known else self._without_token
        client = client_network(self.guard.address_of(request))
        wait = rates.take(client, time.monotonic())
        if wait:
            self.guard.hit("api_rate")
            later = {"Retry-After": str(math.ceil(wait))}
            raise Problem(429, "rate", "Too many requests", headers=later)


API_AUTH = web.AppKey("api_auth", ApiAuth)
"""The application's ApiAuth; its limits hold for request bodies and event streams."""


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as this model. Problem if it is not JSON or does not fit the
    model."""
    return parsed(await raw_body(request, model), model)


async def raw_body(request: web.Request, model: type[Body]) -> bytes:
    """The body of a request that takes this model; empty if it may be omitted."""
    raw = await _read(request)
    if not raw and not model.model_fields:
        return raw
    if request.content_type != "application/json":
        raise Problem(415, "media-type", "The body must be application/json")
    if "Content-Encoding" in request.headers:
        raise Problem(415, "encoding", "The body must not be compressed")
    return raw


def parsed(raw: bytes, model: type[Model]) -> Model:
    """The body as this model. Problem: as `body_of`."""
    if not raw and not model.model_fields:
        return model()
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
            title = "The body is not JSON"
            raise Problem(400, "json", title, errors=mistakes) from None
        raise invalid(mistakes) from None


async def _read(request: web.Request) -> bytes:
    guard = request.app[API_AUTH].guard
    limits = guard.limits
    raw = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.content.iter_any():
                raw += piece
                if len(raw) > limits.body_bytes:
                    guard.hit("body_bytes")
                    title = f"The body is larger than {limits.body_bytes} bytes"
                    raise Problem(413, "too-large", title)
    except TimeoutError:
        guard.hit("body_slow")
        raise Problem(408, "too-slow", "The body did not arrive in time") from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(400, "body", "The body cannot be read") from None
    return bytes(raw)


def has_token(request: web.Request, expected: bytes) -> bool:
    """`Authorization: Bearer <token>`. Takes the same time whatever the token is."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # As bytes: a header may contain non-ASCII, which compare_digest refuses as text.
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


def _problem_of(error: web.HTTPException) -> Problem:
    """aiohttp's own errors, such as an unknown path or a wrong method."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            405,
            "method",
            "The path does not allow this method",
            f"It allows {allowed}.",
            headers={"Allow": allowed},
        )
    if isinstance(error, web.HTTPNotFound):
        return Problem(404, "path", "There is no such path")
    return Problem(error.status, "http", error.reason)
