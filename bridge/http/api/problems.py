"""Errors of the control API: `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from bridge.fleet.requests import Answer
from bridge.http.api.bodies import Mistake, ProblemBody

MEDIA_TYPE = "application/problem+json"
NAMES = "urn:problem:bridge:"


class Problem(Exception):
    """Raised where a request cannot be fulfilled. `kind` is the stable last part of
    `type`.

    `detail` and `errors` are sent to the client and never logged.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str = "",
        *,
        errors: Sequence[Mistake] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(title)
        self.status = status
        self.kind = kind
        self._body = ProblemBody(
            type=NAMES + kind,
            title=title,
            status=status,
            detail=detail,
            errors=list(errors),
        )
        self._headers = headers

    def answer(self) -> Answer:
        body = self._body.model_dump_json().encode()
        return Answer(self.status, body, MEDIA_TYPE, self._headers or {})

    def response(self) -> web.Response:
        return response_of(self.answer())


def response_of(answer: Answer) -> web.Response:
    """An answer of this instance, or of another one, for the client."""
    return web.Response(
        status=answer.status,
        body=answer.body or None,
        content_type=answer.content_type or None,
        headers=answer.headers,
    )


class Refused(Problem):
    """An outbound call was not placed."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(status, "call-refused", title, detail)


def invalid(errors: Sequence[Mistake]) -> Problem:
    return Problem(422, "invalid", "The request is not valid", errors=errors)
