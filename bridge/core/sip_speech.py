"""The agent's speech where the model's server plays it (SIP): what was heard. PURE.

The server reports when the audio of a response starts, stops or is cleared. It does not
report at which word a cleared one stopped.
"""

from dataclasses import dataclass, field

from bridge.core import realtime_events, realtime_requests
from bridge.core.commands import Command, Interrupted, Note, Value
from bridge.core.history import History
from bridge.core.realtime_requests import EventIds
from bridge.core.responses import MAX_OPEN, remember
from bridge.core.sessions import Sessions
from bridge.core.speech import CallSpeech
from bridge.core.stream_presence import StreamPresence
from bridge.core.transcript import first_words
from bridge.core.waits import HEARD_SECONDS

CHARS_PER_SECOND = 15.0
"""Assumed rate of speech: estimates the heard part of a cleared response, to within a
few words."""

MAX_WORDS_CHARS = 100_000
"""Most characters kept of one response: almost two hours at CHARS_PER_SECOND."""


@dataclass(slots=True)
class PlayedResponse:
    """A response that was not played to its end."""

    began: float
    words: dict[str, str] = field(default_factory=dict)
    """Item id -> generated text."""
    playing_since: float | None = None
    done: bool = False
    """The response is generated completely."""
    cut: bool = False
    """Its heard part was recorded; the server has not ended the response yet."""

    def add(self, item_id: str, text: str) -> None:
        """Text of an item; dropped beyond MAX_WORDS_CHARS and MAX_OPEN items."""
        known = self.words.get(item_id, "")
        most = MAX_WORDS_CHARS - sum(map(len, self.words.values()))
        if len(text) <= most and (known or len(self.words) < MAX_OPEN):
            self.words[item_id] = known + text

    @property
    def is_audible(self) -> bool:
        """Something of it may still be heard."""
        return self.playing_since is not None or (self.done and bool(self.words))

    @property
    def ends_at(self) -> float:
        """When all of it was heard, even if spoken slowly."""
        since = self.began if self.playing_since is None else self.playing_since
        chars = sum(len(text) for text in self.words.values())
        return since + 2 * chars / CHARS_PER_SECOND


class SipSpeech(CallSpeech):
    """The agent's responses in a call whose audio the server has."""

    def __init__(
        self,
        history: History,
        sessions: Sessions,
        stream: StreamPresence,
        ids: EventIds,
    ) -> None:
        super().__init__(history, sessions, stream, ids)
        self._played: dict[str, PlayedResponse] = {}

    def response_created(self, response_id: str, now: float) -> list[Command]:
        remember(self._played, response_id, PlayedResponse(now), MAX_OPEN)
        return super().response_created(response_id, now)

    def transcript_delta(
        self, event: realtime_events.TranscriptDelta, now: float
    ) -> None:
        self.responses.made_progress(now)  # no audio passes that could tell
        played = self._played.get(event.response_id)
        if played and not played.cut:
            played.add(event.item_id, event.delta)

    def response_done(
        self, response_id: str, now: float, *, completed: bool = True
    ) -> list[Command]:
        """The audio of a complete response is still to be heard."""
        self._end_response(response_id)
        commands = self.request_if_free(now)
        played = self._played.get(response_id)
        if played is None:
            return commands
        played.done = True
        if played.playing_since is not None or (played.words and completed):
            return commands
        del self._played[response_id]
        return commands + self._record(played.words, 0.0)

    def sounded(self, response_id: str) -> bool:
        """The server may report only later that it plays."""
        played = self._played.get(response_id)
        return super().sounded(response_id) or bool(played and played.words)

    def playout(self, event: realtime_events.Playout, now: float) -> list[Command]:
        self.responses.made_progress(now)
        if isinstance(event, realtime_events.PlayoutStarted):
            return self._started(event.response_id, now)
        if isinstance(event, realtime_events.PlayoutCleared):
            return self._cleared(event.response_id, now)
        words = self._words_of(event.response_id)
        self._played.pop(event.response_id, None)
        return self._record(words, None)

    def _started(self, response_id: str, now: float) -> list[Command]:
        played = self._played.get(response_id)
        if played:
            played.playing_since = now
        response = self.responses.get(response_id)
        if response:
            response.sent_audio = True
        return []

    def _cleared(self, response_id: str, now: float) -> list[Command]:
        played = self._played.get(response_id)
        if played is None:
            return []
        if played.done:
            del self._played[response_id]
        else:
            self._played[response_id] = PlayedResponse(played.began, cut=True)
        since = played.playing_since
        said = self._record(played.words, 0.0 if since is None else now - since)
        first = next(iter(played.words), None)
        return [*([] if first is None else [Interrupted(first, 0)]), *said]

    def _record(self, words: dict[str, str], seconds: float | None) -> list[Command]:
        """Writes into the history what was heard of a response that was played for
        `seconds`; None: to its end."""
        notes: list[Command] = []
        for item_id, text in words.items():
            heard = text if seconds is None else _heard(text, seconds)
            if seconds is not None:
                seconds = max(seconds - len(text) / CHARS_PER_SECOND, 0.0)
            cut = seconds is not None and heard != text
            self._history.said(item_id, heard, text, cut=cut)
            data: dict[str, Value] = {"item": item_id, "content_index": 0, "cut": cut}
            notes.append(Note("said", data, {"generated": text, "heard": heard}))
        return notes

    def interrupt(
        self,
        by: str,
        now: float,
        *,
        cancels: bool,
        answers: bool = False,
        only: str | None = None,
    ) -> list[Command]:
        """A caller who speaks is heard by the server, which stops the agent by
        itself."""
        running = self.responses.running
        audible = [key for key, it in self._played.items() if it.is_audible]
        commands: list[Command] = []
        if by != "caller":
            for response_id in running:
                commands += self._cancel(response_id)
                self.responses.cut(response_id)
            # Also before the server has reported that it plays. A response may have
            # been played to its end while it is generated: it calls a tool.
            if audible or any(self._words_of(it) for it in running):
                clear = realtime_requests.clear_playout(self._ids.next())
                commands += self._to_model(clear)
        cut = {*running, *audible}
        self.responses.interrupted(answers=answers, only=only, cut=cut, now=now)
        if cut:
            data: dict[str, Value] = {
                "by": by,
                "items": len(audible),
                "responses": len(running),
            }
            commands.append(Note("interrupted", data))
        return commands + self.request_if_free(now)

    def _words_of(self, response_id: str) -> dict[str, str]:
        played = self._played.get(response_id)
        return played.words if played else {}

    def is_live(self, response_id: str) -> bool:
        return response_id in self._played

    @property
    def queued(self) -> bool:
        return any(it.is_audible for it in self._played.values())

    @property
    def queue_ends(self) -> float:
        return max((it.ends_at for it in self._played.values()), default=0.0)

    @property
    def unreported_at(self) -> float | None:
        ends = [it.ends_at for it in self._played.values() if it.done and it.is_audible]
        return min(ends) + HEARD_SECONDS if ends else None

    def give_up_unreported(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for response_id, played in list(self._played.items()):
            due_at = played.ends_at + HEARD_SECONDS
            if played.done and played.is_audible and now >= due_at:
                del self._played[response_id]
                commands += self._record(played.words, None)
        return commands

    def call_ended(self, now: float, *, clears: bool = False) -> list[Command]:
        notes: list[Command] = []
        for played in self._played.values():
            since = played.playing_since
            heard = 0.0 if since is None else now - since
            notes += self._record(played.words, heard)
        self._played.clear()
        return notes

    def session_lost(self, now: float, *, tools: bool) -> list[Command]:
        """The call ends with its session (Capabilities.replaces_sessions)."""
        return []


def _heard(text: str, seconds: float) -> str:
    share = seconds * CHARS_PER_SECOND / max(len(text), 1)
    return text if share >= 1 else first_words(text, share)
