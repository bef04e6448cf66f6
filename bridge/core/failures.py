"""Errors of the model's server and failed responses: retry, another session, or end.

PURE. errors.py classifies the errors.
"""

from bridge.core import errors, realtime_events
from bridge.core.call_state import CallState
from bridge.core.commands import Command, Note, Value
from bridge.core.model_side import PROBE_ID
from bridge.core.responses import NOW
from bridge.core.speech import ANSWER_ID, INTERIM_ID

MAX_MESSAGE_CHARS = 2000
"""Characters kept of the message of a model error: only people read it."""


class Failures:
    """The failures of one call."""

    def __init__(self, call: CallState) -> None:
        self._call = call

    def retry(self, code: str, message: str | None, now: float) -> Note | None:
        """A response that the caller waits for failed: another one is wanted, later if
        the server asks for that. None: no retry can succeed in time, so the call must
        end."""
        if code in errors.FATAL_CODES:
            return None
        after, rate_limit = errors.retry_after(message), code == errors.RATE_LIMIT
        wait = self._call.responses.retry(after, rate_limit=rate_limit, now=now)
        if wait is None:
            return None
        if not self._server_answers:
            self._call.responses.want(now, now + wait if wait else NOW)
        return Note("answer_retried", {"seconds": wait})

    def retry_silent(self, now: float) -> Note | None:
        """A response that the caller waits for is complete without a sound. As
        `retry`."""
        return self.retry("", None, now) if self._call.responses.silent() else None

    @property
    def _server_answers(self) -> bool:
        """The caller has spoken, or speaks: the server answers that by itself, and a
        retry would be a second answer."""
        speaks = self._call.caller.speaking and self._call.model.server_responds
        return speaks or self._call.responses.unanswered

    def end(self, now: float) -> list[Command]:
        """Ends the call after `retry` has returned None."""
        return self._call.end("model", "failed", now)

    def error(self, error: realtime_events.ErrorDetails, now: float) -> list[Command]:
        """An error of the server."""
        benign = errors.is_benign(error)
        data: dict[str, Value] = {
            "code": errors.short(error.code or error.type),
            "param": errors.short(error.param) or None,
            "benign": benign,
        }
        if error.event_id == PROBE_ID:
            self._call.sessions.probe_answered(now)
            return []
        words = {"message": error.message[:MAX_MESSAGE_CHARS]}
        note = Note("model_error", data, words)
        outputs = self._call.outbox.refused(error.event_id, error.message)
        if not self._call.sessions.has_session and not benign:
            if errors.may_pass(error):
                return [note, *self._call.model.redial("error", now)]
            # The session would go on with the server's defaults: PCM, no instructions.
            return [note, *self._call.end("model", "refused", now)]
        if error.event_id == INTERIM_ID:
            return [note, *self._call.interim_answers.refused(error, now)]
        if error.code == errors.ACTIVE_CODE:
            # Refused because a response is active: our request, or the server's own
            # response to what the caller said while the agent went on speaking.
            ours_or_own = error.event_id in (None, ANSWER_ID)
            if ours_or_own and not self._call.responses.is_answered(now):
                self._call.speech.want_response(now)
                # The server does not respond by itself any more.
                refused = error.event_id is None
                self._call.responses.unanswered &= not refused
            return [note]
        if outputs:
            return [note, *self._call.model.retell(outputs, now)]
        if error.event_id == ANSWER_ID:
            if benign:
                return [note, *self._call.speech.request_failed(now)]
            if not self._call.responses.request_failed():
                return [note, *self._call.speech.request_if_free(now)]
            retried = self.retry(error.code or "", error.message, now)
            if retried is None:
                return [note, *self.end(now)]
            return [note, retried, *self._call.speech.request_if_free(now)]
        return [note]
