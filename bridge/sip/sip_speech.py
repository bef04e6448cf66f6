"""The agent's speech on SIP calls, where OpenAI plays it: what is generated and heard.

The server reports when the audio of a response starts, stops or is cleared. It does not
report at which word a cleared one stopped. Pure.
"""

from dataclasses import dataclass, field

from bridge.core.transcript import ItemTranscript

CHARS_PER_SECOND = 15.0
"""Assumed rate of speech: estimates the heard part of a cleared response, to within a
few words."""

MAX_ANSWERS = 64
"""Responses kept at a time: a server that never ends them must not fill the memory."""


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """The part of one item that the caller heard: `text`; `generated` is the whole."""

    item_id: str
    text: str
    generated: str
    cut: bool


@dataclass(slots=True)
class _Answer:
    began: float
    words: dict[str, str] = field(default_factory=dict)
    """Item id -> generated text."""
    playing_since: float | None = None
    done: bool = False
    """The response is generated completely."""
    cut: bool = False
    """Its heard part was reported; the server has not ended the response yet."""


class SipSpeech:
    """Tracks responses by the server's events; `now` in seconds."""

    def __init__(self) -> None:
        self._answers: dict[str, _Answer] = {}
        self._asked = False
        """A response was requested and has not begun."""
        self._wanted = False
        """A response is to be requested as soon as none is being generated."""

    # --- events of the server ---

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
        """response.done. The audio of a complete response is still to be heard."""
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
        """output_audio_buffer.cleared: the audio stopped before its end."""
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
        """The call has ended: nothing more of any response will be heard."""
        return [said for key in [*self._answers] for said in self.cleared(key, now)]

    # --- requests for a response ---

    def want(self) -> None:
        self._wanted = True

    def request_if_free(self) -> bool:
        """True: the wanted response must be requested now."""
        if not self._wanted or self._asked or self.running:
            return False
        self._wanted = False
        self._asked = True
        return True

    def refused(self, *, again: bool) -> None:
        """The request was refused; `again`: as another response was in progress."""
        self._asked = False
        self._wanted = self._wanted or again

    def drop_wish(self) -> None:
        """The agent was told to be silent: a response wanted before is dropped."""
        self._wanted = False

    # --- state ---

    @property
    def running(self) -> list[str]:
        """Responses that are being generated."""
        return [key for key, answer in self._answers.items() if not answer.done]

    @property
    def audible(self) -> list[str]:
        """Responses of which something may still be heard."""
        return [
            key
            for key, answer in self._answers.items()
            if answer.playing_since is not None or (answer.done and answer.words)
        ]

    def is_live(self, response_id: str) -> bool:
        return response_id in self._answers

    @property
    def generating(self) -> bool:
        """A response is being generated, requested or wanted."""
        return self._asked or self._wanted or bool(self.running)

    @property
    def ends_at(self) -> float:
        """Time at which everything generated was heard, even if spoken slowly."""
        return max((_ends(answer) for answer in self._answers.values()), default=0.0)

    @property
    def all_heard(self) -> bool:
        """No response is in progress, requested or wanted; all were heard."""
        return not (self._answers or self._asked or self._wanted)


def _ends(answer: _Answer) -> float:
    since = answer.began if answer.playing_since is None else answer.playing_since
    chars = sum(len(text) for text in answer.words.values())
    return since + 2 * chars / CHARS_PER_SECOND


def _heard(text: str, seconds: float) -> str:
    words = ItemTranscript()
    words.add(text, 0)
    return words.heard(int(seconds * 1000), int(len(text) / CHARS_PER_SECOND * 1000))
