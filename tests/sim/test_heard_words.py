"""The heard words of `bridge sim accuracy`, and the leads of the fake model's words."""

import io
import math
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from bridge.sim.heard_words import (
    TEXTS,
    FinishedCall,
    HeardWords,
    PlannedCall,
    WordsReport,
    middles,
    render,
    report,
    report_calls,
)
from bridge.sim.model import ModelItem, SayText
from bridge.sim.realtime.render import chunks

SECOND = 8000
SOUND, SILENCE = b"\x90", b"\xff"


def sent(lead: float) -> list[tuple[float, str]]:
    """(second of the audio before which it is sent, word), as the fake model does; of
    the words that come behind all audio, the audio's length."""
    said = chunks(SayText(TEXTS[3]), "audio/pcmu", 200, None, 1.0, None, 165, lead)
    found, at = [], 0.0
    for chunk in said:
        found += [(at, word) for word in chunk.words]
        at += chunk.seconds
    cues = [word for chunk in said for _, word in chunk.cues]
    return found + [(at, word) for word in cues[len(found) :]]


def test_words_are_sent_ahead_of_their_audio_or_behind_it() -> None:
    """A bridge can be tried with a server whose words do not come with their audio."""
    together = sent(0.0)
    text = "".join(word for _, word in together)

    assert text == TEXTS[3]
    for lead in (1.0, -0.5):
        moved = sent(lead)
        assert "".join(word for _, word in moved) == text
        pairs = list(zip(together, moved, strict=True))[5:-5]
        assert all(abs(a - b - lead) < 0.21 for (a, _), (b, _) in pairs)
    assert {at for at, _ in sent(math.inf)} == {0.0}
    assert len({at for at, _ in sent(-math.inf)}) == 1
    assert sent(-math.inf)[0][0] > together[-1][0]


def test_a_pause_behind_a_word_does_not_belong_to_it() -> None:
    """The second word begins after a pause of a second."""
    sound = SOUND * SECOND + SILENCE * SECOND + SOUND * SECOND

    assert middles([(0.0, "one"), (2000.0, " two")], sound) == [4000.0, 2.5 * SECOND]


def answer(number: int) -> ModelItem:
    """Ten words of 0.5 s. Each item sounds different."""
    item = ModelItem(f"i{number}", "message", "assistant", spoken=True)
    item.chunks = [bytes([0x80 + number]) * 5 * SECOND]
    item.generated_text = " ".join(f"{'abc'[number]}{n}" for n in range(10))
    words = item.generated_text.split()
    item.cues = [(500.0 * n, word) for n, word in enumerate(words)]
    return item


def call(
    record: Any, items: list[ModelItem], posted: Any, late_ms: float = 0.0
) -> FinishedCall:
    return FinishedCall(
        PlannedCall("all last", 1, 1, 1), record, items, posted, late_ms
    )


def report_of(calls: list[FinishedCall]) -> WordsReport:
    return report_calls(calls, ("all last",))


def judged(*texts: str) -> list[HeardWords]:
    """The first answer was heard for 1.8 s, the second to its end."""
    items = [answer(0), answer(1)]
    heard = items[0].chunks[0][: int(1.8 * SECOND)] + items[1].chunks[0]
    record: Any = SimpleNamespace(heard=heard, timed_out=[])
    entries = [
        {"who": "agent", "generated": item.generated_text, "text": text}
        for item, text in zip(items, texts, strict=False)
    ]
    posted = {"transcript": [{"who": "caller"}, *entries]}
    return list(report_of([call(record, items, posted)]).answers)


def test_words_that_were_not_heard_and_words_that_lack() -> None:
    """Only of the answer that was cut: four of its words began and were half heard."""
    [right] = judged("a0 a1 a2 a3", "")
    [more] = judged("a0 a1 a2 a3 a4 a5")
    [none] = judged()

    assert (right.heard, right.error) == (4, 0)
    assert more.error == 2
    assert none.error == -4


def test_a_call_whose_fakes_were_late_does_not_count() -> None:
    """It measures this machine. The run says that it is worthless, and fails."""
    record: Any = SimpleNamespace(heard=b"", timed_out=["a step"])

    late = report_of([call(record, [], None, 301.0), call(record, [], None, 300.0)])

    assert late.late_ms == 300.0
    assert [it for it in late.broken if "WORTHLESS: in 1 of 2 calls" in it]
    assert late.broken[1:3] == (
        "all last call 1: a step timed out: a step",
        "all last call 1: no report came",
    )


def shown(*errors: int) -> str:
    answers = [HeardWords("all last", 9, 5, 5 + error, "") for error in errors]
    out = io.StringIO()
    found = report(answers, ["a fault"], ("all last", "all first"))
    Console(file=out, width=120).print(render(found))
    return out.getvalue()


def test_the_limit_of_the_heard_words() -> None:
    """One word more or less is allowed for 95 of 100 answers; nothing measured is no
    success."""
    assert "p95" not in shown(*[1] * 19, -2).split("BROKEN", 1)[1]
    broken = shown(*[0] * 18, 2, 2)
    assert "BROKEN: all last: p95 of the heard words is 2 words off" in broken
    assert "BROKEN: all first: no answer was cut" in broken
    assert "BROKEN: a fault" in broken
