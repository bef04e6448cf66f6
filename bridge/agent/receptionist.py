"""The bundled agent, a dental practice's receptionist: copy it and change it.

It shows function tools, the phone tools `hang_up` and `take_message`, handoffs in both
directions and an output guardrail. BRIDGE_AGENT puts any RealtimeAgent in its place.
"""

import re
from typing import Annotated

from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import RealtimeAgent, realtime_handoff
from agents.run_context import RunContextWrapper
from pydantic import Field

from bridge.agent.live import LiveCall
from bridge.agent.phone_tools import hang_up, take_message

PRACTICE = "Maple Street Dental"

HOURS = {
    "monday": "8 to 5",
    "tuesday": "8 to 5",
    "wednesday": "8 to noon",
    "thursday": "10 to 7",
    "friday": "8 to 3",
}
FREE = {
    "tuesday": ["9:30", "2:00"],
    "thursday": ["11:15", "6:00"],
}
INVOICES = {"1042": (85, "paid"), "1043": (120, "due on the thirtieth")}

# A caller hears speech once and cannot scroll back: short sentences, no lists.
ON_THE_PHONE = (
    "You are on the phone. Speak in one or two short sentences, never in lists. "
    "If you did not understand, ask. Say numbers and times slowly. "
    "When a tool takes a moment, say so first. "
)


@function_tool
async def opening_hours(
    day: Annotated[str, Field(description="a day of the week, such as monday")],
) -> str:
    """When the practice is open on a day."""
    hours = HOURS.get(day.strip().lower())
    return f"open from {hours}" if hours else "closed all day"


@function_tool
async def free_appointments(
    day: Annotated[str, Field(description="a day of the week, such as tuesday")],
) -> str:
    """Which appointments are still free on a day."""
    times = FREE.get(day.strip().lower(), [])
    return f"free at {' and '.join(times)}" if times else "nothing is free"


@function_tool
async def invoice_status(
    number: Annotated[str, Field(description="the four digits of the invoice")],
) -> str:
    """What is open on an invoice."""
    invoice = INVOICES.get(re.sub(r"\D", "", number))
    if invoice is None:
        return "there is no invoice of that number; ask the caller to read it again"
    amount, state = invoice
    return f"{amount} dollars, {state}"


async def _no_dosage(
    context: RunContextWrapper[LiveCall], agent: object, output: str
) -> GuardrailFunctionOutput:
    """Trips if the receptionist names a dose of a medicine, whatever was asked."""
    named = re.search(r"\b\d+\s*(mg|milligrams?|tablets?|pills?)\b", output, re.I)
    return GuardrailFunctionOutput(
        output_info={"named_a_dose": named is not None},
        tripwire_triggered=named is not None,
    )


no_dosage = OutputGuardrail(guardrail_function=_no_dosage, name="no dosage")


def _receptionist_instructions(
    context: RunContextWrapper[LiveCall], agent: RealtimeAgent[LiveCall]
) -> str:
    known = context.context.facts.theirs if context.context else ""
    return (
        f"You are the receptionist of {PRACTICE}. {ON_THE_PHONE}"
        "You tell opening hours and find appointments; use your tools, never guess. "
        "For questions about an invoice hand over to billing. "
        "For pain or medicine give no advice: offer the next free appointment. "
        "What only a person can settle, take a message for. "
        "When the caller says goodbye, say goodbye and hang up. "
        + ("The caller's number is known, do not ask for it. " if known else "")
    )


billing: RealtimeAgent[LiveCall] = RealtimeAgent(
    name="billing",
    handoff_description="Questions about an invoice or a payment.",
    instructions=(
        f"You are the billing desk of {PRACTICE}. {ON_THE_PHONE}"
        "Ask for the invoice number, look it up, say what is open. "
        "For anything else hand back to the receptionist. "
        "When the caller says goodbye, say goodbye and hang up."
    ),
    tools=[invoice_status, hang_up, take_message],
)

receptionist: RealtimeAgent[LiveCall] = RealtimeAgent(
    name="receptionist",
    handoff_description="Opening hours, appointments, anything but invoices.",
    instructions=_receptionist_instructions,
    tools=[opening_hours, free_appointments, hang_up, take_message],
    handoffs=[realtime_handoff(billing)],
    output_guardrails=[no_dosage],
)
billing.handoffs = [realtime_handoff(receptionist)]
