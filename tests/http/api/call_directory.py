"""The control API on a free port, with calls that the test defines.

Every answer is checked against the API's own OpenAPI document.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from bridge.agent.approvals import ApprovalRule
from bridge.agent.live import LiveCall
from bridge.app.fallback import FallbackSwitch
from bridge.app.outbound import CallStatus
from bridge.app.values import IpNetwork
from bridge.core.limits import Limits
from bridge.fleet import CallEntry
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.signing import FleetKey
from bridge.http.api import handlers, openapi
from bridge.http.api.auth import ApiAuth
from bridge.http.connection_guard import HEADERS, ConnectionGuard, secure_headers
from tests.support.call_control import FACTS, FakeCallControl, live_call

TOKEN = "a token of the tests"
SID = FACTS.call_sid
ELSEWHERE = "CA" + "9" * 32
DOCUMENT = openapi.document()


class FakeCalls:
    """bridge.http.api.handlers.Calls, with calls that the test puts there."""

    def __init__(self) -> None:
        self.here: dict[str, LiveCall] = {}
        self.known: list[CallEntry] = []
        self.placed: list[handlers.PlaceCall] = []
        self.placed_sid = "CA" + "5" * 32
        self.refused: handlers.Refused | None = None
        self.fails: Exception | None = None
        self.forgotten: list[str] = []
        self.keeps: OSError | None = None
        self.statuses: dict[str, CallStatus] = {}
        self.keys: list[str] = []
        self.fallback = FallbackSwitch(MemoryRegistry(), FleetKey(TOKEN), bool)

    def live(self, call_sid: str) -> LiveCall | None:
        return self.here.get(call_sid)

    async def entries(self) -> list[CallEntry]:
        if self.fails:
            raise self.fails
        return self.known

    async def instances(self) -> list[str]:
        return []

    async def status(self, call_sid: str) -> CallStatus | None:
        return self.statuses.get(call_sid)

    async def cancel(self, call_sid: str) -> CallStatus | None:
        return self.statuses.get(call_sid)

    async def place(self, wanted: handlers.PlaceCall, idempotency_key: str) -> str:
        self.keys.append(idempotency_key)
        if self.refused:
            raise self.refused
        self.placed.append(wanted)
        return self.placed_sid

    async def forget(self, call_sid: str) -> None:
        if self.keeps:
            raise self.keeps
        self.forgotten.append(call_sid)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class ApiClient:
    """A client of the API, with the calls and the recorded limits and refusals."""

    url: str
    http: aiohttp.ClientSession
    calls: FakeCalls
    line: FakeCallControl
    live: LiveCall
    hits: list[str]
    """Limits that were reached."""
    refused: list[str]
    """Reasons for which requests were refused."""
    auth: dict[str, str] = field(
        default_factory=lambda: {"Authorization": f"Bearer {TOKEN}"}
    )

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """`path` as in the document; {sid} is replaced by the call's SID."""
        options: dict[str, Any] = {"headers": {**self.auth, **(headers or {})}}
        if raw is not None:
            options["data"] = raw
        elif body is not None:
            options["json"] = body
        url = self.url + path.format(sid=SID)
        async with self.http.request(method, url, **options) as response:
            fields = {name.lower(): value for name, value in response.headers.items()}
            answer = Answer(response.status, fields, await response.text())
        check(method, path, answer)
        return answer

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def post(self, path: str, body: Any = None) -> Answer:
        return await self.ask("POST", path, body)


async def no_address() -> None:
    """There is no other instance that asks."""


def check(method: str, path: str, answer: Answer) -> None:
    """Asserts that the document describes this answer for the operation."""
    for name, value in HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert not [name for name in answer.headers if name.startswith("access-control")]
    described = _operation(method, path)
    if described is None:  # no such path or method
        assert answer.headers["content-type"].startswith("application/problem+json")
        return
    response = described["responses"][str(answer.status)]
    content = response.get("content")
    if content is None:
        assert answer.text == ""
        return
    [(media_type, body)] = content.items()
    assert answer.headers["content-type"].split(";")[0] == media_type
    schema = {**body["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json)


def _operation(method: str, path: str) -> Any:
    wanted = path.partition("?")[0].split("/")
    for known, operations in DOCUMENT["paths"].items():
        parts = known.split("/")
        if len(parts) == len(wanted) and all(
            ours == theirs or ours.startswith("{")
            for ours, theirs in zip(parts, wanted, strict=True)
        ):
            return operations.get(method.lower())
    return None


@asynccontextmanager
async def api(
    limits: Limits | None = None,
    rule: ApprovalRule | None = None,
    *,
    trusted: Sequence[IpNetwork] = (),
    records: bool = True,
) -> AsyncIterator[ApiClient]:
    """An API with one call of its own instance and one of another instance."""
    calls, line = FakeCalls(), FakeCallControl()
    async with live_call(line, rule=rule) as live:
        calls.here[SID] = live
        calls.known = [
            CallEntry(ELSEWHERE, "MZ" + "8" * 32, 1_700_000_000.0, "other"),
            CallEntry(SID, FACTS.stream_sid, 1_700_000_060.0),
        ]
        hits: list[str] = []
        refused: list[str] = []
        guard = ConnectionGuard(limits or Limits(), trusted, hits.append)
        auth = ApiAuth(TOKEN, guard, refused.append)
        app = web.Application()
        app.on_response_prepare.append(secure_headers)
        fleet = handlers.FleetAccess(MemoryRegistry(), None, no_address)
        forget = calls.forget if records else None
        app.add_subapp("/api", handlers.applications(calls, auth, fleet, forget).api())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        port = await guard.listen(runner, "127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as http:
                url = f"http://127.0.0.1:{port}/api"
                yield ApiClient(url, http, calls, line, live, hits, refused)
        finally:
            await guard.close()
            await runner.cleanup()
