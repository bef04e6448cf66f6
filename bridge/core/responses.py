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
"""Least wait after a rate limit: a retry at once would reach it again."""

SPREAD = 0.25
"""A retry waits up to this share longer, by the call: calls that reach a rate limit
together do not retry together."""

MAX_LATE = 2
"""This many responses without progress in a row end the call: nobody waits longer."""

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
        self._running: dict[str, Response] = {}
        self._cut: dict[str, None] = {}
        self.unanswered = False
        """The caller has spoken, and the server has not created its own response to
        that yet."""
        self.progress = 0.0
        """When a response was last requested, or any part of one received."""
        self.spread = 0.0
        """Share of SPREAD by which retries of this call wait longer: 0 to 1."""
        self._failing_since: float | None = None
        self._retries = 0
        self._late = 0

    # --- requests ---

    def want(self, now: float, at: float = NOW) -> None:
        """A response is owed: requested at `at` at the earliest. The time of a retry
        that is under way stays."""
        self._wanted_at = max(at, NOW if self._wanted_at is None else self._wanted_at)
        self.made_progress(now)

    def made_progress(self, now: float) -> None:
        """Part of a response has arrived, or something excuses that none has. The time
        of a retry that is under way stays: until then no response can come."""
        self.progress = max(now, NOW if self._wanted_at is None else self._wanted_at)

    def take_request(self, now: float) -> bool:
        """True: response.create must be sent now. The caller of this method has checked
        that the session and the stream are there."""
        if self._wanted_at is None or now < self._wanted_at:
            return False
        if self.is_requested or self._running:
            return False
        self._wanted_at = None
        self._on(RequestEvent.SEND)
        self.made_progress(now)
        return True

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
        elif cut != {only}:
            self.want(now)
        if answers:
            # The server's response is another try, with a time of its own.
            self._wanted_at = self._failing_since = None
            self._retries = 0
            if any(it.sent_audio for key, it in self._running.items() if key in cut):
                self._late = 0  # the caller heard it, and did not wait for its end
        self.made_progress(now)

    def session_lost(self, now: float) -> None:
        """The session is lost, with the requested response: that one is owed, unless it
        was stopped."""
        if self._request is Request.SENT:
            self.want(now)
        self._on(RequestEvent.FAILED)
        self.made_progress(now)

    def stream_lost(self, *, wants: bool, now: float) -> None:
        """The stream is lost: the requested response is cancelled when it is created,
        and owed. `wants`: a response that was cut before it could be heard is, too."""
        if wants or self.is_requested:
            self.want(now)
        self._on(RequestEvent.STOP)

    def turn_ended(self) -> None:
        """The caller has stopped speaking."""
        self._on(RequestEvent.TURN_ENDED)

    def _on(self, event: RequestEvent) -> None:
        self._request = REQUESTS[self._request][event]

    @property
    def is_requested(self) -> bool:
        """A response was requested, and the server has not created it yet."""
        return self._request is not Request.NONE

    @property
    def is_wanted(self) -> bool:
        return self._wanted_at is not None

    @property
    def due_at(self) -> float | None:
        """When the retry that is under way is due; None: there is none, or another
        response must end first."""
        if self.is_requested or self._running or self._wanted_at == NOW:
            return None
        return self._wanted_at

    @property
    def generating(self) -> bool:
        """A response is owed, requested, or being generated and not cut."""
        if self.is_requested or self.is_wanted:
            return True
        return any(not response.is_cut for response in self._running.values())

    # --- what the server generates ---

    def created(self, response_id: str, *, has_stream: bool, now: float) -> bool:
        """The server began a response. False: it was stopped meanwhile and must be
        cancelled. Without a stream nobody hears it: it is cancelled, and wanted."""
        stopped = self._request is Request.STOPPED or not has_stream
        self._on(RequestEvent.CREATED)
        self.unanswered = False
        self.made_progress(now)
        if not has_stream and not self.is_wanted:
            self._wanted_at = NOW
        remember(self._running, response_id, Response(), MAX_OPEN)
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
        wait = BACKOFF[min(self._retries, len(BACKOFF) - 1)] if after is None else after
        if rate_limit:
            wait = max(wait, RATE_LIMIT_SECONDS)
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
