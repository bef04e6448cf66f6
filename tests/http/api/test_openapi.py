"""The API's OpenAPI document: valid, and complete in both directions."""

from openapi_spec_validator import OpenAPIV31SpecValidator

from bridge.core.limits import Limits
from bridge.fleet.memory import MemoryRegistry
from bridge.http.api import handlers, openapi
from bridge.http.api.auth import ApiAuth
from bridge.http.connection_guard import ConnectionGuard
from tests.http.api.call_directory import DOCUMENT, FakeCalls, api, no_address


def test_the_document_is_valid() -> None:
    """A client can be generated from it."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_routes_and_documented_operations_match() -> None:
    """Every route is documented, and every documented operation exists."""
    auth = ApiAuth("token", ConnectionGuard(Limits(), (), print), print)
    fleet = handlers.FleetAccess(MemoryRegistry(), None, no_address)
    app = handlers.applications(FakeCalls(), auth, fleet).api()
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


def test_operation_ids_are_unique() -> None:
    """Generated clients use these names for their functions."""
    names = [operation.name for operation in openapi.OPERATIONS]

    assert len(names) == len(set(names))


async def test_the_document_is_served() -> None:
    """Tools read it at the API, with its token."""
    async with api() as at:
        answer = await at.get("/openapi.json")
        assert answer.json == DOCUMENT
        at.auth = {}
        assert (await at.get("/openapi.json")).status == 401
