"""bridge.call.answering: what is done about a machine, and what the agent decides."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from bridge.agent.live import BadRequest
from bridge.call import answering
from bridge.call.answering import MACHINE, Answering, machine_instruction
from bridge.core.commands import Note
from bridge.core.inputs import EndCall, Input, Interrupt, Tell
from bridge.fleet.plan import AnsweredBy, Plan
from tests.support.waiting import until

BEEP = AnsweredBy.MACHINE_END_BEEP
HANG_UP = EndCall("bridge", "machine")
MESSAGE = [
    Interrupt("machine"),
    Tell("system", machine_instruction("Call us."), True),
    "leave",
]
ASK = Tell("system", MACHINE, True)


class Answered:
    """One outbound call that was answered."""

    def __init__(self, **plan: Any) -> None:
        self.done: list[Input | str] = []
        self.notes: list[Note] = []
        self.kept: list[Plan] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.it = Answering(
            self.done.append,
            self.notes.append,
            lambda: self.done.append("leave"),
            self._start,
        )
        self.it.begin(Plan(**plan), self.kept.append)

    def _start(
        self, work: Coroutine[None, None, None], name: str
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.append(task)
        return task

    @property
    def decided(self) -> list[tuple[Any, Any]]:
        named = [it.data for it in self.notes if it.name == "answer_decided"]
        return [(it["who"], it["by"]) for it in named]


LETS = {"machine": "message", "message": "Call us.", "agent_decides": True}


async def test_without_a_decision_of_the_agent() -> None:
    """As before: the plan says what is done about a machine, once."""
    for machine, done in (("hang_up", [HANG_UP]), ("ignore", [])):
        call = Answered(machine=machine)
        for _ in range(2):
            call.it.detected(BEEP)
        assert call.done == done and len(call.notes) == 1
        with pytest.raises(BadRequest):
            call.it.decide("person")
    call = Answered(machine="hang_up")
    call.it.detected(AnsweredBy.HUMAN)
    assert not call.done and not call.tasks


async def test_a_result_before_the_plan_is_known() -> None:
    """It is ignored, because it is read from the registry when the plan is known."""
    call = Answered()
    early = Answering(call.done.append, call.notes.append, lambda: None, call._start)
    early.detected(BEEP)
    with pytest.raises(BadRequest):
        early.decide("person")
    early.begin(Plan(machine="hang_up"), call.kept.append)
    early.detected(BEEP)
    assert call.done == [HANG_UP]


async def test_the_agent_hears_a_mailbox_before_its_beep() -> None:
    """The message is left when Twilio reports the end of the greeting."""
    call = Answered(**LETS)
    assert call.it.decide("voicemail")
    assert call.it.decide("person"), "too late: the message is being left"
    assert not call.done and call.decided == [("voicemail", "agent")]
    call.it.detected(BEEP)
    assert call.done == MESSAGE
    await asyncio.wait(call.tasks)
    assert call.done == MESSAGE and call.kept[-1].answered_by == "voicemail"


async def test_the_beep_is_never_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is left after a time."""
    monkeypatch.setattr(answering, "GREETING_SECONDS", 0.01)
    call = Answered(**LETS)
    assert call.it.decide("voicemail")
    await asyncio.wait(call.tasks)
    assert call.done == MESSAGE


async def test_a_mailbox_is_hung_up_on_at_once() -> None:
    call = Answered(machine="hang_up", agent_decides=True)
    assert call.it.decide("voicemail")
    assert call.done == [HANG_UP] and not call.tasks


async def test_the_agent_is_asked_and_hears_a_person() -> None:
    """Twilio was wrong: the call goes on, here and where it is resumed."""
    call = Answered(**LETS)
    call.it.detected(AnsweredBy.MACHINE_START)
    assert call.done == [ASK]
    assert not call.it.decide("person")
    await asyncio.wait(call.tasks)
    assert call.done == [ASK]

    resumed = Answered(**LETS | {"answered_by": call.kept[-1].answered_by})
    resumed.it.detected(AnsweredBy.MACHINE_START)
    assert not resumed.done and not resumed.tasks


async def test_a_screened_call_reaches_the_mailbox() -> None:
    """The agent may decide again; the greeting's end was reported before."""
    call = Answered(**LETS)
    call.it.detected(BEEP)
    assert not call.it.decide("screened")
    assert call.it.decide("voicemail")
    assert call.done == [ASK, *MESSAGE]
    assert call.decided == [("screened", "agent"), ("voicemail", "agent")]


async def test_the_agent_never_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reported machine is then a mailbox; a person is never hung up on."""
    monkeypatch.setattr(answering, "DECIDE_SECONDS", 0.01)
    call = Answered(machine="hang_up", agent_decides=True)
    call.it.detected(AnsweredBy.MACHINE_START)
    await until(lambda: HANG_UP in call.done)
    assert call.decided == [("voicemail", "bridge")]

    person = Answered(machine="hang_up", agent_decides=True)
    person.it.detected(AnsweredBy.HUMAN)
    assert not person.done and not person.tasks


async def test_a_call_is_resumed_before_its_message() -> None:
    """The message is left on the instance that resumes the call."""
    call = Answered(**LETS, answered_by="voicemail")
    call.it.detected(BEEP)
    assert call.done == MESSAGE
