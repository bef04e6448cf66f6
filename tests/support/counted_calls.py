"""Calls with counted words on both sides (bridge/sim/counting.py), and their results.

For benchmarks and tests that break something during calls: they find every word that
was lost, repeated or made up, in the caller's audio and in the model's conversation.
They need a model with a CountingAgent and the agent of tests/bench/counter.py.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bridge.sim import counting
from bridge.sim.caller import Caller, CallRecord, PlacedCall
from bridge.sim.counting import WORD_MS, CountedWord, utterance
from bridge.sim.model import RememberedItem
from bridge.sim.twilio import steps
from twiml import spoken_texts

WORDS = 6
"""Words of an answer."""
CALLER_WORDS = 3
"""Words of an utterance of the caller."""
ANSWER_MS = WORDS * WORD_MS
RAMP_SECONDS = 0.1
CALL_SECONDS = 180.0
SETTLED_SECONDS = 1.0
"""Words that the caller said this long before a stream broke must be in the
conversation."""

Conversation = Sequence[RememberedItem]
"""The conversation of one session at the model."""


# --- calls --------------------------------------------------------------------------


def hear_out() -> list[steps.Step]:
    """Waits for a whole answer, even if it is late or has pauses. After the timeout the
    caller continues, so a lost word does not block the call."""
    return [steps.HearStep(ANSWER_MS - 500, timeout=15.0), steps.WaitStep(1.1)]


def say(turn: int, call: int = 1) -> steps.Step:
    return steps.SayStep(counting.sound(utterance("caller", call, turn, CALLER_WORDS)))


def script(call: int, turns: int) -> list[steps.Step]:
    """The greeting, then questions and answers."""
    talk = hear_out()
    for turn in range(1, turns + 1):
        talk += [say(turn, call), *hear_out()]
    return [*talk, steps.HangUpStep()]


@dataclass(slots=True)
class CountedCalls:
    """Calls at the same time; `caller` makes the caller of each. The words of a call
    contain its number, so calls at the same time need different numbers."""

    caller: Callable[[], Caller]
    first: int = 1
    records: dict[int, CallRecord] = field(default_factory=dict)

    async def place(self, count: int, turns: int, ramp: float = RAMP_SECONDS) -> None:
        """Places `count` calls, one every `ramp` s, and waits until all have ended."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                number = self.first + len(self.records)
                placed = PlacedCall(self.caller())
                self.records[number] = placed.record
                tasks.create_task(placed.run(script(number, turns)))
                await asyncio.sleep(ramp)

    def verdicts(self, sessions: Sequence[Conversation]) -> "list[Verdict]":
        """The results of all calls; `sessions` are all of the model's, oldest first."""
        return [
            judge(call, record, _memory(sessions, call))
            for call, record in self.records.items()
        ]


def _memory(sessions: Sequence[Conversation], call: int) -> Conversation:
    """The conversation of the call's last session."""
    mine = [it for it in sessions if _is_of(it, call)]
    return mine[-1] if mine else ()


def _is_of(session: Conversation, call: int) -> bool:
    return any(
        word.speaker == "caller" and word.call == call
        for item in session
        for word in counting.parse_words(item.text)
    )


# --- judging ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a call had no stream. `heard_at`: when the caller heard the agent
    again (inf: never)."""

    begin: float
    end: float
    heard_at: float
    caller_since: float  # s since the caller spoke (0: the gap began in mid-sentence)
    agent_since: float  # s since the agent spoke

    @property
    def unheard(self) -> float:
        return self.heard_at - self.begin


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one call."""

    lost: str | None  # why; None: the call was not lost
    gaps: tuple[Gap, ...]
    heard: counting.WordComparison
    caller_missed: tuple[CountedWord, ...]  # said in a gap or just before it
    unanswered: int  # questions in the conversation that have no answer
    wrong: tuple[str, ...]  # mistakes in the conversation


def judge(call: int, record: CallRecord, memory: Conversation) -> Verdict:
    heard = [w for w in counting.understood_words(record.heard) if w.speaker == "agent"]
    last = max((w.turn for w in heard), default=0)
    wanted = [w for turn in range(1, last + 1) for w in _answer(turn)]
    gaps = _gaps(record)
    sure, unsure = _spoken(record, gaps)
    told = [
        w for it in memory if it.kind == "user" for w in counting.parse_words(it.text)
    ]
    missed = tuple(word for word in unsure if word not in told)
    lost = None
    if record.ended_by != "caller":
        lost = f"ended by {record.ended_by}"
    elif set(record.said_by_twilio) - {spoken_texts.MOMENT} or record.dials:
        lost = "plan B"
    elif any(it.startswith("call") for it in record.timed_out):
        lost = "never came to its end"
    return Verdict(
        lost=lost,
        gaps=gaps,
        heard=counting.compare_words(wanted, heard),
        caller_missed=missed,
        unanswered=_unanswered(memory),
        wrong=(
            *_wrong_words("assistant", memory, heard, heard),
            *_wrong_words("user", memory, sure, [*sure, *unsure]),
            *_wrong_tools(memory),
        ),
    )


def _answer(turn: int) -> tuple[CountedWord, ...]:
    return utterance("agent", 0, turn, WORDS)


def _gaps(record: CallRecord) -> tuple[Gap, ...]:
    callers = [(it.started_at, it.ended_at) for it in record.spoken]
    agents = [(run.start, run.end) for run in record.runs()]
    gaps = []
    for end, after in zip(record.stream_ends, record.streams[1:], strict=False):
        later = [begin for begin, _ in agents if begin >= after.began_at]
        gap = Gap(
            begin=end.at,
            end=after.began_at,
            heard_at=min(later, default=math.inf),
            caller_since=_since(callers, end.at),
            agent_since=_since(agents, end.at),
        )
        gaps.append(gap)
    return tuple(gaps)


def _since(sounds: Sequence[tuple[float, float]], at: float) -> float:
    ends = [min(end, at) for begin, end in sounds if begin < at]
    return at - max(ends, default=-math.inf)


def _spoken(
    record: CallRecord, gaps: Sequence[Gap]
) -> tuple[list[CountedWord], list[CountedWord]]:
    """The caller's words: those that the model must have, and those that were said in a
    gap or in a turn that a gap may have broken."""
    sure: list[CountedWord] = []
    unsure: list[CountedWord] = []
    for spoken in record.spoken:
        broken = any(
            spoken.ended_at > gap.begin - SETTLED_SECONDS
            and spoken.started_at < gap.end + WORD_MS / 1000
            for gap in gaps
        )
        (unsure if broken else sure).extend(counting.understood_words(spoken.audio))
    return sure, unsure


def _wrong_words(
    kind: str, memory: Conversation, must: list[CountedWord], may: list[CountedWord]
) -> list[str]:
    """Words that are missing, repeated, or present although nobody said them."""
    words = [
        w for it in memory if it.kind == kind for w in counting.parse_words(it.text)
    ]
    counts = Counter(_key(word) for word in words)
    allowed = {_key(word) for word in may}
    wrong = [f"{kind} lost {w}" for w in must if _key(w) not in counts]
    wrong += [f"{kind} twice {w}" for w, n in counts.items() if n > 1]
    wrong += [f"{kind} made up {w}" for w in counts if w not in allowed]
    return wrong


def _key(word: CountedWord) -> str:
    """Without the call's number for the agent, which does not always know it."""
    call = word.call if word.speaker == "caller" else 0
    return str(CountedWord(word.speaker, call, word.turn, word.place))


def _unanswered(memory: Conversation) -> int:
    """Questions that another question follows; parts of a question count as one."""
    questions: list[set[int]] = []
    for item in memory:
        words = counting.parse_words(item.text)
        if item.kind == "user" and words:
            questions.append({word.turn for word in words})
        elif item.kind == "assistant" and words:
            questions.append(set())
    return sum(bool(one and two and not one & two) for one, two in pairwise(questions))


def _wrong_tools(memory: Conversation) -> list[str]:
    called = Counter(it.call_id for it in memory if it.kind == "function_call")
    results = Counter(it.call_id for it in memory if it.kind == "function_call_output")
    if called != results or any(count > 1 for count in called.values()):
        return [f"{sum(called.values())} calls, {sum(results.values())} results"]
    return []
