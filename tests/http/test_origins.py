"""Requests that a browser sends for the page of another site are refused.

The headers are those that Chromium 156 sent to a bridge for such a page: every request
has `Origin`, and all but WebSocket handshakes have `Sec-Fetch-Site`.
"""

import asyncio
import ipaddress
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp.test_utils import make_mocked_request
from pydantic import SecretStr

from bridge.core.limits import Limits
from bridge.http.connection_guard import ConnectionGuard
from bridge.http.origins import OriginCheck
from tests.e2e.bridge import HELLO, RunningBridge, bridge
from tests.e2e.test_attacks import (
    FORM,
    PUBLIC,
    deployed,
    refusals,
    sign,
    stream_path,
)

API_TOKEN = SecretStr("a token of the tests")
SECRET = SecretStr("whsec_cHV0IDI0IHRvIDY0IHJhbmRvbSBieXRlcyBoZXJl")
EVIL = "http://evil.example:8000"

OPEN: dict[str, Any] = {
    "api_token": API_TOKEN,
    "openai_api_key": SecretStr("sk-test"),
    "openai_webhook_secret": SECRET,
}
"""Settings of an insecure bridge that serves every path."""

POSTS = (
    *("/voice", "/voice/next", "/stream-status", "/call-status", "/amd-status"),
    *("/openai/webhook", "/api/calls"),
)
GETS = ("/api/calls", "/api/openapi.json", "/healthz", "/readyz", "/metrics")
STREAM = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "UnIFRY8puBACcuiWB+Lxrw==",
}


async def ask(
    place: RunningBridge, method: str, path: str, body: str = "", **headers: str
) -> int:
    """The status of the answer. Each `_` in the name of a header is a `-`."""
    named = {it.replace("_", "-"): value for it, value in headers.items()}
    own = {"Host": f"127.0.0.1:{place.server.port}"}
    if method == "POST":
        own["Content-Type"] = "application/x-www-form-urlencoded"
        own["Content-Length"] = str(len(body))
    lines = [f"{it}: {value}" for it, value in {**own, **named}.items()]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines])
    reader, writer = await asyncio.open_connection("127.0.0.1", place.server.port)
    writer.write(f"{head}\r\n\r\n{body}".encode())
    async with asyncio.timeout(5):
        status = (await reader.readline()).split()[1]
    writer.close()
    return int(status)


# --- a developer's machine ---


@pytest.mark.parametrize(
    "page",
    [
        # A page of another site, in a frame without an origin, and of another server
        # on this machine.
        {"Origin": EVIL, "Sec_Fetch_Site": "cross-site"},
        {"Origin": "null", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
        {"Origin": "http://127.0.0.1"},
        # A request without an origin, such as that of an image; an older browser.
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": EVIL},
        {"Origin": "http://["},
    ],
)
async def test_a_web_page_cannot_use_an_insecure_bridge(page: dict[str, str]) -> None:
    """A developer visits a page while an insecure bridge runs. The page can place no
    call, open no stream and read nothing."""
    async with bridge(**OPEN) as place:
        body = urlencode(FORM)
        for path in POSTS:
            assert await ask(place, "POST", path, body, **page) == 403, path
        for path in GETS:
            assert await ask(place, "GET", path, **page) == 403, path
        if "Origin" in page:
            for path in ("/media", f"/media/{FORM['AccountSid']}/{FORM['CallSid']}/x"):
                assert await ask(place, "GET", path, **STREAM, **page) == 403, path

        assert refusals(place, "origin") >= len(POSTS) + len(GETS)
        assert await place.server.registered() == []
        assert place.model.sessions == []


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil", ""])
async def test_dns_rebinding_does_not_reach_an_insecure_bridge(host: str) -> None:
    """A page makes the name of its own site resolve to 127.0.0.1. To its browser the
    bridge is then the page's own server, but the name gives the page away."""
    async with bridge(**OPEN) as place:
        name = f"{host}:{place.server.port}"
        page = {"Host": name, "Origin": f"http://{name}"}
        page["Sec_Fetch_Site"] = "same-origin"
        body = urlencode(FORM)
        for path in POSTS:
            assert await ask(place, "POST", path, body, **page) == 403, path
        for path in GETS:
            assert await ask(place, "GET", path, **page) == 403, path
        assert await ask(place, "GET", "/media", **STREAM, **page) == 403

        assert refusals(place, "not_local") == len(POSTS) + len(GETS) + 1
        assert place.model.sessions == []


NGROK = {
    "Host": "1234.ngrok.app",
    "X_Forwarded_Host": "1234.ngrok.app",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_For": "203.0.113.7",
}
TUNNELS = {
    "ngrok": NGROK,
    "ngrok, host rewritten": {**NGROK, "Host": "localhost:8080"},
    "cloudflared": {"Host": "bridge.example", "Cf_Connecting_Ip": "203.0.113.7"},
    "a proxy": {"X_Forwarded_For": "203.0.113.7"},
}


@pytest.mark.parametrize("name", TUNNELS)
async def test_an_insecure_bridge_answers_no_tunnel(name: str) -> None:
    """`ngrok http 8080` in front of `make serve` does not open the bridge to the
    internet; the log says which settings it needs."""
    async with bridge(**OPEN) as place:
        body = urlencode(FORM)
        assert await ask(place, "POST", "/voice", body, **TUNNELS[name]) == 403
        assert await ask(place, "GET", "/media", **STREAM, **TUNNELS[name]) == 403
        assert refusals(place, "not_local") == 2


async def test_an_insecure_bridge_behind_its_own_balancer() -> None:
    """The demonstration of docker compose works, but not through a tunnel to its
    balancer."""
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)
    async with bridge(trusted_proxies=proxies) as place:
        body = urlencode(FORM)
        balancer = {"X_Forwarded_For": "172.30.251.7"}
        assert await ask(place, "POST", "/voice", body, **balancer) == 200
        tunnel = {**NGROK, "Host": "localhost:8080", **balancer}
        assert await ask(place, "POST", "/voice", body, **tunnel) == 403


async def test_programs_and_pages_of_the_bridge_are_served() -> None:
    """Twilio, curl and the fake caller name no origin, and the bridge's own pages name
    its origin."""
    async with bridge(callers={"voice": HELLO}, **OPEN) as place:
        own = {"Origin": place.url, "Sec_Fetch_Site": "same-origin"}
        body = urlencode(FORM)
        assert await ask(place, "POST", "/voice", body) == 200
        assert await ask(place, "POST", "/voice", body, **own) == 200
        assert await ask(place, "GET", "/healthz", Sec_Fetch_Site="none") == 200
        page = {"Origin": f"http://localhost:{place.server.port}"}
        page["Host"] = f"localhost:{place.server.port}"
        assert await ask(place, "GET", "/media", **STREAM, **page) == 101


@pytest.mark.parametrize(
    ("listens", "host", "local"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "bridge.localhost:8080", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("::1", "127.0.0.2", True),
        ("127.0.0.1", "192.168.1.5", False),
        # In a hostile network, its owner resolves such names.
        ("127.0.0.1", "wpad", False),
        # docker compose, and another machine of the developer.
        ("0.0.0.0", "balancer:8080", True),
        ("0.0.0.0", "192.168.1.5:8080", True),
        ("devbox.lan", "devbox.lan:8080", True),
        ("0.0.0.0", "devbox.lan:8080", False),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "evil.example.", False),
        ("0.0.0.0", "[::1", False),
        ("0.0.0.0", "", False),
    ],
)
def test_the_names_of_an_insecure_bridge(listens: str, host: str, local: bool) -> None:
    """No name that a stranger's DNS can answer is the bridge's own."""
    guard = ConnectionGuard(Limits(), (), print)
    check = OriginCheck(None, listens, guard, print)
    request = make_mocked_request("GET", "/voice", {"Host": host})

    assert check._is_local(request) is local


# --- a deployment ---


async def test_a_deployed_bridge_refuses_foreign_pages() -> None:
    """No page of another site gets an answer, not even with a stolen signature or
    token. The bridge's own origin is BRIDGE_PUBLIC_URL, whatever Host says."""
    async with deployed(api_token=API_TOKEN) as place:
        body = urlencode(FORM)
        signed = {"X_Twilio_Signature": sign(f"{PUBLIC}/voice", FORM)}
        token = {"Authorization": f"Bearer {API_TOKEN.get_secret_value()}"}
        rebound = {"Host": "evil.example", "Origin": "https://evil.example"}
        for page in (
            rebound,
            {"Origin": "null"},
            {"Origin": "http://bridge.example"},
            {"Origin": f"{PUBLIC}:8443"},
            {"Origin": f"{PUBLIC}.evil"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Sec_Fetch_Site": "?"},
        ):
            assert await ask(place, "POST", "/voice", body, **signed, **page) == 403
            assert await ask(place, "GET", "/api/calls", **token, **page) == 403, page
        assert refusals(place, "origin") == 16
        assert await ask(place, "GET", "/api/calls", **token, Origin=PUBLIC) == 200
        port = {"Origin": f"{PUBLIC}:443", "Host": "elsewhere.example"}
        assert await ask(place, "GET", "/api/calls", **token, **port) == 200
        assert await ask(place, "POST", "/voice", body, **signed) == 200


async def test_a_foreign_page_opens_no_stream_of_a_deployed_bridge() -> None:
    """A foreign page is refused before its ticket is used up."""
    async with deployed() as place:
        path = await stream_path(place)
        signed = {"X_Twilio_Signature": sign(f"wss://bridge.example{path}")}
        page = {"Origin": EVIL}
        assert await ask(place, "GET", path, **STREAM, **signed, **page) == 403
        assert await ask(place, "GET", path, **STREAM, **signed) == 101


async def test_every_origin_header_is_checked() -> None:
    """A proxy that appends its own Origin does not hide the page's."""
    async with deployed(api_token=API_TOKEN) as place:
        token = {"Authorization": f"Bearer {API_TOKEN.get_secret_value()}"}
        for first, second in ((PUBLIC, EVIL), (EVIL, PUBLIC)):
            two = {"Origin": f"{first}\r\nOrigin: {second}"}
            # 400: the parser refuses it
            status = await ask(place, "GET", "/api/calls", **token, **two)
            assert status in (400, 403)


async def test_cors_preflights_are_refused() -> None:
    """A browser asks whether a page of another site may send a token: it may not."""
    asked = {
        "Origin": "https://evil.example",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization",
    }
    async with deployed(api_token=API_TOKEN) as place:
        assert await ask(place, "OPTIONS", "/api/calls", **asked) == 403
