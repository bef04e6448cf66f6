"""Access to the control API: which requests are accepted, and what the others get."""

import asyncio
import ipaddress
import json

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from bridge.core.limits import Limits
from bridge.http.api import auth
from bridge.http.api.auth import MAX_ADDRESSES, NO_TOKEN_BURST, ApiAuth, Rates
from bridge.http.connection_guard import HEADERS, ConnectionGuard
from tests.e2e.bridge import RunningBridge
from tests.e2e.test_attacks import deployed
from tests.http.api.call_directory import TOKEN, ApiClient, api

# --- the token ---


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer t\u00f6ken",
    ],
)
async def test_requests_without_the_token_are_refused(given: str | None) -> None:
    """Without the token a client learns nothing, not even which calls or paths
    exist."""
    async with api() as at:
        at.auth = {} if given is None else {"Authorization": given}
        for path in ("/calls", "/calls/{sid}/history"):
            answer = await at.get(path)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Bearer realm=")
            assert answer.json["title"] == "The API's token is needed"
        assert (await at.get("/nothing")).status == 401
        assert at.refused == ["token"] * 3


async def test_the_token_is_accepted_only_in_the_authorization_header() -> None:
    """A token in a cookie, which browsers send by themselves, or in a URL, which is
    logged, is not accepted."""
    async with api() as at:
        at.auth = {}
        query = f"?token={TOKEN}&access_token={TOKEN}&authorization=Bearer%20{TOKEN}"
        assert (await at.get(f"/calls{query}")).status == 401
        cookies = f"token={TOKEN}; Authorization=Bearer {TOKEN}"
        for name, value in (
            ("Cookie", cookies),
            ("X-Api-Key", TOKEN),
            ("Proxy-Authorization", f"Bearer {TOKEN}"),
            ("X-Forwarded-Authorization", f"Bearer {TOKEN}"),
        ):
            answer = await at.ask("GET", "/calls", headers={name: value})
            assert answer.status == 401, name


async def test_the_scheme_is_case_insensitive() -> None:
    """`bearer` is `Bearer`."""
    async with api() as at:
        at.auth = {"Authorization": f"bearer  {TOKEN} "}
        assert (await at.get("/calls")).status == 200


def test_an_empty_token_is_an_error() -> None:
    """A forgotten setting does not leave the API open."""
    with pytest.raises(ValueError, match="token"):
        ApiAuth("", ConnectionGuard(Limits(), (), print), print)


# --- request bodies ---


async def test_a_body_that_is_no_json_is_refused() -> None:
    """A form, a typing error and a cut body each get an answer that names the
    problem."""
    text = "/calls/{sid}/text"
    async with api() as at:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        plain = await at.ask("POST", text, headers=form, raw=b"text=hello")
        assert plain.status == 415
        as_json = {"Content-Type": "application/json"}
        for raw in (b'{"text": ', b"", b"\xff\xfe", b"{'text': 'a'}"):
            broken = await at.ask("POST", text, headers=as_json, raw=raw)
            assert broken.status == 400, raw
            assert broken.json["errors"]
        assert at.line.asked == []


async def test_every_mistake_is_named() -> None:
    """One answer names all errors of a request."""
    async with api() as at:
        body = {"text": 5, "role": "assistant", "colour": "red"}
        answer = await at.post("/calls/{sid}/text", body)

    assert answer.status == 422
    assert sorted(it["at"] for it in answer.json["errors"]) == [
        "colour",
        "role",
        "text",
    ]
    assert all(it["what"] for it in answer.json["errors"])


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(chunked: bool) -> None:
    """A body of a gigabyte is not read into memory."""
    raw = json.dumps({"text": "a" * 5000}).encode()

    async with api(Limits(body_bytes=5000)) as at:
        if not chunked:
            headers = {"Content-Type": "application/json"}
            answer = await at.ask("POST", "/calls/{sid}/text", headers=headers, raw=raw)
            assert answer.status == 413
        else:
            assert b" 413 " in await _raw(
                at,
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
                % (len(raw), raw),
            )
        assert at.hits == ["body_bytes"]


async def test_a_late_body_is_refused() -> None:
    """A client that stalls blocks nothing."""
    async with api(Limits(body_seconds=0.1)) as at:
        assert b" 408 " in await _raw(at, b'Content-Length: 50\r\n\r\n{"text"')
        assert at.hits == ["body_slow"]


async def test_a_broken_body_is_not_logged_as_a_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken body is refused and not logged as a bug, not even if it was not to be
    read."""
    packed = b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nno gzip, "
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    with capture_logs() as logged:
        async with api() as at:
            assert b" 415 " in await _raw(at, packed)
            assert b" 400 " in await _raw(at, chunked + b"zz\r\n")
            await _raw(at, b"Content-Length: 50\r\n\r\n{", leave=True)
            assert b" 404 " in await _raw(at, chunked, b"zz\r\n", action="fly")
            await asyncio.sleep(0.05)

    assert logged == []
    assert caplog.records == []


async def _raw(
    at: ApiClient,
    rest: bytes,
    later: bytes = b"",
    leave: bool = False,
    action: str = "text",
) -> bytes:
    """The first bytes of the answer to a raw request. `later` is sent when they have
    arrived. With `leave` the client closes without waiting for them."""
    host = at.url.removeprefix("http://").removesuffix("/api")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    sid = at.live.call_sid
    writer.write(
        f"POST /api/calls/{sid}/{action} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        "Connection: close\r\n".encode()
        + rest
    )
    if leave:
        await asyncio.sleep(0.05)
    answer = b"" if leave else await reader.readline()
    writer.write(later)
    writer.close()
    await writer.wait_closed()
    return answer


# --- paths ---


async def test_unknown_paths_and_methods_are_problems() -> None:
    """Clients need to understand one kind of error only."""
    async with api() as at:
        lost = await at.get("/nothing")
        assert (lost.status, lost.json["title"]) == (404, "There is no such path")
        wrong = await at.ask("DELETE", "/calls")
        assert (wrong.status, wrong.headers["allow"]) == (405, "GET, POST")
        assert wrong.json["detail"] == "It allows GET, POST."


async def test_a_bug_is_a_problem_without_details() -> None:
    """The client gets no traceback; the log has it."""
    with capture_logs() as logged:
        async with api() as at:
            at.calls.fails = RuntimeError("secret particulars")
            answer = await at.get("/calls")

    assert answer.status == 500
    assert [line["event"] for line in logged] == ["api_failed"]
    assert "secret" not in answer.text


PATHS = {
    "/api": (401, 404),
    "/api/": (401, 404),
    "/api//calls": (401, 404),
    "/api/calls/": (401, 404),
    "/api/calls;x": (401, 404),
    "/api/../metrics": (401, 404),
    "/api/%2e%2e/metrics": (401, 404),
    "/api/..;/metrics": (401, 404),
    "/api/calls/CA0/..%2f..%2fcalls": (401, 404),
    "/api/calls/%00%0d%0aX-Evil:1": (401, 404),
    "/api/calls/%ff": (401, 404),
    "/%61pi/calls": (401, 200),
    "/api/c%61lls#/healthz": (401, 200),
    "http://evil.example/api/calls": (401, 200),
    # No other spelling of a path bypasses the token, whatever a proxy makes of it.
    "//api/calls": (404, 404),
    "/./api/calls": (404, 404),
    "/healthz/../api/calls": (404, 404),
    "/API/calls": (404, 404),
    "/api;x/calls": (404, 404),
    "/\u0430pi/calls": (400, 400),
    "*": (400, 400),
}
"""(status without the token, status with it) of each path."""


async def test_no_spelling_of_a_path_bypasses_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the path is written, the API asks for the token. Every answer has the
    security headers, and none quotes the request."""
    monkeypatch.setattr(auth, "NO_TOKEN_BURST", 1000.0)
    async with deployed(api_token=SecretStr(TOKEN)) as place:
        for path, statuses in PATHS.items():
            for token, status in zip(("", TOKEN), statuses, strict=True):
                line = f"GET {path} HTTP/1.1\r\n"
                answer = await _plain(place, line, token)
                assert answer.startswith(f"HTTP/1.{int(status != 400)} {status}"), line
        for path in ("/api/calls", "/voice", "/nothing-evil"):
            for method in ("HEAD", "TRACE", "OPTIONS", "CONNECT", "PUT", "PROPFIND"):
                line = f"{method} {path} HTTP/1.1\r\n"
                answer = await _plain(place, line, TOKEN)
                assert answer.split()[1] in ("404", "405"), line
                if method == "HEAD":
                    assert answer.endswith("\r\n\r\n")
        answer = await _plain(place, "GET /nothing HTTP/1.1\r\nExpect: evil\r\n", "")
        assert answer.split()[1] == "417"


async def _plain(place: RunningBridge, head: str, token: str) -> str:
    """The whole answer to a request without a body."""
    port = place.server.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    auth = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(f"{head}Host: evil.example\r\n{auth}\r\n".encode())
    async with asyncio.timeout(2):
        answer = (await reader.read()).decode()
    writer.close()
    for name, value in HEADERS.items():
        assert f"\r\n{name}: {value}\r\n" in answer
    lower = answer.lower()
    for word in ("access-control", "evil", "aiohttp", "python", "traceback"):
        assert word not in lower
    return answer


async def test_the_location_header_escapes_the_sid() -> None:
    """A SID from Twilio cannot break out of the Location header."""
    async with api() as at:
        at.calls.placed_sid = "CA/../x\r\nX-Evil: 1"
        answer = await at.post("/calls", {"to": "+15551230001"})

    assert answer.headers["location"] == "/api/calls/CA%2F..%2Fx%0D%0AX-Evil%3A%201"


# --- rates ---


async def test_a_fast_client_is_rate_limited() -> None:
    """A client in a tight loop does not use up the calls' CPU; it learns when to come
    back."""
    async with api(Limits(api_per_second=0.5)) as at:
        assert (await at.get("/calls")).status == 200
        answer = await at.get("/calls")
        assert at.hits == ["api_rate"]

    assert answer.status == 429
    assert answer.headers["retry-after"] == "2"


async def test_guessing_tokens_is_rate_limited_separately() -> None:
    """Behind a proxy all clients have one address: requests without the token do not
    use up the rate of clients with it."""
    async with api() as at:
        token, at.auth = at.auth, {"Authorization": "Bearer a guess"}
        guesses = [(await at.get("/calls")).status for _ in range(15)]
        at.auth = token

        assert guesses == [401] * int(NO_TOKEN_BURST) + [429] * 5
        assert (at.refused, at.hits) == (["token"] * 10, ["api_rate"] * 5)
        assert (await at.get("/calls")).status == 200


async def test_clients_of_a_trusted_proxy_are_limited_separately() -> None:
    """Users of a trusted proxy are limited one by one; an IPv6 /64 network is one
    user."""
    hosts = ("203.0.113.7", "2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1")
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)
    statuses = []
    async with api(Limits(api_per_second=0.5), trusted=proxies) as at:
        for host in hosts:
            headers = {"X-Forwarded-For": f"1.2.3.4, {host}"}
            answer = await at.ask("GET", "/calls", headers=headers)
            statuses.append(answer.status)

    assert statuses == [200, 200, 429, 200]


async def test_a_client_cannot_choose_its_address() -> None:
    """A client cannot choose its address with a header if no proxy is trusted."""
    async with api(Limits(api_per_second=0.5)) as at:
        for host, status in (("203.0.113.7", 200), ("203.0.113.8", 429)):
            headers = {"X-Forwarded-For": host}
            answer = await at.ask("GET", "/calls", headers=headers)
            assert answer.status == status


def test_a_bucket_refills() -> None:
    """After a pause the client has its full rate again, and no more."""
    rates = Rates(per_second=2.0, burst=3.0)

    assert [rates.take("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rates.take("b", 0.0) == 0.0
    assert rates.take("a", 0.5) == 0.0
    assert [rates.take("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_old_addresses_are_forgotten() -> None:
    """A million addresses do not fill the memory; an active one is not forgotten."""
    rates = Rates(per_second=1.0, burst=1.0)
    for number in range(5 * MAX_ADDRESSES):
        rates.take(str(number), 0.0)
        rates.take("hammers", 0.0)

    assert len(rates._buckets) == MAX_ADDRESSES
    assert rates.take("hammers", 0.5) == 0.5
