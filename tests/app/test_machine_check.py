"""The port, the folder of the traces and the public URL, with real sockets."""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from bridge.agent.receptionist import receptionist
from bridge.app import machine_check
from bridge.app.machine_check import check_machine, record_dir_findings
from bridge.app.settings import Finding, Settings
from bridge.app.startup import UserCode
from bridge.http.server import serving
from bridge.sim.model import ModelServer
from bridge.sim.ports import free_port
from tests.support.tls import server_context

LOOPBACK = "127.0.0.1"


async def findings(**given: object) -> dict[str, Finding]:
    settings = Settings(host=given.pop("host", LOOPBACK), **given)  # type: ignore[arg-type]
    found = await check_machine(settings, f"http://{LOOPBACK}:{settings.port}")
    return {it.name: it for it in found}


@asynccontextmanager
async def site(
    text: str, status: int = 200, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A web server that answers everything with this text; its URL."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, LOOPBACK, port, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://{LOOPBACK}:{port}"
    finally:
        await runner.cleanup()


@contextmanager
def taken_port() -> Iterator[int]:
    """A port where a program listens that answers nothing."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


# --- the port ---


async def test_a_free_port() -> None:
    """And the port is free again afterwards."""
    port = free_port()
    found = await findings(port=port)

    assert found["BRIDGE_PORT is free"].level == "ok"
    with socket.create_server((LOOPBACK, port)):
        assert "BRIDGE_PORT" in await findings(port=port)
    assert await findings(port=0) == {}


async def test_a_port_that_another_program_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the program does not answer, or is a web server."""
    monkeypatch.setattr(machine_check, "SECONDS", 0.2)
    with taken_port() as port:
        silent = (await findings(port=port))["BRIDGE_PORT"]
    async with site('{"status": "up"}') as url:
        server = (await findings(port=int(url.rpartition(":")[2])))["BRIDGE_PORT"]

    for it in (silent, server):
        assert it.level == "error" and "no bridge" in it.text and "ss -ltnp" in it.fix


async def test_a_port_that_this_bridge_has() -> None:
    """`bridge check` may be run while the bridge runs."""
    code = UserCode(receptionist)
    port = free_port()
    settings = Settings(insecure=True, port=port)
    async with ModelServer() as model, serving(settings, code, model.url):
        found = await findings(port=port)

    assert set(found) == {"BRIDGE_PORT is in use"}
    assert found["BRIDGE_PORT is in use"].level == "ok"
    assert "0 calls" in found["BRIDGE_PORT is in use"].text


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_of_another_machine(host: str) -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    found = await findings(host=host, port=free_port())

    assert found["BRIDGE_HOST"].level == "error"
    assert host in found["BRIDGE_HOST"].text and found["BRIDGE_HOST"].fix


# --- the folder of the traces ---


def folder_finding(folder: Path) -> Finding | None:
    return next(record_dir_findings(Settings(record_dir=folder)), None)


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    """Nothing is left in it, and a folder that is missing is not made."""
    assert folder_finding(tmp_path) is None
    assert folder_finding(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    assert list(record_dir_findings(Settings())) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Root may write everywhere, but not into a file system of the kernel."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    wrong = [Path("/proc/self"), Path("/dev/null/calls"), Path("/proc/version/calls")]
    if os.geteuid():
        wrong += [locked, locked / "calls"]

    for folder in wrong:
        it = folder_finding(folder)
        assert it and it.level == "error", folder
        assert it.name == "BRIDGE_RECORD_DIR" and "uid" in it.fix


def test_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are taken, but no trace would be written."""
    monkeypatch.setattr(machine_check, "MIN_FREE_BYTES", 2**62)

    it = folder_finding(tmp_path)

    assert it and it.level == "warning" and "MB left" in it.text


# --- the public URL ---


async def public(url: str) -> Finding:
    found = await findings(public_url=url, port=0)
    [it] = found.values()
    return it


async def test_a_public_url_that_leads_to_a_bridge() -> None:
    """Directly, with the path of a proxy, and through the balancer."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}/phone"
    settings = Settings(
        public_url=url, port=port, host=LOOPBACK, twilio_auth_token="0" * 32
    )
    async with (
        ModelServer() as model,
        serving(settings, UserCode(receptionist), model.url),
    ):
        direct = await public(f"http://{LOOPBACK}:{port}")
        proxied = await public(url)
    async with site(
        "<html><body><h1>200 OK</h1>\nService ready.\n</body></html>"
    ) as it:
        balanced = await public(it)

    for found in (direct, proxied, balanced):
        assert (found.level, found.name) == ("ok", "BRIDGE_PUBLIC_URL answers")
    assert "a bridge, with 0 calls" in direct.text
    assert "balancer" in balanced.text


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Tunnel not found", 404),
        ('{"status": "alive", "calls": 1}', 502),
        ("[" * 9999, 200),
        ("[]", 200),
    ],
)
async def test_a_public_url_that_leads_to_no_bridge(text: str, status: int) -> None:
    """It is no mistake: the bridge may not have started yet."""
    async with site(text, status) as url:
        it = await public(url)

    assert it.level == "warning" and f"answers {status}" in it.text and it.fix


async def test_a_public_url_that_nobody_answers() -> None:
    """No program, and no such name: a machine may be checked before the rest."""
    refused = await public(f"http://{LOOPBACK}:{free_port()}")
    unknown = await public("https://no.such.host.invalid")

    assert refused.level == "warning" and "cannot be reached" in refused.text
    assert unknown.level in ("warning", "ok")  # `ok`: not checked, there is no DNS
    assert "address" in unknown.text or "DNS" in unknown.text


async def test_a_public_url_whose_certificate_nobody_trusts(tmp_path: Path) -> None:
    """Twilio does not connect, so no call comes."""
    async with site("", tls=server_context(tmp_path)) as url:
        it = await public(url)

    assert it.level == "error" and "certificate" in it.text
