"""Scripted calls for listening: the caller's steps and the fake model's answers.

The fake model does not recognise words, so both sides of a scenario are written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bridge.sim import voice
from bridge.sim.realtime.default_answers import AnyMcpServer, DefaultAnswers
from bridge.sim.realtime.turns import Behaviour, CallTool, SayText, Turn
from bridge.sim.twilio import steps


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """Words that the caller speaks."""

    text: str


CallerAction = SpokenLine | steps.Step


@dataclass(frozen=True, slots=True)
class Scenario:
    """A call to place; the nth `SpokenLine` is the nth transcript of the model."""

    name: str
    caller: Sequence[CallerAction]
    model: Sequence[Turn] = field(default_factory=tuple)
    """Answers in order; none: the default answers, which call the agent's tools."""

    def script(self) -> list[steps.Step]:
        """The caller's steps, with the lines as speech."""
        return [_spoken(doing) for doing in self.caller]

    def behaviour(self) -> Behaviour:
        """The model's part."""
        if self.model:
            return Behaviour(turns=self.model, user_texts=self.texts)
        return Behaviour(
            answer=DefaultAnswers().answer, mcp=AnyMcpServer(), user_texts=self.texts
        )

    @property
    def texts(self) -> list[str]:
        """The words of the caller's lines."""
        return [doing.text for doing in self.caller if isinstance(doing, SpokenLine)]


def _spoken(doing: CallerAction) -> steps.Step:
    if isinstance(doing, SpokenLine):
        return steps.SayStep(voice.speak(doing.text).mulaw())
    return doing


RECEPTION = Scenario(
    name="a call at the dentist's",
    caller=[
        steps.ListenStep(),
        SpokenLine("Hello, when are you open on Thursday?"),
        # The caller interrupts in mid-sentence, while seconds of the answer are queued.
        steps.HearStep(5200),
        SpokenLine("Thank you, that is enough. I have a question about my invoice."),
        steps.ListenStep(),
        SpokenLine("It is number one zero four three."),
        steps.ListenStep(),
        SpokenLine("I see. Thank you, and goodbye."),
        steps.ListenStep(),
        # The agent hangs up. If it did not, the caller would hang up after a while.
        steps.WaitStep(10),
        steps.HangUpStep(),
    ],
    model=[
        [SayText("Maple Street Dental, good morning. How can I help you?")],
        [
            SayText("One moment please, I will look that up for you."),
            CallTool("opening_hours", {"day": "thursday"}),
        ],
        [
            SayText(
                "On Thursday we are open from ten in the morning until seven in the "
                "evening, and there is still an appointment free at a quarter past "
                "eleven and another one at six, if one of those would suit you."
            )
        ],
        [CallTool("transfer_to_billing", {})],
        [SayText("This is billing. Which invoice is it, please?")],
        [CallTool("invoice_status", {"number": "1043"})],
        [SayText("Invoice ten forty three: one hundred and twenty dollars are due.")],
        [SayText("You are welcome. Goodbye!"), CallTool("hang_up", {})],
    ],
)
"""Greeting, tools, interruption, handoff, goodbye, the agent hangs up. For the bundled
agent."""

_LISTEN = steps.ListenStep(quiet_seconds=0.7)

SMALL_TALK = Scenario(
    name="small talk",
    caller=[
        _LISTEN,
        SpokenLine("Hello, who am I talking to?"),
        steps.HearStep(1200),
        SpokenLine("Sorry to interrupt. What can you do?"),
        _LISTEN,
        SpokenLine("And what else?"),
        _LISTEN,
        SpokenLine("And then?"),
        _LISTEN,
        SpokenLine("Anything else?"),
        _LISTEN,
        SpokenLine("Thank you, goodbye."),
        _LISTEN,
        # Time for the agent's goodbye, if it says one.
        steps.WaitStep(0.5),
        steps.HangUpStep(),
    ],
)
"""For any agent: the fake uses its default answers and calls the tools that it finds,
one per line from the second line on."""

SHORT_TALK = Scenario(
    name="a short talk",
    caller=[
        _LISTEN,
        SpokenLine("Hello, who am I talking to?"),
        steps.HearStep(1200),
        SpokenLine("Thank you, goodbye."),
        _LISTEN,
        steps.HangUpStep(),
    ],
)
"""A greeting, a question, an interruption, a goodbye."""


def staying(plan: Scenario, seconds: float) -> Scenario:
    """The same call, whose caller listens for so long before the last step."""
    return replace(
        plan, caller=[*plan.caller[:-1], steps.WaitStep(seconds), plan.caller[-1]]
    )


def pressing(keys: str) -> Scenario:
    """A caller who presses keys after the greeting and listens to the answer."""
    return Scenario(
        name="keys",
        caller=[
            _LISTEN,
            steps.PressStep(keys),
            steps.WaitStep(4),
            _LISTEN,
            steps.HangUpStep(),
        ],
    )
