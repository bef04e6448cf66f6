"""The tool by which the agent says who has answered an outbound call.

The bridge gives it to the agents of a call that was placed with `agent_decides`, and
only to those.
"""

from typing import Annotated

from agents import function_tool
from agents.run_context import RunContextWrapper
from pydantic import Field

from bridge.agent.live import BadRequest, CallOver, LiveCall
from bridge.agent.phone_tools import OVER
from bridge.core.answered import Answer
from bridge.model.results import background_result

PERSON = "A person is there: go on with the call."
SCREENED = (
    "Say in one sentence who is calling and why, then wait without speaking. Call this "
    "tool again when a person is there, or when you are asked for a message."
)
MAILBOX = "A mailbox has the call. Say nothing more by yourself."


@function_tool
async def who_answered(
    context: RunContextWrapper[LiveCall],
    who: Annotated[
        Answer,
        Field(
            description=(
                "voicemail: a mailbox or an answering machine; screened: a service "
                "that asks who is calling before it puts the call through; "
                "person: somebody who talks with you"
            )
        ),
    ],
) -> str:
    """Say who has answered this call, as soon as you have heard it, and again when
    it changes. Use it before you say anything to a machine."""
    try:
        ends = context.context.decide_answer(who)
    except BadRequest as error:
        return f"Not done: {error}. Go on with the call."
    except CallOver:
        return OVER
    if ends:
        return background_result(MAILBOX)
    return PERSON if who == "person" else SCREENED
