"""The control API described: its operations, and the OpenAPI 3.1 document of them.

api.py makes its routes of the same list. Made by hand: no framework knows more.
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
    400: "The body cannot be read, or is no JSON.",
    401: "The token is missing or wrong.",
    403: "A page of another origin, or a number that may not be called.",
    404: "There is no such call, approval or path.",
    408: "The body did not come in time.",
    409: "Another instance has the call, outbound calls are not set up, or the call "
    "still runs.",
    410: "The call is over.",
    413: "The body is too large.",
    415: "The body is not application/json, or packed.",
    422: "What was asked for cannot be done; `errors` or `detail` says why.",
    429: "Too many requests, calls or readers of events; see Retry-After where it is "
    "given.",
    500: "A bug, or a record that cannot be deleted.",
    502: "Twilio did not place the call.",
    503: "The registry of calls does not answer, or no line is free.",
    504: "Not done within a minute; it may be done yet.",
}
ALWAYS = (401, 403, 429, 500)
WITH_BODY = (400, 408, 413, 415, 422)
OF_A_CALL = (404, 409, 410, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path (below /api)."""

    name: str
    method: str
    path: str
    summary: str
    takes: type[Body] | None = None
    gives: type[Body] | str | None = None
    """A body, a media type, or nothing (204)."""
    status: int = 200
    problems: tuple[int, ...] = ()
    query: Mapping[str, str] | None = None
    """Name -> what `1` means."""

    @property
    def success(self) -> int:
        return self.status if self.gives is not None else 204


CALL = "/calls/{sid}"

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
        "Call somebody",
        takes=bodies.PlaceCall,
        gives=bodies.Placed,
        status=201,
        problems=(409, 502, 503, 504),
    ),
    Operation(
        "get_call",
        "GET",
        CALL,
        "All that is known of a call",
        gives=bodies.CallDetails,
        problems=OF_A_CALL,
    ),
    Operation(
        "hang_up",
        "POST",
        f"{CALL}/hang_up",
        "End the call once what was said has been heard",
        takes=bodies.Nothing,
        gives=bodies.Done,
        problems=(*OF_A_CALL, 504),
    ),
    Operation(
        "transfer",
        "POST",
        f"{CALL}/transfer",
        "Put the caller through once what was said has been heard",
        takes=bodies.TransferTo,
        gives=bodies.Done,
        problems=(*OF_A_CALL, 504),
    ),
    Operation(
        "send_digits",
        "POST",
        f"{CALL}/digits",
        "Press keys once what was said has been heard",
        takes=bodies.Digits,
        gives=bodies.Done,
        problems=(*OF_A_CALL, 504),
    ),
    Operation(
        "send_text",
        "POST",
        f"{CALL}/text",
        "Put words into the conversation",
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
        "Have the agent hear silence, or the caller again",
        takes=bodies.Mute,
        problems=OF_A_CALL,
    ),
    Operation(
        "list_approvals",
        "GET",
        f"{CALL}/approvals",
        "Tool calls that wait for a yes or no",
        gives=bodies.ApprovalList,
        problems=OF_A_CALL,
    ),
    Operation(
        "decide",
        "POST",
        f"{CALL}/approvals/{{call_id}}",
        "Let a tool call run, or not",
        takes=bodies.Decision,
        problems=(*OF_A_CALL, 504),
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
        "Have the model forget items, or remember other words",
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
        query={"raw": "the model's own events, too"},
    ),
    Operation(
        "forget",
        "DELETE",
        f"{CALL}/record",
        "Delete what this instance and the shared registry keep of a call",
        problems=(409, 503, 504),
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
            "description": "Running calls seen, steered and placed.",
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
    return [*in_path, *in_query]


def _content(media_type: str, model: type[Body]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": REFS.format(model=model.__name__)}}}
