"""deploy/haproxy.cfg: HAProxy takes it, and keeps what calls rely on."""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from websockets.asyncio.client import connect
from yarl import URL

from bridge.core.limits import Limits
from scripts import fleet

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
def test_haproxy_takes_the_file(by: str, tmp_path: Path) -> None:
    """It starts in a container, in a cluster and on a bare machine, with no warning."""
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


def test_a_full_house_still_answers() -> None:
    """Webhooks reach every instance that lives, streams those that do not drain."""
    assert "uri /healthz" in SECTIONS["for-webhooks"]
    assert "uri /readyz" in SECTIONS["streams"]
    assert "(ready|full)" in SECTIONS["streams"]
    assert "balance leastconn" in SECTIONS["for-media"]


def test_streams_last() -> None:
    """A long call is not cut, nor one on an instance that drains."""
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    hours = re.search(r"timeout tunnel (\d+)h", SECTIONS["streams"])

    assert hours is not None and int(hours[1]) >= 4
    assert not [it for it in lines if it[:1] != "#" and "on-marked-down" in it]


def test_webhooks_are_answered_before_twilio_gives_up() -> None:
    """One instance that hangs costs a caller some seconds, not the call."""
    seconds = re.search(r"timeout server (\d+)s", SECTIONS["for-webhooks"])

    assert seconds is not None and 2 * int(seconds[1]) < 15


def test_calls_are_not_placed_twice() -> None:
    """What is no webhook of Twilio's is never asked again somewhere else."""
    assert "disable-l7-retry if { path_beg /api/ /openai/ }" in SECTIONS["for-webhooks"]


# --- who may come in, and how often ---


def lines_of(name: str) -> list[str]:
    return [line.strip() for line in SECTIONS[name].splitlines()]


def test_a_head_has_its_time_and_its_size() -> None:
    """Nobody keeps a connection by asking slowly, and no bridge refuses what passes."""
    text = CONFIG.read_text()
    bufsize, rewrite, maxhdr = (
        int(re.findall(rf"^ +tune\.{it} (\d+)$", text, re.M)[0])
        for it in ("bufsize", "maxrewrite", "http.maxhdr")
    )

    assert "timeout http-request 5s" in lines_of("base")
    assert bufsize - rewrite < Limits().header_bytes
    assert maxhdr < 128  # aiohttp's own


class Behind:
    """A balancer with one bridge behind it: `answers` what it is told to."""

    def __init__(self) -> None:
        self.port = fleet._free_port()
        self.seen: list[CIMultiDictProxy[str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A stranger is refused; whoever has the token or a good signature is not."""
        self.seen.append(request.headers)
        if request.path == "/readyz":
            return web.json_response({"status": "ready"})
        if request.path == "/media":
            if request.headers.get("X-Twilio-Signature") != "good":
                raise web.HTTPForbidden
            stream = web.WebSocketResponse()
            await stream.prepare(request)
            async for message in stream:
                await stream.send_str(message.data)
            return stream
        good = "good" in request.headers.get("X-Twilio-Signature", "")
        return web.Response(status=200 if good or request.path == "/healthz" else 403)

    async def ask(
        self, origin: str, path: str = "/voice", **headers: str
    ) -> tuple[int, dict[str, list[str]]]:
        """The status (0: nobody answers), and the headers that the bridge saw."""
        connector = aiohttp.TCPConnector(local_addr=(origin, 0), force_close=True)
        named = {it.replace("_", "-"): value for it, value in headers.items()}
        self.seen.clear()
        async with aiohttp.ClientSession(connector=connector) as http:
            url = f"http://{fleet.HOST}:{self.port}{path}"
            try:
                raw = URL(url, encoded=True)
                async with http.post(raw, headers=named) as answer:
                    seen = [it for it in self.seen if it.get("Host") != "balancer"]
                    found = seen[-1] if seen else CIMultiDict[str]()
                    return answer.status, {it: found.getall(it) for it in found}
            except aiohttp.ClientConnectionError:
                return 0, {}


@asynccontextmanager
async def behind(folder: Path, **env: str) -> AsyncIterator[Behind]:
    there = Behind()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", there.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, fleet.HOST, 0).start()
    port = runner.addresses[0][1]
    servers = folder / "servers.cfg"
    servers.write_text(SERVERS.replace("127.0.0.1:1", f"{fleet.HOST}:{port}"))
    program = fleet.program("haproxy")
    log = folder / "haproxy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(program, "-db", "-f", str(CONFIG), "-f", str(servers)),
            env={
                "BALANCER_BIND": f"{fleet.HOST}:{there.port}",
                "BALANCER_STATS": f"{fleet.HOST}:{fleet._free_port()}",
                "BALANCER_MAXCONN": "1000",
                **env,
            },
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(10):
            while (await there.ask("127.0.0.9", "/healthz"))[0] != 200:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield there
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await runner.cleanup()


async def test_the_bridge_is_told_one_address(tmp_path: Path) -> None:
    """Who asks, whatever the client says of itself; a proxy of ours is believed."""
    proxies = "127.0.0.3 127.0.0.4/32"
    said = {"X_Forwarded_For": "192.0.2.1, 192.0.2.2", "Forwarded": "for=192.0.2.1"}
    async with behind(tmp_path, BALANCER_PROXIES=proxies) as there:
        _, stranger = await there.ask("127.0.0.2", **said, Proxy="evil", TE="trailers")
        _, proxied = await there.ask("127.0.0.4", **said)
        _, silent = await there.ask("127.0.0.3")

    assert stranger["X-Forwarded-For"] == ["127.0.0.2"]
    assert not {"Forwarded", "Proxy", "TE"} & {*stranger}
    assert proxied["X-Forwarded-For"] == ["192.0.2.2"]
    assert silent["X-Forwarded-For"] == ["127.0.0.3"]


async def test_a_stranger_does_not_ask_for_ever(tmp_path: Path) -> None:
    """Nobody tries tokens at leisure. Twilio is heard even from an address from which
    it was refused, and whoever was let in stays in."""
    async with behind(
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


async def test_a_stranger_does_not_take_all_connections(tmp_path: Path) -> None:
    """An address from which no call has come may have some; Twilio's have hundreds."""
    async with behind(tmp_path, BALANCER_CONNECTIONS="20") as there:
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


async def test_health_opens_no_doors(tmp_path: Path) -> None:
    """What anybody is answered with 200 does not make them one of ours."""
    async with behind(tmp_path, BALANCER_ERRORS="5") as there:
        for path in ("/healthz", "/healthz?x", "/%68ealthz", "/voice", "/voice"):
            for _ in range(4):
                await there.ask("127.0.0.2", path)
        assert (await there.ask("127.0.0.2"))[0] == 429


@pytest.mark.parametrize(
    "more",
    [b"X: y\r\n" * 70, b"X: " + b"y" * 16_000 + b"\r\n"],
    ids=["many", "long"],
)
async def test_heads_that_are_too_large(more: bytes, tmp_path: Path) -> None:
    """They do not get as far as a bridge."""
    async with behind(tmp_path) as there:
        there.seen.clear()
        reader, writer = await asyncio.open_connection(fleet.HOST, there.port)
        writer.write(b"GET /voice HTTP/1.1\r\nHost: here\r\n" + more + b"\r\n")
        text = await reader.read(12)
        writer.close()

        assert text in (b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert not [it for it in there.seen if it["Host"] != "balancer"]


@asynccontextmanager
async def held(there: Behind, origin: str, count: int) -> AsyncIterator[None]:
    """Connections that say nothing."""
    writers = []
    try:
        for _ in range(count):
            with suppress(ConnectionResetError):  # the one too many
                _, writer = await asyncio.open_connection(
                    fleet.HOST, there.port, local_addr=(origin, 0)
                )
                writers.append(writer)
        await asyncio.sleep(0.05)
        yield
    finally:
        for writer in writers:
            writer.close()
