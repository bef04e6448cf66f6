"""The agent's speech, whatever the leg: its responses, and what both legs answer. PURE.

AgentSpeech (agent_speech.py) sends the audio to the caller itself; SipSpeech
(sip_speech.py) follows a server that does.
"""

import math
from abc import ABC, abstractmethod

from bridge.core import realtime_events, realtime_requests
from bridge.core.commands import Command, ToModel
from bridge.core.history import History, Playing
from bridge.core.playback import Key
from bridge.core.realtime_requests import EventIds
from bridge.core.responses import MAX_OPEN, NOW, Response, Responses, remember
from bridge.core.sessions import Sessions
from bridge.core.stream_presence import StreamPresence

ANSWER_ID = "bridge_answer"
"""event_id of the bridge's own response.create."""

INTERIM_ID = "bridge_interim"
"""The same for one that asks for an interim answer (interim_answers.py)."""


class CallSpeech(ABC):
    """The agent's responses in one call.

    Invariants:
    - A response is requested only if none is requested or generating, and if the model
      knows what the caller heard of earlier ones (`held_until` is None).
    - Without a session (Sessions) nothing is sent to the model; without a stream
      (StreamPresence) no response is requested.
    """

    def __init__(
        self,
        history: History,
        sessions: Sessions,
        stream: StreamPresence,
        ids: EventIds,
    ) -> None:
        self._history = history
        self._sessions = sessions
        self._stream = stream
        self._ids = ids
        self.responses = Responses()
        self.broken_off = False
        """The caller heard a response break off in the middle: the session or the
        stream was lost."""

    # --- the model generates ---

    def response_created(self, response_id: str, now: float) -> list[Command]:
        """The server began a response; cancels it at once if it was stopped
        meanwhile."""
        has_stream = not self._stream.is_lost
        goes_on = self.responses.created(response_id, has_stream=has_stream, now=now)
        if not self.responses.is_interim(response_id):
            self._history.response_began()
        return [] if goes_on else self._cancel(response_id)

    def item_added(self, event: realtime_events.OutputItemAdded, now: float) -> None:
        """The response has another item; messages and function calls matter here."""
        self.responses.made_progress(now)
        response = self.responses.get(event.response_id)
        if response and event.item.type == "message":
            remember(response.messages, event.item.id, None, MAX_OPEN)
        elif response:
            response.acted = True
            if event.item.type == "function_call":
                response.called_tool = True
                remember(response.open_calls, event.item.id, None, MAX_OPEN)

    def output_item_done(self, event: realtime_events.OutputItemDone) -> None:
        """An item of the response has ended. The SDK runs the tool of a function call
        only if the model has completed the call."""
        item = event.item
        if item.type != "function_call" or item.status != "completed":
            return
        if item.call_id:
            self._history.called(item.call_id)
        response = self.responses.get(event.response_id)
        if response:
            response.acted = response.called_tool = True  # `added` may not have come
            response.open_calls.pop(item.id, None)

    def sounded(self, response_id: str) -> bool:
        """The caller hears some of this response, which has not ended."""
        response = self.responses.get(response_id)
        return response is not None and response.sent_audio

    def leads_to_result(self, response_id: str) -> bool:
        """A function tool runs that this response has called, or has run: its result
        requests another response, also if this one fails."""
        response = self.responses.get(response_id)
        return response is not None and response.called_tool and not response.open_calls

    @abstractmethod
    def transcript_delta(
        self, event: realtime_events.TranscriptDelta, now: float
    ) -> None:
        """Text of a response; dropped if it was cut."""

    @abstractmethod
    def response_done(
        self, response_id: str, now: float, *, completed: bool = True
    ) -> list[Command]:
        """The model ended this response, completed or not."""

    def drop_responses(self, now: float) -> list[Command]:
        """Gives up responses without progress; audio that was sent is still played."""
        commands: list[Command] = []
        # Reset first: response_done may request a response that is owed.
        self.responses.request_failed()
        self.responses.made_progress(now)
        running = self.responses.running
        for response_id in self.responses.ids:
            if response_id in running:
                commands += self._cancel(response_id)
            # Cut only afterwards: what was sent of it is heard to its end.
            commands += self.response_done(response_id, now, completed=False)
            self.responses.cut(response_id)
        return commands

    def _end_response(self, response_id: str) -> Response | None:
        """The server has ended the response; None: it is unknown."""
        response = self.responses.done(response_id)
        for item_id in response.open_calls if response else ():
            self._history.remove(item_id)  # cut: its tool never runs
        return response

    # --- requests ---

    def request_response(self, now: float) -> list[Command]:
        """Requests a response: now, or once the model is free (`request_if_free`)."""
        self.responses.want(now)
        return self.request_if_free(now)

    def request_if_free(self, now: float) -> list[Command]:
        """Requests the response that is owed, if there is one and the model is free."""
        due_at = self.responses.request_at
        if due_at is None or now < self._after_fences(due_at):
            return []
        told = self.tell_heard()
        self.responses.requested(now)
        return [*told, ToModel(realtime_requests.create_response(ANSWER_ID))]

    def may_request_interim(self, now: float) -> bool:
        """No response is wanted or under way, and one may be requested now."""
        return self.responses.is_free and now >= self._after_fences(NOW)

    def request_interim(self, now: float) -> list[Command]:
        """Requests an interim answer; only if `may_request_interim`."""
        told = self.tell_heard()
        self.responses.requested(now, interim=True)
        request = realtime_requests.create_response_without_tools(INTERIM_ID)
        return [*told, ToModel(request)]

    def _after_fences(self, due_at: float) -> float:
        """When a response that is due at `due_at` may be requested: it waits for the
        fences that it needs, but not for long. Never without a session or a stream."""
        if self._stream.is_lost or not self._sessions.has_session:
            return math.inf
        held_until = self.held_until
        return due_at if held_until is None else max(due_at, held_until)

    @property
    def retry_at(self) -> float | None:
        """When a response is requested that waits: after a failure, for results of
        tools, or for a fence. None: not by time."""
        due_at = self.responses.request_at
        if due_at is None:
            return None
        request_at = self._after_fences(due_at)
        return None if math.isinf(request_at) else request_at

    def retry_if_due(self, now: float) -> list[Command]:
        """Requests a response that waits, if its time has come."""
        due = self.retry_at is not None
        return self.request_if_free(now) if due else []

    def request_failed(self, now: float) -> list[Command]:
        """The requested response will not come; another may be owed."""
        self.responses.request_failed()
        return self.request_if_free(now)

    def want_response(self, now: float) -> None:
        """A response is owed after the one that is active at the server, or about to
        be, though its `response.created` may not have arrived."""
        self.responses.request_failed()
        self.responses.want(now)

    # --- what the caller hears ---

    @abstractmethod
    def interrupt(
        self,
        by: str,
        now: float,
        *,
        cancels: bool,
        answers: bool = False,
        only: str | None = None,
    ) -> list[Command]:
        """Silences the agent at once.

        - `cancels`: the server cancels its own response by itself.
        - `answers`: the server responds to the caller by itself, so no response is
          owed.
        - `only`: the response to stop; all others that this stops, too, are requested
          again.
        """

    @abstractmethod
    def is_live(self, response_id: str) -> bool:
        """The response is being generated, or some of it may still be heard."""

    @property
    @abstractmethod
    def queued(self) -> bool:
        """Some audio may still be played to the caller."""

    @property
    @abstractmethod
    def queue_ends(self) -> float:
        """When that audio should have been played."""

    @abstractmethod
    def call_ended(self, now: float, *, clears: bool = False) -> list[Command]:
        """Settles all items in the history; sends nothing to the model. `clears`: the
        caller hears nothing more; else the audio that is queued may be played."""

    @abstractmethod
    def session_lost(self, now: float, *, tools: bool) -> list[Command]:
        """The session is lost, or was left: ends its responses. `tools`: a tool is
        running, and its result will request the response that follows a tool call."""

    # --- only where the audio passes here; nothing, if the server plays it ---

    def audio(self, event: realtime_events.AudioDelta, now: float) -> list[Command]:
        """Audio of a response."""
        return []

    def item_done(self, key: Key, now: float) -> list[Command]:
        """All audio of this part was received."""
        return []

    def counts(self, item_id: str) -> bool:
        """How much of this item the caller hears is counted: its text in the history is
        the text that was heard, whatever a server shows."""
        return False

    def playing(self, now: float) -> list[Playing]:
        """Parts of items whose audio is on its way to the caller, in order."""
        return []

    @property
    def plays_bridge_audio(self) -> bool:
        """The caller has not heard all of the bridge's own audio yet."""
        return False

    def stop_waiting_sound(self, now: float) -> list[Command]:
        """Ends the sound that the caller hears while they wait."""
        return []

    @property
    def held_until(self) -> float | None:
        """Until when a response waits for the fences of cuts that the model does not
        know; None: it knows all."""
        return None

    @property
    def fence_lost_at(self) -> float | None:
        """When the oldest fence does not come any more; None: none is awaited."""
        return None

    def tell_heard(self) -> list[Command]:
        """A response begins: tells the model what was heard of each cut whose fence is
        not back."""
        return []

    def give_up_fences(self, now: float) -> list[Command]:
        """Settles every cut whose fence does not come any more."""
        return []

    # --- only where the server plays the audio ---

    @property
    def unreported_at(self) -> float | None:
        """When a response counts as heard, though the server has not reported the end
        of its audio; None: no response is played."""
        return None

    def give_up_unreported(self, now: float) -> list[Command]:
        """Settles the responses whose `unreported_at` has come."""
        return []

    def playout(self, event: realtime_events.Playout, now: float) -> list[Command]:
        """The server began to play a response, or stopped."""
        return []

    # --- helpers ---

    def _cancel(self, response_id: str) -> list[Command]:
        return self._to_model(realtime_requests.cancel(response_id, self._ids.next()))

    def _to_model(self, text: str) -> list[Command]:
        return [ToModel(text)] if self._sessions.has_session else []
