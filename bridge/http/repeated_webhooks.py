"""Repeated webhooks: a request with a signature that was seen before gets the first
answer and has no second effect.

The balancer sends a webhook again when an instance does not answer, and Twilio may do
so. Somebody who recorded a webhook can do so, too: its signature never expires. Two
requests of Twilio never have the same signature, because each URL that the bridge gives
to Twilio is used once (`Webhooks`) or its fields differ.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web

from bridge.app.background_tasks import BackgroundTasks
from bridge.fleet import CLAIM_BYTES, Registry, keys
from bridge.fleet.ignored import Ignored

ANSWERED_SECONDS = 4 * 3600.0
"""How long a signature is remembered: as long as a call of Twilio lasts unless the
account allows more. Afterwards the call is over, and its webhooks change nothing."""

ANSWER_SECONDS = 120.0
"""How long the answer itself is stored. It has phone numbers and a ticket. Twilio waits
15 s for an answer, so it repeats no request later."""

CLAIM_SECONDS = 6.0
"""Time for an answer. If an instance was killed while it answered, another one answers
after this time. The balancer waits 5 s for an instance."""

WAIT_SECONDS = 3.0
"""How long a repeated request waits for the first one; then the balancer asks again."""

POLL_SECONDS = 0.05

MAX_ANSWER_BYTES = 64 * 1024
"""Twilio reads no longer document."""

_ANSWERED = re.compile(rb"answered ([\da-f]{32})")
_ANSWER = re.compile(r"([2-5]\d\d) (<.*)?", re.DOTALL)
"""Webhooks are answered with a document or without any text."""


class NotRepeated(Exception):
    """The signature was used for another request, or too long ago."""


class RepeatedWebhooks:
    """`count` is called with one of bridge.telemetry.metrics.REPEATS. A stored text
    that no bridge has written counts as missing, and is reported to `ignored`."""

    def __init__(
        self,
        registry: Registry,
        background_tasks: BackgroundTasks,
        count: Callable[[str], None],
        ignored: Ignored,
    ) -> None:
        self._registry = registry
        self._ignored = ignored
        self._tasks = background_tasks
        self._count = count

    async def answer(
        self,
        signature: str,
        content: str,
        first: Callable[[], Awaitable[web.Response]],
    ) -> web.Response:
        """The answer of `first`, which is called for the first request with this
        signature, and again if it failed. `content`: what was signed. NotRepeated: see
        there. 503 while the first request is being answered."""
        key, content = _digest(signature), _digest(content)
        answered = await self._claim(key)
        if answered is None:
            return await self._answer_first(key, content, first)
        if answered != content:
            raise NotRepeated
        name = f"webhook_answer:{key}"
        stored = await self._registry.get(name)
        if stored is None:
            raise NotRepeated
        response = _response(stored)
        if response is None:
            self._ignored.note(keys.STORE + name, "form")
            raise NotRepeated
        self._count("answered")
        return response

    async def _claim(self, key: str) -> str | None:
        """None: this is the first request. Else the content of the answered one."""
        name, until = f"webhook:{key}", time.monotonic() + WAIT_SECONDS
        while not await self._registry.set_if_absent(name, CLAIM_SECONDS):
            value = await self._registry.get(name) or b""
            if answered := _ANSWERED.fullmatch(value):
                return answered[1].decode()
            if len(value) not in (0, CLAIM_BYTES):
                self._ignored.note(keys.STORE + name, "form")
                await self._registry.delete(name)
            if time.monotonic() > until:
                self._count("waited")
                raise web.HTTPServiceUnavailable(text="the first request is answered")
            await asyncio.sleep(POLL_SECONDS)
        if self._registry.shared and not await self._registry.reachable():
            # Another instance may have answered the same request.
            self._count("unknown")
        return None

    async def _answer_first(
        self, key: str, content: str, first: Callable[[], Awaitable[web.Response]]
    ) -> web.Response:
        try:
            response = await first()
        except BaseException:
            self._start(self._registry.delete(f"webhook:{key}"))
            raise
        # Not awaited: the answer does not wait for Redis a second time.
        self._start(self._store(key, content, response))
        return response

    async def _store(self, key: str, content: str, response: web.Response) -> None:
        registry, text = self._registry, f"{response.status} {response.text or ''}"
        await registry.put(f"webhook_answer:{key}", text.encode(), ANSWER_SECONDS)
        answered = b"answered " + content.encode()
        await registry.put(f"webhook:{key}", answered, ANSWERED_SECONDS)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work, "webhook answer")


def _response(stored: bytes) -> web.Response | None:
    """None: no bridge has written this."""
    try:
        found = _ANSWER.fullmatch(stored.decode())
    except UnicodeDecodeError:
        return None
    if found is None or len(stored) > MAX_ANSWER_BYTES:
        return None
    status, text = int(found[1]), found[2]
    if text is None:
        return web.Response(status=status)
    return web.Response(status=status, text=text, content_type="text/xml")


def _digest(text: str) -> str:
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:32]
