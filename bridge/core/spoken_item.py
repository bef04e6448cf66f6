"""One spoken item, until it is known how much of it the caller heard. PURE."""

from dataclasses import dataclass, field

from bridge.audio.pauses import Pauses
from bridge.core.transcript import ItemTranscript
from bridge.core.word_positions import Pace, WordPositions


@dataclass(slots=True)
class SpokenItem:
    """One content part of a message item, until it is settled."""

    response_id: str
    words: ItemTranscript = field(default_factory=ItemTranscript)
    pauses: Pauses = field(default_factory=Pauses)
    received: int = 0
    """Bytes of its audio that the model has sent."""
    complete: bool = False
    """The model has sent all of its audio, and the item was not cut before that."""
    rest_dropped: bool = False
    """Twilio's queue was full: the rest of its audio was not sent."""
    is_recording: bool = False
    """Not of the model: another voice, which teaches nothing of the model's pace. On
    another stream it is played again (opening.py)."""
    text_only: bool = False
    """Its session was lost. The new session knows the item as text, which cannot be
    truncated, only replaced."""

    def heard(self, heard: int, pace: Pace) -> tuple[str, Pace]:
        """Its text up to byte `heard`, and what is known of the pace after it."""
        played_out = self.complete and heard >= self.received
        teaches = not (pace.is_settled or self.is_recording)
        if played_out and not teaches:
            return self.words.all, pace
        positions = self._positions(pace)
        text = self.words.all if played_out else positions.before(heard)
        return text, positions.learn() if teaches else pace

    def end_early(self, pace: Pace) -> None:
        """No more audio will arrive: forgets the text whose audio never arrived."""
        if not self.complete:
            text = self._positions(pace).before(self.received)
            self.words.keep(len(text))

    def is_whole(self, heard: int) -> bool:
        """The caller heard all of it, and all of it was sent."""
        return self.complete and not self.rest_dropped and heard == self.received

    def _positions(self, pace: Pace) -> WordPositions:
        """Where its words lie. Of an item that was cut while the model sent it, some
        text has no audio."""
        return WordPositions(
            self.words.pieces,
            self.pauses.find(),
            self.received,
            pace,
            whole=self.complete,
        )


@dataclass(slots=True)
class RecordedItem:
    """An item whose heard text is in the history. Words of it may still come: some
    servers send them behind the audio."""

    item: SpokenItem
    heard: int
    text: str
    """Recorded as heard."""
    generated: str
    has_late_words: bool = False
