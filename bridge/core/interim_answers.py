"""Words for a caller who waits for a slow tool: the agent says that it is not done.

PURE. The request for such an interim answer is made while the call of the tool has no
output yet. OpenAI's models since gpt-realtime go on with a conversation meanwhile
("asynchronous function calling"); a server that does not is asked once.
"""

import math

from bridge.core import errors, realtime_events
from bridge.core.activity import Activity
from bridge.core.commands import Command, Note
from bridge.core.endings import Endings
from bridge.core.history import History
from bridge.core.model_side import ModelSide
from bridge.core.rules import NO_RESULT_YET
from bridge.core.running_tools import RunningTools
from bridge.core.silent_wait import SilentWait
from bridge.core.speech import CallSpeech

MOST = 3
"""Interim answers until no tool runs any more; then the waiting sound has to do."""

IGNORED_SECONDS = 3.0
"""A server that has not begun the interim answer by then does not begin it."""

CHECK_SECONDS = 0.5
"""Between two checks whether the answer may be requested."""

IGNORED, SILENT, FAILED = "ignored", "silent", "failed"
"""Reasons for which no further interim answer is requested in a call."""


class InterimAnswers:
    """The interim answers of one call.

    Requested after `seconds` of silence while a tool runs: never while the caller
    speaks, the agent speaks or is about to, or the call ends. Their instruction is
    withdrawn when they end, because it does not hold for long.
    """

    def __init__(
        self,
        wait: SilentWait,
        activity: Activity,
        endings: Endings,
        model: ModelSide,
        speech: CallSpeech,
        tools: RunningTools,
        history: History,
    ) -> None:
        self._wait = wait
        self._activity = activity
        self._model = model
        self._speech = speech
        self._responses = speech.responses
        self._tools = tools
        self._history = history
        self._endings = endings
        self.seconds: float | None = None
        """As Rules.slow_tool_seconds."""
        self.due_at: float | None = None
        """When `ask_if_due` must be called; None: there is nothing to do. Kept, because
        it is read for every frame."""
        self.is_active = False
        """Something is left to do, also when no tool runs any more."""
        self._not_before = -math.inf
        self._count = 0
        """Interim answers since a tool began while none ran."""
        self._given_up = False
        self._item = ""
        """The instruction that the model has; empty: none."""
        self._asked_at: float | None = None
        """When the request was sent that the server has not answered yet."""
        self._response = ""
        """The interim answer that is being generated."""

    def watch(self, now: float) -> list[Command]:
        """Runs behind SilentWait.watch, after every input while a tool runs or
        `is_active`."""
        if not self._tools.calls:
            self._count = 0
        self.is_active = bool(self._tools.calls or self._item)
        if self._item and not self._activity.has_both_sides:
            self._asked_at = self.due_at = None
            self._response = ""  # it ended with its session
            return self._withdraw()
        if self._asked_at is not None:
            self.due_at = self._asked_at + IGNORED_SECONDS
        elif self.seconds is None or not self._may_be_due:
            self.due_at = None
        else:
            self.due_at = max(self._wait.silent_since + self.seconds, self._not_before)
        return []

    @property
    def _may_be_due(self) -> bool:
        """The caller waits for nothing but a tool."""
        if self._wait.since is None or not self._tools.calls or self._given_up:
            return False
        if self._count >= MOST or not self._activity.has_both_sides:
            return False
        ends = self._endings.at is not None or self._endings.waits.will_end_call
        return not ends and self._responses.is_free and not self._responses.unanswered

    def ask_if_due(self, now: float) -> list[Command]:
        """Requests the answer, or gives up one that the server does not begin."""
        if self.due_at is None or now < self.due_at:
            return []
        if self._asked_at is not None:
            self._asked_at = None
            gone = self._speech.request_failed(now)
            return [*self._give_up(IGNORED), *gone]
        assert self.seconds is not None
        silent_since = self._wait.silent_since
        if now < silent_since + self.seconds:  # the caller has heard something
            return []
        if not self._speech.may_request_interim(now):
            self._not_before = now + CHECK_SECONDS
            return []
        names = dict.fromkeys(map(self._history.name_of, self._tools.calls))
        tools = ", ".join(filter(None, names)) or "a tool"
        self._item, message = self._model.add_passing(NO_RESULT_YET.format(tools=tools))
        self._count += 1
        self._asked_at = now
        note = Note("interim_answer", {"seconds": now - silent_since})
        return [note, message, *self._speech.request_interim(now)]

    def created(self, response_id: str) -> list[Command]:
        """The server has begun a response."""
        self._asked_at = None
        if self._responses.is_interim(response_id):
            self._response = response_id
            return []
        return [] if self._response else self._withdraw()

    def refused(self, error: realtime_events.ErrorDetails, now: float) -> list[Command]:
        """The server has refused the request."""
        if self._asked_at is None:
            return []
        self._asked_at = None
        gone = self._speech.request_failed(now)
        if errors.is_benign(error) or errors.may_pass(error):
            return [*self._withdraw(), *gone]
        return [*self._give_up(errors.short(error.code or error.type)), *gone]

    def done(
        self, response: realtime_events.ResponseHead, *, sounded: bool
    ) -> list[Command]:
        """A response has ended. `sounded`: the caller hears some of it."""
        if response.id != self._response or not response.id:
            return []
        self._response = ""
        cut = self._responses.was_cut(response.id)
        if sounded or cut or response.why == errors.RATE_LIMIT:
            return self._withdraw()
        completed = response.status in ("completed", None)
        return self._give_up(SILENT if completed else FAILED)

    def _give_up(self, why: str) -> list[Command]:
        self._given_up = True
        return [Note("interim_answer_failed", {"why": why}), *self._withdraw()]

    def _withdraw(self) -> list[Command]:
        item_id, self._item = self._item, ""
        return self._model.withdraw(item_id) if item_id else []
