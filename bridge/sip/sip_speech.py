"""The agent's speech where the model's server plays it: what is made, what was heard.

The server says when the audio of an answer begins, is over, or was cleared; where in
its words a cleared one stopped, it does not say. Pure.
"""

from dataclasses import dataclass, field

from bridge.core.transcript import ItemTranscript

CHARS_PER_SECOND = 15.0
"""Of speech: what was heard of a cut answer is reckoned with it, to a few words."""

MAX_ANSWERS = 64
"""Not settled yet. A server that never ends one must not fill the memory."""


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """What of one item the caller heard; text and `generated` are the same if all."""

    item_id: str
    text: str
    generated: str
    cut: bool


@dataclass(slots=True)
class _Answer:
    began: float
    words: dict[str, str] = field(default_factory=dict)
    """By item."""
    playing_since: float | None = None
    done: bool = False
    """All of it was made."""
    cut: bool = False
    """It was told what was heard; the server has not ended it yet."""


class SipSpeech:
    """Fed with the server's events; `now` in seconds."""

    def __init__(self) -> None:
        self._answers: dict[str, _Answer] = {}
        self._asked = False
        """An answer was asked for and has not begun."""
        self._wanted = False
        """An answer is wanted as soon as none is being made."""

    # --- the server tells ---

    def created(self, response_id: str, now: float) -> None:
        self._asked = False
        self._answers[response_id] = _Answer(now)
        if len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]

    def words(self, response_id: str, item_id: str, delta: str) -> None:
        answer = self._answers.get(response_id)
        if answer and not answer.cut:
            answer.words[item_id] = answer.words.get(item_id, "") + delta

    def playing(self, response_id: str, now: float) -> None:
        """output_audio_buffer.started."""
        answer = self._answers.get(response_id)
        if answer:
            answer.playing_since = now

    def done(self, response_id: str, status: str | None) -> list[SpokenAnswer]:
        """response.done. The audio of a whole answer is still to be heard."""
        answer = self._answers.get(response_id)
        if answer is None:
            return []
        answer.done = True
        if answer.playing_since is not None:
            return []
        if answer.words and status in (None, "completed"):
            return []
        del self._answers[response_id]
        return [
            SpokenAnswer(item, "", words, True) for item, words in answer.words.items()
        ]

    def played(self, response_id: str) -> list[SpokenAnswer]:
        """output_audio_buffer.stopped: all of it was heard."""
        answer = self._answers.pop(response_id, None)
        words = answer.words if answer else {}
        return [SpokenAnswer(item, text, text, False) for item, text in words.items()]

    def cleared(self, response_id: str, now: float) -> list[SpokenAnswer]:
        """output_audio_buffer.cleared: it stopped in the middle."""
        answer = self._answers.get(response_id)
        if answer is None:
            return []
        if answer.done:
            del self._answers[response_id]
        else:
            self._answers[response_id] = _Answer(answer.began, cut=True)
        heard = 0.0 if answer.playing_since is None else now - answer.playing_since
        said = []
        for item, text in answer.words.items():
            part = _heard(text, heard)
            said.append(SpokenAnswer(item, part, text, part != text))
            heard = max(heard - len(text) / CHARS_PER_SECOND, 0.0)
        return said

    def over(self, now: float) -> list[SpokenAnswer]:
        """The call is: nothing more of any answer will be heard."""
        return [said for key in [*self._answers] for said in self.cleared(key, now)]

    # --- answers that are asked for ---

    def want(self) -> None:
        self._wanted = True

    def request_if_free(self) -> bool:
        """True: what is wanted is to be asked for now."""
        if not self._wanted or self._asked or self.running:
            return False
        self._wanted = False
        self._asked = True
        return True

    def refused(self, *, again: bool) -> None:
        """What was asked for will not come; `again`: another was being made."""
        self._asked = False
        self._wanted = self._wanted or again

    def drop_wish(self) -> None:
        """The agent was told to be silent: what was wanted before is not any more."""
        self._wanted = False

    # --- what is the case ---

    @property
    def running(self) -> list[str]:
        """Answers that are being made."""
        return [key for key, answer in self._answers.items() if not answer.done]

    @property
    def audible(self) -> list[str]:
        """Answers of which something may still be heard."""
        return [
            key
            for key, answer in self._answers.items()
            if answer.playing_since is not None or (answer.done and answer.words)
        ]

    def is_live(self, response_id: str) -> bool:
        return response_id in self._answers

    @property
    def generating(self) -> bool:
        """An answer is being made, or was asked for."""
        return self._asked or self._wanted or bool(self.running)

    @property
    def ends_at(self) -> float:
        """When all that was made has been heard, even if it is said slowly."""
        return max((_ends(answer) for answer in self._answers.values()), default=0.0)

    @property
    def all_heard(self) -> bool:
        """Nothing is being made, nothing is wanted, nothing is left to be heard."""
        return not (self._answers or self._asked or self._wanted)


def _ends(answer: _Answer) -> float:
    since = answer.began if answer.playing_since is None else answer.playing_since
    chars = sum(len(text) for text in answer.words.values())
    return since + 2 * chars / CHARS_PER_SECOND


def _heard(text: str, seconds: float) -> str:
    words = ItemTranscript()
    words.add(text, 0)
    return words.heard(int(seconds * 1000), int(len(text) / CHARS_PER_SECOND * 1000))
