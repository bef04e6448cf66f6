"""Who has answered an outbound call, and what its plan says must be done then.

Twilio's machine detection tells a machine from a person. If the plan lets the agent
decide, the agent hears the line and says more: a mailbox, a service that screens the
call, or a person. A machine about which the agent does not decide in time is treated as
a mailbox.
"""

import asyncio
from collections.abc import Callable

import msgspec

from bridge.agent.live import BadRequest
from bridge.core.answered import Answer
from bridge.core.commands import Note
from bridge.core.inputs import EndCall, Input, Interrupt, Tell
from bridge.fleet.plan import AnsweredBy, Plan
from bridge.websocket.text_socket import StartTask

DECIDE_SECONDS = 20.0
"""Time for the agent to decide, after Twilio has reported a machine."""

GREETING_SECONDS = 30.0
"""Longest wait for the end of a mailbox's greeting, after the agent has recognised the
mailbox. Twilio's detection gives up 30 s after the answer."""

MACHINE = (
    "A machine seems to have answered this call. Do not speak now: call the tool "
    "who_answered with what you have heard."
)


class Answering:
    """One call. `leave` ends it once the machine has heard everything. `keep` stores
    the plan for the instance that may resume the call."""

    def __init__(
        self,
        feed: Callable[[Input], None],
        note: Callable[[Note], None],
        leave: Callable[[], object],
        start_task: StartTask,
    ) -> None:
        self._feed = feed
        self._note = note
        self._leave = leave
        self._start_task = start_task
        self._plan: Plan | None = None
        self._keep: Callable[[Plan], None] = lambda plan: None
        self._detected: AnsweredBy | None = None
        self._ends = False
        self._timer: asyncio.Task[None] | None = None

    def begin(self, plan: Plan, keep: Callable[[Plan], None]) -> None:
        """The call's plan is known."""
        self._plan, self._keep = plan, keep
        self._ends = plan.answered_by == "voicemail"

    def detected(self, who: AnsweredBy) -> None:
        """Result of Twilio's detection; Twilio may report it more than once. Ignored
        before `begin`: the result is read from the registry then."""
        plan = self._plan
        if plan is None or self._detected:
            return
        self._detected = who
        self._note(Note("answered_by", {"who": who.value}))
        if self._ends:
            self._treat_as_mailbox(plan)
        elif not who.is_machine or plan.answered_by:
            return
        elif plan.agent_decides:
            self._feed(Tell("system", MACHINE, True))
            self._start_timer(DECIDE_SECONDS)
        else:
            self._treat_as_mailbox(plan)

    def decide(self, who: Answer, by: str = "agent") -> bool:
        """True: the call ends by itself, after the plan's message if it has one.
        BadRequest: the plan does not let the agent decide."""
        plan = self._plan
        if plan is None or not plan.agent_decides:
            raise BadRequest("the agent does not decide who has answered this call")
        if self._ends:
            return True
        self._plan = plan = msgspec.structs.replace(plan, answered_by=who)
        self._keep(plan)
        self._note(Note("answer_decided", {"who": who, "by": by}))
        self._stop_timer()
        self._ends = who == "voicemail"
        if self._ends and plan.machine == "message" and self._detected is None:
            self._start_timer(GREETING_SECONDS)
        elif self._ends:
            self._treat_as_mailbox(plan)
        return self._ends

    def _treat_as_mailbox(self, plan: Plan) -> None:
        self._stop_timer()
        if plan.machine == "hang_up":
            self._feed(EndCall("bridge", "machine"))
        elif plan.machine == "message":
            self._feed(Interrupt("machine"))
            self._feed(Tell("system", machine_instruction(plan.message), True))
            self._leave()

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._start_task(self._after(seconds), "answer")

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    async def _after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._timer = None  # this task: it must not cancel itself
        assert self._plan, "a timer is started for a plan"
        if self._ends:
            self._treat_as_mailbox(self._plan)
        else:
            self.decide("voicemail", "bridge")


def machine_instruction(message: str) -> str:
    return (
        "An answering machine has taken this call and waits for a message. Say this, "
        f"word for word, and nothing else: {message}"
    )
