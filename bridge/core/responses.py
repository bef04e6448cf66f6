"""The responses of one call: wanted, requested, generating, cut, to be retried. PURE.

The one owner of "may a response be requested now?". A table (REQUESTS) says how the
bridge's own request changes; a response is running or cut until the server ends it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

MAX_OPEN = 64
"""Most responses being generated, and items of one response. As a rule there is one of
each. Beyond the limit the oldest are forgotten."""

MAX_REMEMBERED = 1024
"""Ids of cut responses and items kept, to recognise their late audio."""

RETRY_SECONDS = 30.0
"""From the first failed response to the last retry; then the call ends. Rate limits are
refilled within seconds, and the caller hears no answer meanwhile."""

BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before the 1st, 2nd, ... retry, if the server gives no time; the last value
holds for all further ones."""

RATE_LIMIT_SECONDS = 1.0
"""Least wait after a rate limit for which the server gives no time: a retry at once
would reach it again."""

LEAST_SECONDS = 0.1
"""Least wait that a server may ask for: a server that always asks for none would be
asked in a tight loop."""

SPREAD = 0.25
"""A retry waits up to this share longer, by the call: calls that reach a rate limit
together do not retry together."""

MAX_LATE = 2
"""This many responses without progress in a row end the call: nobody waits longer."""

MAX_SILENT = 3
"""This many completed responses without a sound in a row end the call."""

MAX_UNFINISHED = 2
"""This many responses in a row that broke off are continued: an agent with a low limit
of tokens would talk for ever."""

OWN_SECONDS = 10.0
"""After a request in the place of the server's own response: that one may still come,
and is the second answer to the same turn."""

RESULTS_SECONDS = 2.5
"""Longest wait for the results of other tools of the same response. Then the agent
speaks of what it has."""

NOW = float("-inf")
"""A wanted response may be requested as soon as the model is free."""

T = TypeVar("T")


class Request(enum.Enum):
    """The bridge's own response.create."""

    NONE = "none"
    SENT = "sent"
    """The server has not created the response yet."""
    STOPPED = "stopped"
    """As SENT, and the response is cancelled as soon as it is created."""


class RequestEvent(enum.Enum):
    SEND = "send"
    CREATED = "created"
    """The server has begun a response, requested or not."""
    FAILED = "failed"
    """The server has refused the request, or the session is lost."""
    STOP = "stop"
    TURN_ENDED = "turn_ended"
    """The caller has spoken: the next response answers that, so it is not stopped."""


REQUESTS: Mapping[Request, Mapping[RequestEvent, Request]] = {
    Request.NONE: {
        RequestEvent.SEND: Request.SENT,
        RequestEvent.CREATED: Request.NONE,
        RequestEvent.FAILED: Request.NONE,
        RequestEvent.STOP: Request.NONE,
        RequestEvent.TURN_ENDED: Request.NONE,
    },
    Request.SENT: {
        RequestEvent.CREATED: Request.NONE,
        RequestEvent.FAILED: Request.NONE,
        RequestEvent.STOP: Request.STOPPED,
        RequestEvent.TURN_ENDED: Request.SENT,
    },
    Request.STOPPED: {
        RequestEvent.CREATED: Request.NONE,
        RequestEvent.FAILED: Request.NONE,
        RequestEvent.STOP: Request.STOPPED,
        RequestEvent.TURN_ENDED: Request.SENT,
    },
}
"""A request that is SENT or STOPPED cannot be sent: that event is missing there, and a
KeyError would be a bug of the bridge."""


class Generation(enum.Enum):
    """A response that the server has created and not ended."""

    RUNNING = "running"
    CUT = "cut"
    """Stopped: its audio is dropped, and the caller does not wait for it."""


@dataclass(slots=True)
class Response:
    """A response that the model is generating."""

    state: Generation = Generation.RUNNING
    messages: dict[str, None] = field(default_factory=dict)
    """Ids of its message items, in order."""
    sent_audio: bool = False
    """Some of its audio went to the caller."""
    called_tool: bool = False
    """It calls a function tool, whose result requests another response."""
    is_awaited: bool = True
    """The caller waits for it: the bridge has requested it, or the server answers the
    caller's turn. Others are user code's own, and may be without a sound."""
    acted: bool = False
    """It has an item that is no message: a tool was called, by whomever."""
    open_calls: dict[str, None] = field(default_factory=dict)
    """Ids of its function calls that the model has not completed."""

    @property
    def is_cut(self) -> bool:
        return self.state is Generation.CUT


class Responses:
    """The responses of one call, over all its sessions and streams."""

    def __init__(self) -> None:
        self._request = Request.NONE
        self._wanted_at: float | None = None
        """From when on a wanted response may be requested; None: none is wanted."""
        self._asks_interim = False
        """The request that is SENT is for an interim answer: the agent says that a tool
        still runs. The caller does not wait for that, so it is not repeated."""
        self._interim: dict[str, None] = {}
        """Ids of interim answers."""
        self._running: dict[str, Response] = {}
        self._cut: dict[str, None] = {}
        self.unanswered = False
        """The caller has spoken, and the server has not created its own response to
        that yet."""
        self.progress = 0.0
        """When a response was last requested, or any part of one received."""
        self.spread = 0.0
        """Share of SPREAD by which retries of this call wait longer: 0 to 1."""
        self._held_until = NOW
        """A wanted response waits for the results of other tools until then."""
        self._own_until = NOW
        """Until then, the server's own response to the caller's turn may come in
        addition to the one that was requested in its place."""
        self._failing_since: float | None = None
        self._retries = 0
        self._late = 0
        self._silent = 0
        self._unfinished = 0

    # --- requests ---

    def want(self, now: float, at: float = NOW) -> None:
        """A response is owed: requested at `at` at the earliest. The time of a retry
        that is under way stays."""
        self._wanted_at = max(at, NOW if self._wanted_at is None else self._wanted_at)
        self.made_progress(now)

    def hold(self, now: float, *, waits: bool) -> None:
        """`waits`: results of other tools are still awaited; the time begins with the
        first result."""
        if not waits:
            self._held_until = NOW
        elif self._held_until < now:
            self._held_until = now + RESULTS_SECONDS

    def is_held(self, now: float) -> bool:
        """A response is wanted, and waits for results of tools."""
        return self.is_wanted and now < self._held_until

    def answer_turn(self, now: float, *, again: bool = False) -> None:
        """The server has not begun its own response to the caller's turn: one is
        requested in its place, unless one is under way. `again`: the one that is under
        way answers an earlier turn."""
        self.unanswered = False
        self._own_until = now + OWN_SECONDS
        if again or not self.generating:
            self.want(now)

    def is_answered(self, now: float) -> bool:
        """The server has refused one of two responses to the same turn: the other one
        is being generated."""
        answered = now < self._own_until and bool(self._running)
        if answered:
            self._own_until = NOW
        return answered

    def made_progress(self, now: float) -> None:
        """Part of a response has arrived, or something excuses that none has. The time
        of a retry that is under way stays: until then no response can come."""
        self.progress = max(now, NOW if self._wanted_at is None else self._wanted_at)

    def requested(self, now: float, *, interim: bool = False) -> None:
        """response.create is sent now, at `request_at` or later."""
        self._wanted_at, self._held_until = None, NOW
        self._on(RequestEvent.SEND)
        self._asks_interim = interim
        self.made_progress(now)

    def repeat_request(self, now: float) -> None:
        """The requested response, which the server has not created yet, does not know
        all that it is to speak of: another one takes its place."""
        if self._request is Request.SENT:
            self._on(RequestEvent.STOP)
            self.want(now)

    def drop_interim_request(self) -> None:
        """An answer is owed now: an interim answer that the server has not begun is not
        needed any more."""
        if self._asks_interim:
            self._on(RequestEvent.STOP)

    def request_failed(self) -> bool:
        """The requested response will not come. False: it was stopped, so nobody waits
        for it."""
        stopped = self._request is Request.STOPPED
        self._on(RequestEvent.FAILED)
        return not stopped

    def interrupted(
        self, *, answers: bool, only: str | None, cut: set[str], now: float
    ) -> None:
        """The responses in `cut` were cut. `answers`, `only`: as in
        CallSpeech.interrupt."""
        if only is None:
            self._on(RequestEvent.STOP)
        elif not cut <= {only, *self._interim}:
            self.want(now)
        if answers:
            # The server's response is another try, with a time of its own.
            self._wanted_at = self._failing_since = None
            self._own_until = self._held_until = NOW
            self._retries = self._silent = self._unfinished = 0
            if any(it.sent_audio for key, it in self._running.items() if key in cut):
                self._late = 0  # the caller heard it, and did not wait for its end
        self.made_progress(now)

    def session_lost(self, now: float) -> None:
        """The session is lost, with the requested response: that one is owed, unless it
        was stopped."""
        if self._request is Request.SENT and not self._asks_interim:
            self.want(now)
        self._own_until = NOW
        self._on(RequestEvent.FAILED)
        self.made_progress(now)

    def stream_lost(self, *, wants: bool, now: float) -> None:
        """The stream is lost: the requested response is cancelled when it is created,
        and owed. `wants`: a response that was cut before it could be heard is, too."""
        if wants or (self.is_requested and not self._asks_interim):
            self.want(now)
        self._on(RequestEvent.STOP)

    def expect_no_second(self) -> None:
        """A response that the bridge has not requested is no second answer to the turn
        before: the caller speaks again, or user code has requested it."""
        self._own_until = NOW

    def turn_ended(self) -> None:
        """The caller has stopped speaking."""
        self._on(RequestEvent.TURN_ENDED)

    def _on(self, event: RequestEvent) -> None:
        self._request = REQUESTS[self._request][event]
        self._asks_interim = self._asks_interim and self._request is Request.SENT

    @property
    def is_requested(self) -> bool:
        """A response was requested, and the server has not created it yet."""
        return self._request is not Request.NONE

    @property
    def is_failing(self) -> bool:
        """The response that the caller waits for has failed, and is tried again."""
        return self._failing_since is not None and self.generating

    def waits_for_retry(self, now: float) -> bool:
        """No response is under way, and the next try has its time later."""
        at = self.request_at
        return at is not None and at > now

    @property
    def is_free(self) -> bool:
        """No response is wanted, requested or being generated."""
        free = not self._running and not self.is_requested
        return free and not self.is_wanted

    def is_interim(self, response_id: str) -> bool:
        """The agent says in this response that a tool still runs."""
        return response_id in self._interim

    @property
    def is_ignored(self) -> bool:
        """The response that was requested in the place of the server's own has not been
        created either."""
        return self.is_requested and self.progress < self._own_until

    @property
    def is_wanted(self) -> bool:
        return self._wanted_at is not None

    @property
    def request_at(self) -> float | None:
        """From when on the wanted response may be requested: NOW, or the time of a
        retry, or until when it waits for results of tools. None: none is wanted, or
        another response must end first."""
        if self._wanted_at is None or self._running or self.is_requested:
            return None
        return max(self._wanted_at, self._held_until)

    @property
    def generating(self) -> bool:
        """A response is owed, requested, or being generated and not cut."""
        if self.is_requested or self.is_wanted:
            return True
        return bool(self._running) and not all(
            [response.is_cut for response in self._running.values()]
        )

    # --- what the server generates ---

    def created(self, response_id: str, *, has_stream: bool, now: float) -> bool:
        """The server began a response. False: it was stopped meanwhile, or is a second
        one to the same turn, and must be cancelled. Without a stream nobody hears it:
        it is cancelled, and wanted."""
        stopped = self._request is Request.STOPPED or not has_stream
        if now < self._own_until and not self.is_requested:
            # The server's own response, late: in the place of the one that is wanted
            # for the turn, or a second one.
            stopped = stopped or not self.is_wanted
            self._own_until, self._wanted_at = NOW, None
        interim = self._asks_interim and not self.unanswered
        if interim:
            remember(self._interim, response_id, None, MAX_OPEN)
        awaited = (self.is_requested or self.unanswered) and not interim
        self._on(RequestEvent.CREATED)
        self.unanswered = False
        self.made_progress(now)
        if not has_stream and not interim and not self.is_wanted:
            self._wanted_at = NOW
        response = Response(is_awaited=awaited)
        remember(self._running, response_id, response, MAX_OPEN)
        if stopped:
            self.cut(response_id)
        return not stopped

    def get(self, response_id: str) -> Response | None:
        return self._running.get(response_id)

    def cut(self, response_id: str) -> None:
        """From now on, audio and text of this response are late."""
        response = self._running.get(response_id)
        if response:
            response.state = Generation.CUT
        remember(self._cut, response_id, None)

    def was_cut(self, response_id: str) -> bool:
        """The caller does not wait for this response."""
        return response_id in self._cut

    def done(self, response_id: str) -> Response | None:
        """The server has ended the response; None: it is unknown."""
        return self._running.pop(response_id, None)

    @property
    def ids(self) -> list[str]:
        """Responses that the server has not ended."""
        return list(self._running)

    @property
    def running(self) -> dict[str, Response]:
        """Responses that are being generated and are not cut."""
        return {key: it for key, it in self._running.items() if not it.is_cut}

    # --- failures ---

    def succeeded(self) -> None:
        """A response is complete. One that is only audible may fail or stall yet: a
        server that never completes any would be asked without end."""
        self._failing_since, self._retries, self._late = None, 0, 0
        self._silent = self._unfinished = 0

    def may_continue(self) -> bool:
        """A response broke off. True: another one may continue it."""
        self._unfinished += 1
        return self._unfinished <= MAX_UNFINISHED

    def silent(self) -> bool:
        """A response that the caller waits for is complete, without a sound. False: the
        call must end."""
        self._silent += 1
        return self._silent < MAX_SILENT

    def late(self) -> bool:
        """A response made no progress. False: the call must end."""
        self.unanswered = False  # the server would have begun by now
        self._late += 1
        return self._late < MAX_LATE

    def retry(
        self, after: float | None, *, rate_limit: bool, now: float
    ) -> float | None:
        """A response that the caller waits for failed. `after`: the seconds that the
        server asks to wait. Returns the seconds until the retry; None: the call must
        end."""
        if self._failing_since is None:
            self._failing_since = now
        if after is not None:
            wait = max(after, LEAST_SECONDS)
        else:
            wait = BACKOFF[min(self._retries, len(BACKOFF) - 1)]
            wait = max(wait, RATE_LIMIT_SECONDS) if rate_limit else wait
        wait *= 1 + SPREAD * self.spread
        if now + wait > self._failing_since + RETRY_SECONDS:
            return None
        self._retries += 1
        return wait


def remember(
    memory: dict[str, T], key: str, value: T, most: int = MAX_REMEMBERED
) -> None:
    """Adds an entry; beyond `most` the oldest is forgotten, whatever a server sends."""
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]
