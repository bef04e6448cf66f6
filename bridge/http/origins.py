"""Refuses what a web page of another site sends through its visitor's browser.

A browser reaches a bridge on its user's machine although nobody else can, and it opens
WebSockets and sends forms to any address without asking first. It names the page in
`Origin` and `Sec-Fetch-Site`, which a page cannot change. Twilio, OpenAI and programs
send neither.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from bridge.app.values import is_loopback
from bridge.http.api.problems import Problem
from bridge.http.connection_guard import ConnectionGuard

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OriginCheck:
    """The check of every request of one bridge.

    `public_url`: the origin whose pages may use the bridge. None (insecure mode): pages
    of the bridge itself may, and the bridge answers only on this machine and in its
    networks. `host`: the address that the bridge listens on. `refused` is called with
    the reason of each refusal (bridge.telemetry.metrics.REFUSALS).
    """

    def __init__(
        self,
        public_url: str | None,
        host: str,
        guard: ConnectionGuard,
        refused: Callable[[str], None],
    ) -> None:
        self._origin = public_url and _normal_origin(_without_path(public_url))
        self._host = host.lower()
        self._loopback = is_loopback(self._host)
        self._guard = guard
        self._refused = refused

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        if self._origin is None and not self._is_local(request):
            return self._refuse(
                request,
                "not_local",
                "An insecure bridge answers no tunnel, and only names of its machine",
                "Set BRIDGE_PUBLIC_URL and TWILIO_AUTH_TOKEN, unset BRIDGE_INSECURE.",
            )
        if not self._is_own_page(request):
            title = "Pages of other origins may not use the bridge"
            return self._refuse(request, "origin", title)
        return await handler(request)

    def _refuse(
        self, request: web.Request, why: str, title: str, detail: str = ""
    ) -> web.Response:
        # The route, because the path may contain anything.
        resource = request.match_info.route.resource
        path = resource.canonical if resource else ""
        log.warning("request_refused", path=path, why=why)
        self._refused(why)
        return Problem(403, why.replace("_", "-"), title, detail).response()

    def _is_own_page(self, request: web.Request) -> bool:
        """No page sent the request, or one of the bridge's own origin did."""
        headers = request.headers
        sites = headers.getall("Sec-Fetch-Site", [])
        origins = headers.getall("Origin", [])
        return all(it in ("none", "same-origin") for it in sites) and all(
            self._is_own(it, request) for it in origins
        )

    def _is_own(self, origin: str, request: web.Request) -> bool:
        """The Host header is not used if the origin is known: a page can point its own
        domain name at the bridge, and its browser then sends that name (DNS
        rebinding)."""
        if self._origin:
            return _normal_origin(origin) == self._origin
        # Not request.host: without the header, that asks the DNS and stops all calls.
        return _host(origin) == request.headers.get("Host", "").lower()

    def _is_local(self, request: web.Request) -> bool:
        """The request came through no tunnel, and names a host that no page of another
        site can have. Without signatures nothing else stops strangers."""
        if self._guard.is_from_unknown_proxy(request):
            return False
        headers = request.headers
        named = headers.getall("Host", []) + headers.getall("X-Forwarded-Host", [])
        return all(self._is_local_name(_name(it)) for it in named)

    def _is_local_name(self, name: str) -> bool:
        """Whether the name cannot be the domain name of a stranger. A bridge that
        listens on loopback needs only the names of loopback. Any other is in a network
        of the developer: it has an address, or a name without a dot, such as that of a
        container."""
        if name in ("localhost", self._host) or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not self._loopback and name != "" and "." not in name
        return not self._loopback or address.is_loopback


def _normal_origin(origin: str) -> str:
    """In lower case and without the default port, as browsers send it."""
    origin = origin.lower()
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


def _without_path(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """The name of a Host header, without its port; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
