"""The API's OpenAPI document: valid, and complete in both directions."""

from openapi_spec_validator import OpenAPIV31SpecValidator

from bridge.core.limits import Limits
from bridge.http.api import handlers, openapi
from bridge.http.api.auth import ApiAuth
from bridge.http.connection_guard import ConnectionGuard
from tests.http.api.call_directory import DOCUMENT, Switchboard, desk


def test_the_document_is_valid() -> None:
    """A client can be generated from it."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    """Every route is documented, and every documented operation exists."""
    auth = ApiAuth("token", ConnectionGuard(Limits(), (), print), print)
    app = handlers.application(Switchboard(), auth)
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    described = {
        (method.upper(), path)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
    }

    assert routes == described


def test_operations_have_names_of_their_own() -> None:
    """Generated clients use these names for their functions."""
    names = [operation.name for operation in openapi.OPERATIONS]

    assert len(names) == len(set(names))


async def test_the_document_is_served() -> None:
    """Tools read it at the API, with its token."""
    async with desk() as at:
        answer = await at.get("/openapi.json")
        assert answer.json == DOCUMENT
        at.auth = {}
        assert (await at.get("/openapi.json")).status == 401
