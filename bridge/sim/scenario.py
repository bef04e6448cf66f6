"""Calls worth listening to: what the caller does and what the fake model answers.

The fake hears no words, so both sides of a scenario are written together, here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.sim import voice
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
    """Answers in order; none: the fake's own small talk."""

    def script(self) -> list[steps.Step]:
        """The caller's part, spoken."""
        return [_spoken(doing) for doing in self.caller]

    def behaviour(self) -> Behaviour:
        """The model's part."""
        texts = [doing.text for doing in self.caller if isinstance(doing, Line)]
        return Behaviour(turns=self.model, user_texts=texts)


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
        [Say("You are welcome. Goodbye!")],
    ],
)
"""Greeting, tool call, interruption, handoff, goodbye: for the bundled agent."""

SMALL_TALK = Scenario(
    name="small talk",
    caller=[
        steps.Listen(),
        Line("Hello, who am I talking to?"),
        steps.Hear(1500),
        Line("Sorry to interrupt. Could you try one of your tools, please?"),
        steps.Listen(),
        Line("Thank you, goodbye."),
        steps.Listen(),
        steps.HangUp(),
    ],
)
"""For any agent: the fake answers by itself and tries the tools it finds."""
