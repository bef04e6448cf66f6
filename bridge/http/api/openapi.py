"""The control API's operations, and the OpenAPI 3.1 document made from them.

handlers.py makes its routes from the same list. No framework is used for the document:
none knows more than this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from bridge.http.api import bodies
from bridge.http.api.bodies import Body
from bridge.http.api.problems import MEDIA_TYPE

REFS = "#/components/schemas/{model}"

PROBLEMS = {
    400: "The body cannot be read, or is not JSON.",
    401: "The token is missing or wrong.",
    403: "A page of another origin, or a number that may not be called.",
    404: "There is no such call, approval or path.",
    408: "The body did not arrive in time.",
    409: "Outbound calls are not set up, or the call is still running, being placed, "
    "or answered.",
    410: "The call is over.",
    413: "The body is too large.",
    415: "The body is not application/json, or is compressed.",
    422: "The request cannot be fulfilled; `errors` or `detail` says why.",
    429: "Too many requests, calls or event streams; see Retry-After if it is sent.",
    500: "A bug, or a record that cannot be deleted.",
    502: "Twilio did not place or cancel the call, or another instance could not be "
    "read, or did not delete its records.",
    503: "Nothing was done: the registry of calls does not answer, the call moves to "
    "another instance, its instance is gone, or the bridge takes no more calls.",
    504: "Not finished within a minute, or the call's instance did not answer; it may "
    "still happen.",
}
ALWAYS = (401, 403, 429, 500)
WITH_BODY = (400, 408, 413, 415, 422)
OF_A_CALL = (404, 410, 502, 503, 504)
"""Also of another instance: see owners.py."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path (below /api)."""

    name: str
    method: str
    path: str
    summary: str
    takes: type[Body] | None = None
    gives: type[Body] | str | None = None
    """A body, a media type, or None: no content (204)."""
    status: int = 200
    problems: tuple[int, ...] = ()
    query: Mapping[str, str] | None = None
    """Name -> meaning of the value `1`."""
    headers: Mapping[str, str] | None = None
    """Name of an optional header -> its meaning."""

    @property
    def success(self) -> int:
        return self.status if self.gives is not None else 204


CALL = "/calls/{sid}"
FALLBACK = "/fallback"
IDEMPOTENCY_KEY = "Idempotency-Key"

OPERATIONS = (
    Operation(
        "list_calls",
        "GET",
        "/calls",
        "The running calls of all instances",
        gives=bodies.CallList,
        problems=(503,),
    ),
    Operation(
        "place_call",
        "POST",
        "/calls",
        "Place a call",
        takes=bodies.PlaceCall,
        gives=bodies.Placed,
        status=201,
        problems=(409, 502, 503, 504),
        headers={
            IDEMPOTENCY_KEY: "A request with a key that was used in the last 24 hours "
            "places no second call: it gets the SID of the first one."
        },
    ),
    Operation(
        "get_call",
        "GET",
        CALL,
        "Details of a call",
        gives=bodies.CallDetails,
        problems=OF_A_CALL,
    ),
    Operation(
        "hang_up",
        "POST",
        f"{CALL}/hang_up",
        "End the call once the caller has heard everything",
        takes=bodies.Nothing,
        gives=bodies.Done,
        problems=OF_A_CALL,
    ),
    Operation(
        "get_status",
        "GET",
        f"{CALL}/status",
        "The status of an outbound call, also after its end",
        gives=bodies.CallProgress,
        problems=(404, 409, 503),
    ),
    Operation(
        "cancel",
        "POST",
        f"{CALL}/cancel",
        "Cancel an outbound call that was not answered yet",
        takes=bodies.Nothing,
        gives=bodies.CallProgress,
        problems=(404, 409, 410, 502, 504),
    ),
    Operation(
        "transfer",
        "POST",
        f"{CALL}/transfer",
        "Transfer the caller once the caller has heard everything",
        takes=bodies.TransferTo,
        gives=bodies.Done,
        problems=OF_A_CALL,
    ),
    Operation(
        "send_digits",
        "POST",
        f"{CALL}/digits",
        "Press keys once the caller has heard everything",
        takes=bodies.Digits,
        gives=bodies.Done,
        problems=OF_A_CALL,
    ),
    Operation(
        "send_text",
        "POST",
        f"{CALL}/text",
        "Put text into the conversation",
        takes=bodies.Text,
        problems=OF_A_CALL,
    ),
    Operation(
        "interrupt",
        "POST",
        f"{CALL}/interrupt",
        "Stop the agent at once",
        takes=bodies.Nothing,
        problems=OF_A_CALL,
    ),
    Operation(
        "mute",
        "POST",
        f"{CALL}/mute",
        "Mute or unmute the caller for the agent",
        takes=bodies.Mute,
        problems=OF_A_CALL,
    ),
    Operation(
        "list_approvals",
        "GET",
        f"{CALL}/approvals",
        "Tool calls that wait for approval",
        gives=bodies.ApprovalList,
        problems=OF_A_CALL,
    ),
    Operation(
        "decide",
        "POST",
        f"{CALL}/approvals/{{call_id}}",
        "Approve or reject a tool call",
        takes=bodies.Decision,
        problems=OF_A_CALL,
    ),
    Operation(
        "get_history",
        "GET",
        f"{CALL}/history",
        "The conversation as the model has it",
        gives=bodies.ItemList,
        problems=OF_A_CALL,
    ),
    Operation(
        "edit_history",
        "PATCH",
        f"{CALL}/history",
        "Remove items from the model's conversation, or correct their text",
        takes=bodies.EditHistory,
        problems=OF_A_CALL,
    ),
    Operation(
        "events",
        "GET",
        f"{CALL}/events",
        "The events of a call as they happen, until it ends",
        gives="text/event-stream",
        problems=OF_A_CALL,
        query={"raw": "the model's own events are sent too"},
    ),
    Operation(
        "forget",
        "DELETE",
        f"{CALL}/record",
        "Delete a call's records from all instances and the shared registry",
        problems=(409, 502, 503, 504),
    ),
    Operation(
        "get_fallback",
        "GET",
        FALLBACK,
        "Whether new callers are sent to the fallback, since when, and why",
        gives=bodies.Fallback,
    ),
    Operation(
        "set_fallback",
        "PUT",
        FALLBACK,
        "Send new callers to the fallback, or connect them to the agent again",
        takes=bodies.SetFallback,
        gives=bodies.Fallback,
        problems=(503, 504),
    ),
    Operation(
        "openapi",
        "GET",
        "/openapi.json",
        "This document",
        gives="application/json",
    ),
)


def document() -> dict[str, Any]:
    """The OpenAPI document, as JSON values."""
    models: set[type[Body]] = {bodies.ProblemBody}
    for operation in OPERATIONS:
        for model in (operation.takes, operation.gives):
            if isinstance(model, type):
                models.add(model)
    named = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in named], ref_template=REFS
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        method = operation.method.lower()
        paths.setdefault(operation.path, {})[method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Control API of the bridge",
            "version": "1",
            "description": "Lists, steers and places calls.",
        },
        "servers": [{"url": "/api"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    problems = {*ALWAYS, *operation.problems}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
    }
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.takes is not None:
        problems |= {*WITH_BODY}
        described["requestBody"] = {
            "required": bool(operation.takes.model_fields),
            "content": _content("application/json", operation.takes),
        }
    answers: dict[str, Any] = {str(operation.success): _answer(operation)}
    for status in sorted(problems):
        answers[str(status)] = {
            "description": PROBLEMS[status],
            "content": _content(MEDIA_TYPE, bodies.ProblemBody),
        }
    described["responses"] = answers
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.gives is None:
        return {"description": "Done."}
    answer: dict[str, Any] = {"description": operation.summary + "."}
    if isinstance(operation.gives, str):
        schema = {"type": "string" if "event" in operation.gives else "object"}
        answer["content"] = {operation.gives: {"schema": schema}}
    else:
        answer["content"] = _content("application/json", operation.gives)
    if operation.status == 201:
        answer["headers"] = {
            "Location": {"description": "Path of the call.", "schema": _TEXT}
        }
    return answer


_TEXT = {"type": "string"}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in names
    ]
    in_query = [
        {"name": name, "in": "query", "description": f"1: {what}.", "schema": _TEXT}
        for name, what in (operation.query or {}).items()
    ]
    in_header = [
        {"name": name, "in": "header", "description": what, "schema": _TEXT}
        for name, what in (operation.headers or {}).items()
    ]
    return [*in_path, *in_query, *in_header]


def _content(media_type: str, model: type[Body]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": REFS.format(model=model.__name__)}}}
