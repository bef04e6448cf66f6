"""Tells the balancer which answers prove that a client has a right to be here.

The balancer lifts its limits for the address of such a client (deploy/haproxy.cfg).
Pages, assets and health are served to everybody, so only the code that has checked a
signature, a ticket or a token marks its request. An insecure bridge checks nothing and
marks nothing.
"""

from aiohttp import web

HEADER = "Bridge-Authenticated"
"""Header of the answer, which the balancer removes."""

_MARK = web.RequestKey("authenticated", bool)


def mark_authenticated(request: web.Request) -> None:
    """The request has a valid signature, ticket or token that is not a replay."""
    request[_MARK] = True


def proof(request: web.Request) -> dict[str, str]:
    """The headers of the answer that tell the balancer."""
    return {HEADER: "1"} if _MARK in request else {}


async def tell_balancer(request: web.Request, response: web.StreamResponse) -> None:
    """Handler of the application's `on_response_prepare`."""
    response.headers.update(proof(request))
