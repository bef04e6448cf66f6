"""How a call begins: recordings, and a greeting that the caller cannot cut. PURE.

Until what cannot be cut was heard, the model gets none of the caller's audio, so no
server can take it for an interruption; then it gets all of it, and answers.
"""

from bridge.core.agent_speech import AgentSpeech
from bridge.core.caller_audio import CallerAudio
from bridge.core.commands import Command, Note
from bridge.core.history import History, HistoryItem
from bridge.core.model_side import ModelSide
from bridge.core.rules import Recording
from bridge.core.stream_presence import StreamPresence
from bridge.core.waits import Outstanding


class Opening:
    """Plays the recordings, and follows what may not be interrupted."""

    def __init__(
        self,
        speech: AgentSpeech | None,
        caller: CallerAudio,
        model: ModelSide,
        history: History,
        stream: StreamPresence,
    ) -> None:
        """Without `speech` the model's server plays the audio: nothing is played."""
        self._speech = speech
        self._stream = stream
        self._caller = caller
        self._model = model
        self._history = history
        self.recordings: tuple[Recording, ...] = ()
        """Those that are still to be played."""
        self._played: dict[str, Recording] = {}
        """Id of an item -> its recording."""
        self._lost_streams = 0
        self._response: str | None = None
        """The agent's greeting, if that may not be interrupted."""
        self._sounded = False

    def watch(self, outstanding: Outstanding, now: float) -> list[Command]:
        """Runs after every input, once the call has begun."""
        if self._speech is None or not (self.recordings or self._caller.held_back):
            return []
        if self._stream.is_lost:
            return []  # nobody hears anything
        if self.recordings:
            return self._play(self._speech, now)
        if not outstanding.nothing and not self._was_heard(self._speech):
            return []
        note = Note("greeting_heard", {"held_ms": self._caller.held_ms})
        return [note, *self._caller.release()]

    def _play(self, speech: AgentSpeech, now: float) -> list[Command]:
        commands: list[Command] = []
        for it in self.recordings:
            again = f"_{self._lost_streams}" if self._lost_streams else ""
            item_id = f"{it.id}{again}"
            self._played[item_id] = it
            self._history.add(HistoryItem(id=item_id, kind="assistant"))
            commands += speech.play_recording(item_id, it.payload, it.words, now)
            if not it.interruptible:
                self._caller.held_back = True
        self.recordings = ()
        return commands

    def stream_lost(self) -> None:
        """Runs before the loss is counted. What the caller is hearing, or is still to
        hear, is heard on the next stream: recordings from their beginning, because the
        agent cannot go on with one."""
        speech = self._speech
        live = (it for id, it in self._played.items() if speech and speech.is_live(id))
        self.recordings = (*live, *self.recordings)
        self._response, self._sounded = None, False
        self._lost_streams += 1

    def _was_heard(self, speech: AgentSpeech) -> bool:
        live = [it for id, it in self._played.items() if speech.is_live(id)]
        if not all(it.interruptible for it in live):
            return False
        return not self._model.protects_greeting or self._greeting_was_heard(speech)

    def _greeting_was_heard(self, speech: AgentSpeech) -> bool:
        running = speech.responses.running
        if self._response is None:
            self._response = next(iter(running), None)
        response = self._response
        if response is None or response in running:
            return False
        if speech.is_live(response):
            self._sounded = True
        elif not self._sounded:
            self._response = None  # it failed: another one is the greeting
        return self._sounded and not speech.is_live(response)
