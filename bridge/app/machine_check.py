"""`bridge check` looks at the machine: the port, the folder of the traces, and where
the public URL leads.

Nothing is created. What cannot be known here is reported as not checked, and is no
mistake: a bridge may be checked without a network, and before a proxy is there.
"""

import asyncio
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from bridge.app.resolving import NoResolver, NotResolved, resolve
from bridge.app.settings import Finding, Settings
from bridge.telemetry.disk_space import MIN_FREE_BYTES

SECONDS = 5.0
"""For one request."""

MAX_BYTES = 64 * 1024
"""Of an answer; who answers may be anybody."""


async def check_machine(settings: Settings, local_url: str) -> list[Finding]:
    """`local_url`: the address of a bridge with these settings, on this machine."""
    port, public = await asyncio.gather(
        _port(settings, local_url), _public_url(settings)
    )
    return [*port, *record_dir_findings(settings), *public]


# --- the port ---


async def _port(settings: Settings, local_url: str) -> list[Finding]:
    name, port = "BRIDGE_PORT", settings.port
    if not port:
        return []
    try:
        _bind(settings.host, port)
    except socket.gaierror:
        text = f"is {settings.host}, a name that has no address here"
        fix = "set an address of this machine, such as 0.0.0.0 or 127.0.0.1"
        return [Finding("error", "BRIDGE_HOST", text, fix)]
    except PermissionError:
        fix = "set a port above 1023, or give the process CAP_NET_BIND_SERVICE"
        return [Finding("error", name, f"is {port}, which only root may use", fix)]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [await _taken(name, port, local_url)]
        text = f"is {settings.host}, where this machine cannot listen"
        fix = "set an address of this machine, such as 0.0.0.0 or 127.0.0.1"
        return [Finding("error", "BRIDGE_HOST", f"{text} ({error.strerror})", fix)]
    return [Finding("ok", f"{name} is free", f"no program listens on {port}")]


async def _taken(name: str, port: int, local_url: str) -> Finding:
    """Who listens there."""
    try:
        health = await _health(local_url)
    except (aiohttp.ClientError, OSError, TimeoutError):
        health = _Health(0)
    if health.calls is not None:
        text = f"a bridge listens on {port}, with {health.calls} calls"
        return Finding("ok", f"{name} is in use", text)
    fix = f"stop that program (`ss -ltnp | grep :{port}` names it), or set another port"
    text = f"is {port}, where a program listens that is no bridge"
    return Finding("error", name, text, fix)


def _bind(host: str, port: int) -> None:
    """Takes the port for a moment, as the server does."""
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(address)


@dataclass(frozen=True, slots=True)
class _Health:
    """Who answers GET /healthz."""

    status: int
    calls: int | None = None
    """None: it is no bridge."""
    is_balancer: bool = False
    """deploy/haproxy.cfg answers it itself, and only if a bridge is alive."""


async def _health(url: str) -> _Health:
    limit = aiohttp.ClientTimeout(total=SECONDS)
    async with (
        aiohttp.ClientSession(timeout=limit) as session,
        session.get(f"{url}/healthz", allow_redirects=False) as answer,
    ):
        text = (await answer.content.read(MAX_BYTES)).decode(errors="replace")
    is_balancer = answer.status == 200 and "Service ready." in text
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    is_bridge = isinstance(told, dict) and told.get("status") == "alive"
    calls = told.get("calls") if is_bridge and answer.status == 200 else None
    return _Health(answer.status, calls, is_balancer)


# --- the folder of the traces ---


def record_dir_findings(settings: Settings) -> Iterator[Finding]:
    """Whether traces can be written. A folder that is missing is created by the first
    call, in the nearest folder that is there."""
    folder, name = settings.record_dir, "BRIDGE_RECORD_DIR"
    if folder is None:
        return
    fix = f"let the user of the bridge (uid {os.geteuid()}) write there"
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        if existing == folder.absolute():
            with tempfile.TemporaryFile(dir=existing):
                pass
        elif not _may_write(existing):
            raise PermissionError(errno.EACCES, "permission denied")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        why = error.strerror or type(error).__name__
        text = f"is {folder}, where nothing can be written ({why})"
        yield Finding("error", name, text, fix)
        return
    if free < MIN_FREE_BYTES:
        text = f"is on a disk with {free // 2**20} MB left, so no trace is written"
        fix = f"make room: {MIN_FREE_BYTES // 2**20} MB at least, or lower "
        yield Finding("warning", name, text, f"{fix}BRIDGE_RECORD_DAYS")


def _may_write(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


# --- the public URL ---


async def _public_url(settings: Settings) -> list[Finding]:
    url, name = settings.public_url, "BRIDGE_PUBLIC_URL"
    if url is None:
        return []
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        await resolve(host, parts.port or 443)
        health = await _health(url)
    except NotResolved:
        text, fix = f"names {host}, which has no address here", "correct the name"
        return [Finding("warning", name, text, f"{fix}, or add it to the DNS")]
    except NoResolver:
        text = "this machine has no DNS, or it does not answer"
        return [Finding("ok", f"{name} not checked", text)]
    except aiohttp.ClientConnectorCertificateError:
        text = "has a certificate that is not trusted, so Twilio does not connect"
        return [Finding("error", name, text, "use one of a public CA, with its chain")]
    except (aiohttp.ClientError, OSError, TimeoutError):
        text = "cannot be reached from this machine, and perhaps not by Twilio"
        fix = "start the proxy or the tunnel, and open its port to the internet"
        return [Finding("warning", name, text, fix)]
    if health.calls is not None or health.is_balancer:
        text = "leads to the balancer of bridges"
        if health.calls is not None:
            text = f"leads to a bridge, with {health.calls} calls"
        return [Finding("ok", f"{name} answers", text)]
    text = f"does not lead to a bridge now: GET /healthz answers {health.status}"
    fix = "if a bridge runs, let the proxy pass all requests to its port"
    return [Finding("warning", name, text, fix)]
