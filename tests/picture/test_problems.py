"""The problems that a picture names: each from a call in which it happened."""

from collections.abc import Callable

import pytest

from bridge.picture.problems import CallProblem, clock, problems
from bridge.picture.view import (
    CallerTurn,
    CallView,
    Event,
    Gap,
    HeardRun,
    ModelResponse,
    Part,
    Tool,
    Word,
)


def spoken(
    at_ms: float, ms: float, text: str = "", *, generated_ms: float | None = None
) -> Part:
    """An item of the agent, heard from `at_ms` for `ms`."""
    part = Part("i1", "agent", generated_ms=generated_ms or ms, heard_ms=ms)
    part.cut = generated_ms is not None and generated_ms > ms
    part.runs = [HeardRun(at_ms, 0, ms)]
    part.words = [Word(0, word + " ", True) for word in text.split()]
    return part


def call(**given: object) -> CallView:
    """A call of 30 s in which the agent greets after half a second."""
    view = CallView(call_sid="CA1", length_ms=30_000)
    view.rules = {"greeting": "Hello"}
    view.ended_by, view.ended_why = "caller", "hung_up"
    view.parts = [spoken(500, 1500)]
    for name, value in given.items():
        setattr(view, name, value)
    return view


def titles(view: CallView) -> list[str]:
    return [it.title for it in problems(view)]


def test_a_good_call_has_no_problem() -> None:
    """Greeting, question, answer, barge-in that works: nothing is named."""
    view = call(
        turns=[
            CallerTurn("u1", 4000, 6000, "When are you open?", 6200),
            CallerTurn("u2", 8000, 9500, "Thanks.", 9700),
        ],
        parts=[
            spoken(500, 1500, "Hello, how can I help?"),
            spoken(6900, 1350, "We are open", generated_ms=4000),
            spoken(10_200, 2000, "Goodbye then, and thank you."),
        ],
        events=[Event(8010, "clear")],
        responses=[ModelResponse("r1", created_ms=6010, audio_ms=6700, done_ms=7000)],
    )

    assert titles(view) == []


def overlapping(**given: object) -> CallView:
    """The agent speaks 1.8 s after the caller has begun at 42 s."""
    view = call(
        length_ms=60_000,
        turns=[CallerTurn("u1", 42_000, 45_000, "Wait, please", 45_300)],
        parts=[spoken(500, 1500), spoken(40_000, 3800), spoken(45_600, 900)],
    )
    for name, value in given.items():
        setattr(view, name, value)
    return view


@pytest.mark.parametrize(
    ("given", "because"),
    [
        (
            {"turn_detection": {"interrupt_response": False}},
            "interrupt_response is off",
        ),
        ({}, "no clear was sent"),
        (
            {"events": [Event(43_200, "clear")]},
            "the clear was sent 1.2 s after the caller began",
        ),
        ({"events": [Event(42_010, "clear")]}, "the clear took long to reach Twilio"),
        (
            {
                "parts": [spoken(40_000, 3800), spoken(45_600, 900)],
                "rules": {"greeting_interruptible": False},
            },
            "the greeting cannot be interrupted",
        ),
    ],
)
def test_speech_over_speech(given: dict[str, object], because: str) -> None:
    """The agent talked over the caller: for how long, when, and why."""
    assert titles(overlapping(**given)) == [
        f"The agent spoke 1.8 s over the caller at 0:42: {because}"
    ]


def test_noise_that_interrupts() -> None:
    """The agent stops, and nobody has said anything."""
    view = call(
        turns=[CallerTurn("u1", 8000, 8400, "", 8700)],
        parts=[
            spoken(500, 1500),
            spoken(7000, 1300, generated_ms=9000),
            spoken(9500, 1),
        ],
        events=[Event(8010, "clear")],
    )

    assert titles(view) == [
        "Noise interrupted the agent at 0:08: the caller's turn has no words"
    ]


SLOW = {"turns": [CallerTurn("u1", 4000, 6000, "Where is my order?", 6200)]}


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (
            {
                "parts": [spoken(500, 1500), spoken(9100, 2000)],
                "tools": [Tool("c1", "order_lookup", 6400, done_ms=8800)],
            },
            "The answer at 0:06 took 3.1 s: 2.4 s of it in the tool order_lookup",
        ),
        (
            {
                "parts": [spoken(500, 1500), spoken(9000, 2000)],
                "responses": [
                    ModelResponse("r1", created_ms=6010, audio_ms=8900, done_ms=9500)
                ],
            },
            "The answer at 0:06 took 3.0 s: 2.9 s of it the model prepared a response",
        ),
        (
            {
                "parts": [spoken(500, 1500), spoken(11_000, 2000)],
                "gaps": [Gap("model", 6500, 9500)],
            },
            "The answer at 0:06 took 5.0 s: 3.0 s of it the model was lost",
        ),
        (
            {
                "parts": [spoken(500, 1500), spoken(11_000, 2000)],
                "events": [Event(7000, "answer_failed", {"why": "rate_limit"})],
            },
            "The answer at 0:06 took 5.0 s: a response failed (rate_limit)",
        ),
        (
            {"parts": [spoken(500, 1500)]},
            "The caller got no answer at 0:06, and waited 24.0 s",
        ),
    ],
)
def test_slow_answers(given: dict[str, object], title: str) -> None:
    """How long the caller waited, and what took the time."""
    view = call(**SLOW, **given)

    assert title in titles(view)


def test_a_turn_that_the_caller_takes_back_waits_for_nothing() -> None:
    """The caller goes on speaking after two and a half seconds: no answer was due
    before."""
    view = call(
        turns=[
            CallerTurn("u1", 4000, 6000, "I want", 6200),
            CallerTurn("u2", 8500, 9000, "a coffee", 9200),
        ],
        parts=[spoken(500, 1500), spoken(9600, 1000)],
    )

    assert titles(view) == []


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"parts": [spoken(3500, 1500)]}, "The greeting began after 3.5 s"),
        ({"parts": []}, "The caller never heard the agent"),
        ({"parts": [], "rules": {"greeting": None}}, None),
        ({"parts": [], "has_audio": False}, None),
    ],
)
def test_the_greeting(given: dict[str, object], title: str | None) -> None:
    """A caller who is greeted late, or never. Where the caller speaks first, or the
    audio does not pass the bridge, silence is no problem."""
    assert titles(call(**given)) == ([title] if title else [])


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (
            {
                "events": [
                    Event(9000, "tool_failed", {"tool": "pay", "error": "KeyError"})
                ]
            },
            "The tool pay failed at 0:09: KeyError",
        ),
        (
            {"tools": [Tool("c1", "pay", 9000)]},
            "The tool pay, called at 0:09, gave no result",
        ),
        ({"tools": [Tool("c1", "hang_up", 9000)]}, None),
        (
            {"gaps": [Gap("stream", 9000, 13_000)]},
            "The caller's stream was lost at 0:09 for 4.0 s",
        ),
        (
            {
                "gaps": [Gap("model", 9000)],
                "events": [Event(9000, "model_lost", {"why": "close 1006"})],
            },
            "The connection to the model was lost at 0:09 (close 1006) and did not "
            "come back",
        ),
        (
            {"events": [Event(9000, "guardrail_tripped", {"guardrails": "no_prices"})]},
            "A guardrail stopped the agent at 0:09: no_prices",
        ),
        (
            {
                "responses": [
                    ModelResponse(
                        "r1", created_ms=9000, done_ms=9500, status="completed"
                    )
                ]
            },
            "The model's response at 0:09 had no sound",
        ),
        (
            {
                "responses": [
                    ModelResponse(
                        "r1", created_ms=9000, done_ms=9500, status="completed"
                    )
                ],
                "tools": [Tool("c1", "pay", 9490, done_ms=9600)],
            },
            None,
        ),
        (
            {
                "responses": [
                    ModelResponse(
                        "r1", created_ms=9000, done_ms=9500, status="cancelled"
                    )
                ]
            },
            None,
        ),
        (
            {
                "events": [
                    Event(9000, "model_error", {"benign": False, "code": "bad"}, "m")
                ]
            },
            "The model's server reported bad at 0:09",
        ),
        ({"events": [Event(9000, "model_error", {"benign": True, "code": "x"})]}, None),
        (
            {"events": [Event(9000, "answer_failed", {"why": "server_error"})]},
            "A response of the model failed at 0:09: server_error",
        ),
        (
            {"silences": [(9000.0, 21_000.0), (25_000.0, 26_000.0)]},
            "The caller's phone sent no audio for 12.0 s from 0:09: the caller was on "
            "hold or muted",
        ),
        (
            {"ended_by": "model", "ended_why": "refused"},
            "The model's server refused the session: the caller heard the apology "
            "(model_refused)",
        ),
        (
            {"replays_as_recorded": False},
            "Another version of the bridge has written this trace, and decided "
            "otherwise",
        ),
    ],
)
def test_what_failed(given: dict[str, object], title: str | None) -> None:
    assert titles(call(**given)) == ([title] if title else [])


def test_a_gap_in_the_agent_s_sound() -> None:
    """The audio came too late: the caller heard half a sentence, and then silence."""
    part = spoken(5000, 3000)
    part.runs = [HeardRun(5000, 0, 1000), HeardRun(6450, 1000, 3000)]

    assert titles(call(parts=[spoken(500, 1500), part])) == [
        "The agent's sound stopped for 0.5 s at 0:06: its audio came too late"
    ]


def pressed(*at_ms: float) -> list[Event]:
    return [Event(at, "key_pressed") for at in at_ms]


def test_a_flood_of_keys_is_one_problem() -> None:
    flood = pressed(*range(9000, 13_000, 200))

    assert titles(call(events=flood)) == [
        "20 keys were pressed in 3.8 s from 0:09: each stops the agent"
    ]


def test_a_typed_number_is_no_flood() -> None:
    """Ten digits in six seconds, as people type."""
    assert titles(call(events=pressed(*range(9000, 15_000, 600)))) == []


@pytest.mark.parametrize(
    ("said", "title"),
    [
        (
            "Добрый день",
            "The transcript of the caller at 0:04 is in Cyrillic, the agent speaks "
            "Latin: the wrong language of transcription",
        ),
        ("Guten Tag", None),
        ("123", None),
    ],
)
def test_the_wrong_language_of_transcription(said: str, title: str | None) -> None:
    view = call(
        turns=[CallerTurn("u1", 4000, 5000, said, 5200)],
        parts=[
            spoken(500, 1500, "Good morning"),
            spoken(5500, 1000, "How can I help?"),
        ],
    )

    assert titles(view) == ([title] if title else [])


def test_a_repeated_sentence() -> None:
    text = "Your order will arrive on Monday."
    view = call(parts=[spoken(500, 1500, text), spoken(9000, 1500, text)])

    assert titles(view) == ["The agent repeated at 0:09 what it had said at 0:00"]

    view.parts += [spoken(12_000, 1500, text), spoken(15_000, 1500, text)]
    assert titles(view) == [
        "The agent repeated at 0:09 what it had said at 0:00, and 2 times after that"
    ]


def test_severe_problems_come_first() -> None:
    """What made the caller give up stands at the top, whenever it happened."""
    view = call(
        ended_by="model",
        ended_why="failed",
        events=[
            Event(2000, "guardrail_tripped", {"guardrails": "g"}),
            Event(29_000, "end"),
        ],
    )

    found = problems(view)
    assert [it.severe for it in found] == [True, False]
    assert found[0].at_ms == 29_000


@pytest.mark.parametrize(
    ("ms", "written"),
    [(0, "0:00"), (42_900, "0:42"), (-5, "0:00"), (3_723_000, "1:02:03")],
)
def test_moments(ms: float, written: str) -> None:
    assert clock(ms) == written


def test_every_problem_is_one_line() -> None:
    """Lists and links need one line each."""
    rules: list[Callable[[], CallView]] = [overlapping, lambda: call(parts=[])]
    found: list[CallProblem] = [it for rule in rules for it in problems(rule())]

    assert found
    assert not [it for it in found if "\n" in it.title + it.advice]
