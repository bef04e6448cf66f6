"""Who may use the control API: token, rate, origin, size and form of what is sent.

Every answer leaves through here, so all errors are problems. What every answer of the
bridge has in its headers, the doors put there.
"""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from pydantic import ValidationError

from bridge.http.api.bodies import Body, Mistake
from bridge.http.api.problems import Problem, invalid
from bridge.http.connection_guard import ConnectionGuard, neighbours

log = structlog.get_logger()

BURST_SECONDS = 2.0
"""As many requests as come in so long at the rate may come at once."""

STRANGERS_PER_SECOND = 1.0
STRANGERS_BURST = 10.0
"""For those without the token. This spares us work; that nobody guesses the token its
length sees to: a right guess is never late."""

MAX_ADDRESSES = 1000
"""Remembered before the one is forgotten that has been silent for longest."""

MAX_LISTENERS = 100
"""Streams of events at once: each is a connection that stays."""

Model = TypeVar("Model", bound=Body)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Rates:
    """A bucket of tokens for each address. `now`: seconds of a monotonic clock."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address -> tokens left, at that moment; who asked last stands last."""

    def take(self, address: str, now: float) -> float:
        """0: go on. Else the seconds until there is a token in the bucket."""
        tokens, since = self._buckets.pop(address, (self._burst, now))
        left = min(tokens + (now - since) * self._per_second, self._burst)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._per_second
        self._buckets[address] = (left if wait else left - 1.0, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return wait


class ApiAuth:
    """Of one API. `origin`: of which pages may use it, where that is known; `refused`
    is told why somebody was (bridge.telemetry.metrics.REFUSALS)."""

    def __init__(
        self,
        token: str,
        guard: ConnectionGuard,
        refused: Callable[[str], None],
        origin: str | None = None,
    ) -> None:
        """ValueError without a token: it would let anybody in."""
        if not token:
            raise ValueError("the control API needs a token")
        self.guard = guard
        self._expected = token.encode()
        self._refused = refused
        self._origin = origin and _as_browsers_say(origin)
        per_second = guard.limits.api_per_second
        self._known = Rates(per_second, per_second * BURST_SECONDS)
        self._strangers = Rates(STRANGERS_PER_SECOND, STRANGERS_BURST)
        self._listeners = 0

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        try:
            known = has_token(request, self._expected)
            self._check_rate(request, known)
            if not known:
                self._note_refusal("token")
                raise _no_token(request)
            self._check_origin(request)
            return await handler(request)
        except Problem as problem:
            return problem.response()
        except web.HTTPException as error:
            return _problem_of(error).response()
        except Exception:
            # Ours to mend. What was asked for is in the traceback's frames, not here.
            log.exception("api_failed", method=request.method)
            return Problem(500, "internal", "Something broke here").response()

    @contextmanager
    def listening(self, request: web.Request) -> Iterator[None]:
        """While an answer lasts as long as its call. Problem where too many do."""
        if self._listeners >= MAX_LISTENERS:
            self.guard.hit("api_rate")
            raise Problem(429, "rate", "Too many listen to events")
        self._listeners += 1
        try:
            self.guard.in_call(request)
            yield
        finally:
            self._listeners -= 1

    def _check_rate(self, request: web.Request, known: bool) -> None:
        """Behind a proxy that nobody named all have one address: what strangers ask is
        counted apart, so that they cannot keep out who has the token."""
        rates = self._known if known else self._strangers
        who = neighbours(self.guard.address_of(request))
        wait = rates.take(who, time.monotonic())
        if wait:
            self.guard.hit("api_rate")
            later = {"Retry-After": str(math.ceil(wait))}
            raise Problem(429, "rate", "Too many requests", headers=later)

    def _check_origin(self, request: web.Request) -> None:
        """No page of another site: no browser is to be made to speak for its user."""
        headers = request.headers
        same_site = headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        origins = headers.getall("Origin", [])
        if not same_site or not all(self._is_own(it, request) for it in origins):
            self._note_refusal("origin")
            raise Problem(403, "origin", "Pages of other origins may not use the API")

    def _note_refusal(self, why: str) -> None:
        log.warning("api_refused", why=why)
        self._refused(why)

    def _is_own(self, origin: str, request: web.Request) -> bool:
        """The Host is no proof where the origin is known: it is what a page says whose
        name was made to lead here."""
        if self._origin:
            return _as_browsers_say(origin) == self._origin
        return _host(origin) == request.host.lower()


API_AUTH = web.AppKey("gate", ApiAuth)
"""The application's own: what is read and sent is held to its limits."""


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as this model; Problem for what is none, or not such a one."""
    raw = await _read(request)
    if not raw and not model.model_fields:
        return model()
    if request.content_type != "application/json":
        raise Problem(415, "media-type", "The body is to be application/json")
    if "Content-Encoding" in request.headers:
        raise Problem(415, "encoding", "The body is to come as it is, not packed")
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
    guard = request.app[API_AUTH].guard
    limits = guard.limits
    raw = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.content.iter_any():
                raw += piece
                if len(raw) > limits.body_bytes:
                    guard.hit("body_bytes")
                    title = f"A body has {limits.body_bytes} bytes at most"
                    raise Problem(413, "too-large", title)
    except TimeoutError:
        guard.hit("body_slow")
        raise Problem(408, "too-slow", "The body did not come in time") from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(400, "body", "The body cannot be read") from None
    return bytes(raw)


def has_token(request: web.Request, expected: bytes) -> bool:
    """`Authorization: Bearer <token>`; takes as long whatever is given."""
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


def _as_browsers_say(origin: str) -> str:
    """In lower case, and without a port that needs no saying."""
    origin = origin.lower()
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


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
