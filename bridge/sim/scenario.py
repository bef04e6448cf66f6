"""Calls worth listening to: what the caller does and what the fake model answers.

The fake hears no words, so both sides of a scenario are written together, here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.sim import voice
from bridge.sim.realtime.small_talk import AnyServer, SmallTalk
from bridge.sim.realtime.turns import Behaviour, CallTool, Say, Turn
from bridge.sim.twilio import steps


@dataclass(frozen=True, slots=True)
class Line:
    """Words of the caller."""

    text: str


Doing = Line | steps.Step


@dataclass(frozen=True, slots=True)
class Scenario:
    """A call to be placed; the nth `Line` is the nth thing the model is told."""

    name: str
    caller: Sequence[Doing]
    model: Sequence[Turn] = field(default_factory=tuple)
    """Answers in order; none: small talk that tries the agent's tools."""

    def script(self) -> list[steps.Step]:
        """The caller's part, spoken."""
        return [_spoken(doing) for doing in self.caller]

    def behaviour(self) -> Behaviour:
        """The model's part."""
        texts = [doing.text for doing in self.caller if isinstance(doing, Line)]
        if self.model:
            return Behaviour(turns=self.model, user_texts=texts)
        return Behaviour(answer=SmallTalk().answer, mcp=AnyServer(), user_texts=texts)


def _spoken(doing: Doing) -> steps.Step:
    if isinstance(doing, Line):
        return steps.Say(voice.speak(doing.text).mulaw())
    return doing


RECEPTION = Scenario(
    name="a call at the dentist's",
    caller=[
        steps.Listen(),
        Line("Hello, when are you open on Thursday?"),
        # Into the answer, in mid-sentence, while seconds of it wait to be played.
        steps.Hear(5200),
        Line("Thank you, that is enough. I have a question about my invoice."),
        steps.Listen(),
        Line("It is number one zero four three."),
        steps.Listen(),
        Line("I see. Thank you, and goodbye."),
        steps.Listen(),
        # The agent hangs up; a caller whom nobody hung up on would do so by and by.
        steps.Wait(10),
        steps.HangUp(),
    ],
    model=[
        [Say("Maple Street Dental, good morning. How can I help you?")],
        [
            Say("One moment please, I will look that up for you."),
            CallTool("opening_hours", {"day": "thursday"}),
        ],
        [
            Say(
                "On Thursday we are open from ten in the morning until seven in the "
                "evening, and there is still an appointment free at a quarter past "
                "eleven and another one at six, if one of those would suit you."
            )
        ],
        [CallTool("transfer_to_billing", {})],
        [Say("This is billing. Which invoice is it, please?")],
        [CallTool("invoice_status", {"number": "1043"})],
        [Say("Invoice ten forty three: one hundred and twenty dollars are due.")],
        [Say("You are welcome. Goodbye!"), CallTool("hang_up", {})],
    ],
)
"""Greeting, tools, interruption, handoff, goodbye, the agent hangs up: for the bundled
agent."""

_LISTEN = steps.Listen(quiet_seconds=0.7)

SMALL_TALK = Scenario(
    name="small talk",
    caller=[
        _LISTEN,
        Line("Hello, who am I talking to?"),
        steps.Hear(1200),
        Line("Sorry to interrupt. What can you do?"),
        _LISTEN,
        Line("And what else?"),
        _LISTEN,
        Line("And then?"),
        _LISTEN,
        Line("Anything else?"),
        _LISTEN,
        Line("Thank you, goodbye."),
        _LISTEN,
        # For a goodbye of the agent's, should it have one.
        steps.Wait(0.5),
        steps.HangUp(),
    ],
)
"""For any agent: the fake answers by itself and tries the tools it finds, one for each
line from the second on."""

SHORT_TALK = Scenario(
    name="a short talk",
    caller=[
        _LISTEN,
        Line("Hello, who am I talking to?"),
        steps.Hear(1200),
        Line("Thank you, goodbye."),
        _LISTEN,
        steps.HangUp(),
    ],
)
"""A greeting, a question, an interruption, goodbye."""


def pressing(keys: str) -> Scenario:
    """A caller who presses keys behind the greeting, and hears what comes of it."""
    return Scenario(
        name="keys",
        caller=[_LISTEN, steps.Press(keys), steps.Wait(4), _LISTEN, steps.HangUp()],
    )
