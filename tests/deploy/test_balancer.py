"""deploy/haproxy.cfg: HAProxy accepts it, and calls get what they need."""

import asyncio
import ipaddress
import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from yarl import URL

from bridge.core.limits import Limits
from bridge.records import standard_webhooks
from bridge.sim.ports import free_port
from scripts import fleet
from tests.e2e.bridge import RunningBridge, bridge
from tests.e2e.test_attacks import (
    ACCOUNT,
    CALL,
    FORM,
    HOST,
    OTHER_CALL,
    PUBLIC,
    TOKEN,
    sign,
    stream_path,
)

PROOF = "Bridge-Authenticated"
API_TOKEN = "a token of the tests"
WEBHOOK_SECRET = "whsec_cHV0IDI0IHRvIDY0IHJhbmRvbSBieXRlcyBoZXJl"
CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
SECTIONS = {
    section.split()[1]: section
    for section in re.split(
        r"^(?=defaults |frontend |backend )", CONFIG.read_text(), flags=re.M
    )[1:]
}

SERVERS = "".join(
    f"backend {it} from for-{it}\n    server bridge1 127.0.0.1:1\n"
    for it in fleet.BACKENDS
)


@pytest.mark.parametrize("by", ["dns", "list"])
def test_haproxy_accepts_the_configuration(by: str, tmp_path: Path) -> None:
    """HAProxy starts without a warning in a container, a cluster and on a machine."""
    (tmp_path / "servers.cfg").write_text(SERVERS)
    kept = {it: os.environ[it] for it in os.environ if not it.startswith("BALANCER_")}
    more = {"BALANCER_BRIDGES": "bridge:8080"} if by == "dns" else {}
    files = [] if by == "dns" else ["-f", str(tmp_path / "servers.cfg")]
    done = subprocess.run(
        [fleet.program("haproxy"), "-c", "-f", str(CONFIG), *files],
        env={**kept, **more},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_full_instance_still_gets_webhooks() -> None:
    """Webhooks go to every live instance, streams to every instance that does not
    drain."""
    assert "uri /healthz" in SECTIONS["for-webhooks"]
    assert "uri /readyz" in SECTIONS["streams"]
    assert "(ready|full)" in SECTIONS["streams"]
    assert "balance leastconn" in SECTIONS["for-media"]


def test_the_balancer_does_not_end_long_streams() -> None:
    """The balancer cuts off no long call, and no call on a draining instance."""
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    hours = re.search(r"timeout tunnel (\d+)h", SECTIONS["streams"])

    assert hours is not None and int(hours[1]) >= 4
    assert not [it for it in lines if it[:1] != "#" and "on-marked-down" in it]


def test_webhooks_are_answered_before_twilio_gives_up() -> None:
    """If an instance hangs, a caller waits some seconds and does not lose the call."""
    seconds = re.search(r"timeout server (\d+)s", SECTIONS["for-webhooks"])

    assert seconds is not None and 2 * int(seconds[1]) < 15


def test_api_requests_are_not_retried() -> None:
    """A repeated request could place a call twice: only webhooks are retried at another
    instance. A path of BRIDGE_PUBLIC_URL changes that no more than where streams go."""
    retry = "disable-l7-retry if { path,url_dec -m dir api }"
    assert retry in SECTIONS["for-webhooks"]
    assert "acl stream path,url_dec -m dir media" in SECTIONS["phone"]


# --- limits for clients ---


def lines_of(name: str) -> list[str]:
    return [line.strip() for line in SECTIONS[name].splitlines()]


def test_request_heads_have_limits_of_time_and_size() -> None:
    """A slow client loses its connection, and a bridge accepts every head that the
    balancer accepts."""
    text = CONFIG.read_text()
    bufsize, rewrite, maxhdr = (
        int(re.findall(rf"^ +tune\.{it} (\d+)$", text, re.M)[0])
        for it in ("bufsize", "maxrewrite", "http.maxhdr")
    )

    assert "timeout http-request 5s" in lines_of("base")
    assert bufsize - rewrite < Limits().header_bytes
    assert maxhdr < 128  # aiohttp's own


class BalancedBridge:
    """A balancer with a fake bridge behind it; `seen` has the headers of requests."""

    def __init__(self) -> None:
        self.port = free_port()
        self.seen: list[CIMultiDictProxy[str]] = []
        self.full: list[str] = []
        """Paths of which one more request gets 503."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """403 without a good signature, except for the health checks."""
        self.seen.append(request.headers)
        if request.path in self.full:
            self.full.remove(request.path)
            raise web.HTTPServiceUnavailable
        if request.path == "/readyz":
            return web.json_response({"status": "ready"})
        if request.path == "/media":
            if request.headers.get("X-Twilio-Signature") != "good":
                raise web.HTTPForbidden
            stream = web.WebSocketResponse()
            stream.headers[PROOF] = "1"
            await stream.prepare(request)
            async for message in stream:
                await stream.send_str(message.data)
            return stream
        if "good" in request.headers.get("X-Twilio-Signature", ""):
            return web.Response(headers={PROOF: "1"})
        public = request.path == "/healthz" or request.path.startswith("/console")
        return web.Response(status=200 if public else 403)

    async def ask(
        self, origin: str, path: str = "/voice", **headers: str
    ) -> tuple[int, dict[str, list[str]]]:
        """The status (0: no answer), and the headers that the bridge received."""
        connector = aiohttp.TCPConnector(local_addr=(origin, 0), force_close=True)
        named = {it.replace("_", "-"): value for it, value in headers.items()}
        self.seen.clear()
        async with aiohttp.ClientSession(connector=connector) as http:
            url = f"http://{fleet.HOST}:{self.port}{path}"
            try:
                raw = URL(url, encoded=True)
                async with http.post(raw, headers=named) as answer:
                    seen = [it for it in self.seen if it.get("Host") != "localhost"]
                    found = seen[-1] if seen else CIMultiDict[str]()
                    return answer.status, {it: found.getall(it) for it in found}
            except aiohttp.ClientConnectionError:
                return 0, {}


@asynccontextmanager
async def balanced_bridge(folder: Path, **env: str) -> AsyncIterator[BalancedBridge]:
    there = BalancedBridge()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", there.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, fleet.HOST, 0).start()
    try:
        async with balancer(folder, there, runner.addresses[0][1], **env):
            yield there
    finally:
        await runner.cleanup()


@asynccontextmanager
async def balancer(
    folder: Path, there: BalancedBridge, port: int, **env: str
) -> AsyncIterator[None]:
    """HAProxy on `there.port` in front of the bridge on `port`."""
    servers = folder / "servers.cfg"
    servers.write_text(SERVERS.replace("127.0.0.1:1", f"{fleet.HOST}:{port}"))
    program = fleet.program("haproxy")
    log = folder / "haproxy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(program, "-db", "-f", str(CONFIG), "-f", str(servers)),
            env={
                "BALANCER_BIND": f"{fleet.HOST}:{there.port}",
                "BALANCER_STATS": f"{fleet.HOST}:{free_port()}",
                "BALANCER_MAXCONN": "1000",
                **env,
            },
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(60):
            while (await there.ask("127.0.0.9", "/healthz"))[0] != 200:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_bridge_gets_one_client_address(tmp_path: Path) -> None:
    """The bridge gets the client's real address. The balancer ignores forwarding
    headers of clients and trusts those of the configured proxies."""
    proxies = "127.0.0.3 127.0.0.4/32"
    said = {"X_Forwarded_For": "192.0.2.1, 192.0.2.2", "Forwarded": "for=192.0.2.1"}
    async with balanced_bridge(tmp_path, BALANCER_PROXIES=proxies) as there:
        _, stranger = await there.ask("127.0.0.2", **said, Proxy="evil", TE="trailers")
        _, proxied = await there.ask("127.0.0.4", **said)
        _, silent = await there.ask("127.0.0.3")

    assert stranger["X-Forwarded-For"] == ["127.0.0.2"]
    assert not {"Forwarded", "Proxy", "TE"} & {*stranger}
    assert proxied["X-Forwarded-For"] == ["192.0.2.2"]
    assert silent["X-Forwarded-For"] == ["127.0.0.3"]


async def test_a_webhook_without_room_is_tried_again(tmp_path: Path) -> None:
    """An instance without room answers 503, and the next one gets the SIP call. Only a
    request of the control API is not repeated: it could place two calls."""
    api = ["/api/calls", "/phone/api/calls", "/%61pi/calls"]
    paths = ["/voice", "/openai/webhook", *api]
    good = {"X_Twilio_Signature": "good"}
    async with balanced_bridge(tmp_path) as there:
        there.full += [*paths, "/api/calls"]
        answers = [(await there.ask("127.0.0.2", it, **good))[0] for it in paths]

    assert answers == [200, 200, 503, 503, 503]


async def test_an_address_with_many_refusals_is_blocked(tmp_path: Path) -> None:
    """Nobody can try many tokens. Signed requests still pass from a blocked address,
    and an address with an accepted request is not blocked any more."""
    async with balanced_bridge(
        tmp_path, BALANCER_ERRORS="10", BALANCER_PROXIES="127.0.0.3"
    ) as it:
        statuses = [(await it.ask("127.0.0.2", "/api/calls"))[0] for _ in range(15)]
        assert statuses[:11] == [403] * 11
        assert statuses[11:] == [429] * 4

        assert (await it.ask("127.0.0.5", "/api/calls"))[0] == 403
        behind_proxy = {"X_Forwarded_For": "127.0.0.2"}
        assert (await it.ask("127.0.0.3", **behind_proxy))[0] == 429
        behind_proxy = {"X_Forwarded_For": "192.0.2.1"}
        assert (await it.ask("127.0.0.3", **behind_proxy))[0] == 403

        assert (await it.ask("127.0.0.2", X_Twilio_Signature="bad"))[0] == 403
        assert (await it.ask("127.0.0.2", X_Twilio_Signature="good"))[0] == 200
        assert (await it.ask("127.0.0.2", "/api/calls"))[0] == 403


async def test_connections_of_an_unknown_address_are_limited(tmp_path: Path) -> None:
    """An address without a call may open some connections; Twilio's may open
    hundreds."""
    async with balanced_bridge(tmp_path, BALANCER_CONNECTIONS="20") as there:
        async with held(there, "127.0.0.2", 30):
            assert (await there.ask("127.0.0.2"))[0] == 0
            assert (await there.ask("127.0.0.5"))[0] == 403

        url = f"ws://{fleet.HOST}:{there.port}/media"
        headers = {"X-Twilio-Signature": "good"}
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(
                    connect(
                        url,
                        additional_headers=headers,
                        local_addr=("127.0.0.6", 0),
                        proxy=None,
                    )
                )
                for _ in range(60)
            ]
            assert (await there.ask("127.0.0.6"))[0] == 403
            for stream in streams:
                await stream.send("media")
                assert await stream.recv() == "media"


async def test_public_pages_do_not_make_an_address_known(tmp_path: Path) -> None:
    """Everybody gets 200 for a page, an asset or a health check, so none of them lifts
    the limits."""
    async with balanced_bridge(tmp_path, BALANCER_ERRORS="5") as there:
        for path in ("/console", "/console/app.js", "/console?Bridge-Authenticated=1"):
            answer = await there.ask("127.0.0.2", path, Bridge_Authenticated="1")
            assert answer[0] == 200
        for path in ("/healthz", "/healthz?x", "/%68ealthz", "/voice", "/voice"):
            for _ in range(4):
                await there.ask("127.0.0.2", path)
        assert (await there.ask("127.0.0.2"))[0] == 429


# --- which answers of a real bridge lift the limits ---


class RealBridge:
    """A balancer in front of a real bridge; each client has an address of its own."""

    def __init__(self, there: BalancedBridge, place: RunningBridge) -> None:
        self.place = place
        self._url = f"http://{fleet.HOST}:{there.port}"
        self._clients = itertools.count(20)

    def client(self) -> str:
        return f"127.0.0.{next(self._clients)}"

    async def ask(
        self, client: str, path: str, form: Any = None, **headers: str
    ) -> int:
        """The status of the answer; 0 if the balancer refused the connection."""
        named = {it.replace("_", "-"): value for it, value in headers.items()}
        method = "GET" if form is None else "POST"
        connector = aiohttp.TCPConnector(local_addr=(client, 0), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            url = URL(self._url + path, encoded=True)
            try:
                answer = await http.request(method, url, data=form, headers=named)
            except aiohttp.ClientConnectionError:
                return 0
            assert PROOF not in answer.headers, "a client never sees it"
            return answer.status

    async def stream(self, client: str, path: str, signed: bool) -> int:
        url = f"{self._url.replace('http', 'ws', 1)}{path}"
        headers = {"X-Twilio-Signature": sign(f"wss://{HOST}{path}")} if signed else {}
        try:
            async with connect(
                url,
                additional_headers=headers,
                local_addr=(client, 0),
                proxy=None,
            ) as socket:
                assert socket.response is not None
                assert PROOF not in socket.response.headers
                return socket.response.status_code
        except InvalidStatus as error:
            return error.response.status_code

    async def is_known(self, client: str) -> bool:
        """Whether the address is without limits: more refusals than BALANCER_ERRORS
        do not block it."""
        return [await self.ask(client, "/nothing") for _ in range(6)][-1] == 404


@asynccontextmanager
async def real_bridge(folder: Path, **conf: Any) -> AsyncIterator[RealBridge]:
    proxies = (ipaddress.ip_network("127.0.0.1"),)
    async with bridge(trusted_proxies=proxies, **conf) as place:
        there = BalancedBridge()
        limits = {"BALANCER_ERRORS": "3"}
        async with balancer(folder, there, place.server.port, **limits):
            yield RealBridge(there, place)


async def test_only_a_proof_lifts_the_limits_of_an_address(tmp_path: Path) -> None:
    """Whatever a bridge serves without a signature, a ticket or a token does not open
    the balancer for an address; each of these three does."""
    secure = {
        "public_url": PUBLIC,
        "twilio_auth_token": SecretStr(TOKEN),
        "api_token": SecretStr(API_TOKEN),
        "openai_api_key": SecretStr("sk-test"),
        "openai_webhook_secret": SecretStr(WEBHOOK_SECRET),
    }
    async with real_bridge(tmp_path, **secure) as it:
        api = {"Authorization": f"Bearer {API_TOKEN}"}
        signed = {"X_Twilio_Signature": sign(f"{PUBLIC}/voice", FORM)}

        stranger = it.client()
        hidden = ("/healthz", "/healthz?x", "/%68ealthz", "/readyz", "/metrics")
        for path in (*hidden, "/fleet/events/x", "/%66leet/events/x"):
            await it.ask(stranger, path)
        await it.ask(stranger, "/api/openapi.json")
        await it.ask(stranger, "/api/openapi.json", Bridge_Authenticated="1")
        await it.ask(stranger, "/voice", FORM, Bridge_Authenticated="1")
        await it.stream(stranger, f"/media/{ACCOUNT}/{CALL}/x", signed=True)
        assert not await it.is_known(stranger)

        assert not await it.is_known(it.client())
        for path, form, headers in (
            ("/voice", FORM, signed),
            ("/api/calls", None, api),
            ("/api/openapi.json", None, api),
        ):
            client = it.client()
            assert await it.ask(client, path, form, **headers) == 200
            assert await it.is_known(client), path

        path = await stream_path(it.place, {**FORM, "CallSid": OTHER_CALL})
        client = it.client()
        assert await it.stream(client, path, signed=True) == 101
        assert await it.is_known(client)
        # The same handshake, recorded, from another address.
        thief = it.client()
        assert await it.stream(thief, path, signed=True) == 403
        assert not await it.is_known(thief)


async def test_a_sip_call_is_a_proof_once(tmp_path: Path) -> None:
    """OpenAI's address is known from the first webhook of a call. A copy of the webhook
    gets 200, too, but proves nothing."""
    secure = {
        "public_url": PUBLIC,
        "twilio_auth_token": SecretStr(TOKEN),
        "openai_api_key": SecretStr("sk-test"),
        "openai_webhook_secret": SecretStr(WEBHOOK_SECRET),
    }
    data = {"call_id": "rtc_1", "sip_headers": []}
    body = json.dumps({"type": "realtime.call.incoming", "data": data}).encode()
    async with real_bridge(tmp_path, **secure) as it:
        key = standard_webhooks.signing_key(WEBHOOK_SECRET)
        headers = standard_webhooks.signed(key, "wh_1", int(time.time()), body)
        named = {name.replace("-", "_"): value for name, value in headers.items()}
        openai, thief = it.client(), it.client()
        assert await it.ask(openai, "/openai/webhook", body, **named) == 200
        assert await it.ask(thief, "/openai/webhook", body, **named) == 200
        assert await it.is_known(openai)
        assert not await it.is_known(thief)


async def test_an_insecure_bridge_lifts_no_limits(tmp_path: Path) -> None:
    """An insecure bridge checks nothing, so its answers prove nothing."""
    async with real_bridge(tmp_path) as it:
        client = it.client()
        assert await it.ask(client, "/voice", FORM) == 200
        assert await it.stream(client, "/media", signed=False) == 101
        assert not await it.is_known(client)


@pytest.mark.parametrize(
    "more",
    [b"X: y\r\n" * 70, b"X: " + b"y" * 16_000 + b"\r\n"],
    ids=["many", "long"],
)
async def test_a_head_that_is_too_large_reaches_no_bridge(
    more: bytes, tmp_path: Path
) -> None:
    """The balancer refuses heads that are too large."""
    async with balanced_bridge(tmp_path) as there:
        there.seen.clear()
        reader, writer = await asyncio.open_connection(fleet.HOST, there.port)
        writer.write(b"GET /voice HTTP/1.1\r\nHost: here\r\n" + more + b"\r\n")
        text = await reader.read(12)
        writer.close()

        assert text in (b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert not [it for it in there.seen if it["Host"] != "localhost"]


@asynccontextmanager
async def held(there: BalancedBridge, origin: str, count: int) -> AsyncIterator[None]:
    """Open connections that send nothing."""
    writers = []
    try:
        for _ in range(count):
            with suppress(ConnectionResetError):  # above the limit
                _, writer = await asyncio.open_connection(
                    fleet.HOST, there.port, local_addr=(origin, 0)
                )
                writers.append(writer)
        await asyncio.sleep(0.05)
        yield
    finally:
        for writer in writers:
            writer.close()
