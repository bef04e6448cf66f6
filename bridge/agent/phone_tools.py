"""Tools with which an agent controls the phone call: use all or some of them.

`tools=[hang_up, take_message]` or `tools=PHONE_TOOLS`. The model never names a phone
number: it picks one of the transfer names that the route allows. Every outcome is
reported to the model as a sentence that says what to do next.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any

from agents import AgentBase, Tool, function_tool
from agents.run_context import RunContextWrapper
from pydantic import Field

from bridge.agent.live import BadRequest, CallOver, LiveCall, NotAllowed, Transfer
from bridge.core.transfers import RINGING

OVER = "The call is over. Nothing more can be said or done."
SPOKE = (
    "The caller spoke before you had finished, so this was not done and the call goes "
    "on. Answer what they said; try again only if it is still wanted."
)
END_SECONDS = 10.0
"""Time for the session to close after the call ended. Closing it cancels the tool, so
the model generates no answer that nobody would hear."""


def can_transfer(context: RunContextWrapper[Any], agent: AgentBase[Any]) -> bool:
    """`is_enabled` of transfer_call: the model gets the tool only if the call has
    transfer targets."""
    return isinstance(context.context, LiveCall) and bool(context.context.transfers)


@function_tool
async def hang_up(context: RunContextWrapper[LiveCall]) -> str:
    """End the phone call. Use it when the caller says goodbye or has nothing more to
    ask, or must be hung up on. Say goodbye first, in the same answer: the line is
    closed once the caller has heard all that you said. Never use it in place of an
    answer."""
    return await _end_with(context.context.hang_up())


@function_tool(is_enabled=can_transfer)
async def transfer_call(
    context: RunContextWrapper[LiveCall],
    target: Annotated[
        str,
        Field(
            description=(
                "the name of the person or desk, exactly as you were given it; "
                "empty to be told which names there are"
            )
        ),
    ],
    summary: Annotated[
        str,
        Field(
            description=(
                "who calls and what they want, in one sentence: the person who "
                "answers may hear it before the caller is connected"
            )
        ),
    ] = "",
) -> str:
    """Put the caller through to a person. Use it when they ask for somebody or need
    what you cannot do. Tell them first, in the same answer, whom you connect them
    with: it happens once they have heard it, and you leave the call. If nobody
    answers, they come back to you. If the result says that the phone is ringing, you
    have not left: go on with the caller."""
    live = context.context
    transfer = _find(live.transfers, target)
    if transfer is None:
        return _list_targets(live.transfers, target)
    begun = live.transfer(
        transfer.number,
        caller_id=transfer.caller_id,
        ring_seconds=transfer.ring_seconds,
        digits=transfer.digits,
        whisper=transfer.whisper,
        accept=transfer.accept,
        warm=transfer.warm,
        summary=summary,
    )
    if transfer.warm:
        return await _outcome(begun) or RINGING
    return await _end_with(begun)


@function_tool
async def send_digits(
    context: RunContextWrapper[LiveCall],
    digits: Annotated[
        str,
        Field(
            description=(
                "keys in the order they are pressed: 0-9, *, #; "
                "w waits half a second, such as 1w42#"
            )
        ),
    ],
) -> str:
    """Press keys on the phone, as a person would on its keypad. Use it when a machine
    on the line asks for a key, such as a menu or an extension. The tones are played
    after what you have said; be silent then and listen for what comes."""
    try:
        sent = await context.context.send_digits(digits)
    except BadRequest as error:
        return f"Not done: {error}. Try again with other digits."
    except CallOver:
        return OVER
    return "The keys were pressed. Listen for what comes now." if sent else SPOKE


@function_tool
async def take_message(
    context: RunContextWrapper[LiveCall],
    text: Annotated[
        str, Field(description="the message, in the caller's own words where it counts")
    ],
    name: Annotated[
        str, Field(description="who it is from; empty if they do not say")
    ] = "",
    call_back: Annotated[
        str,
        Field(
            description=(
                "the number or time at which they want to be called back; "
                "empty if they do not say"
            )
        ),
    ] = "",
) -> str:
    """Keep a message for the people you answer for. Use it when nobody can be reached
    or the caller asks for a call back. First ask for all of it and read it back."""
    try:
        context.context.take_message(text, name=name, call_back=call_back)
    except BadRequest as error:
        return f"Not kept: {error}. Ask the caller what the message is."
    return "The message is kept. Tell the caller that it will be passed on."


PHONE_TOOLS: list[Tool] = [hang_up, transfer_call, send_digits, take_message]
"""All tools of this module, for `RealtimeAgent(tools=PHONE_TOOLS)`."""


async def _end_with(action: Awaitable[bool]) -> str:
    """Waits for an action that ends the call; returns the text for the model if it was
    not done."""
    if failed := await _outcome(action):
        return failed
    await asyncio.sleep(END_SECONDS)
    return OVER


async def _outcome(action: Awaitable[bool]) -> str:
    """Waits for the action; returns the text for the model if it was not done, else an
    empty one."""
    try:
        done = await action
    except NotAllowed:
        return "Not done: it is not allowed. Tell the caller that it cannot be done."
    except BadRequest as error:
        return f"Not done: {error}. Tell the caller that it cannot be done now."
    except CallOver:
        return OVER
    return "" if done else SPOKE


def _find(transfers: Mapping[str, Transfer], target: str) -> Transfer | None:
    """Ignores case and surrounding spaces: a model may write `Sales ` for `sales`."""
    wanted = target.strip().casefold()
    return next(
        (it for name, it in transfers.items() if name.strip().casefold() == wanted),
        None,
    )


def _list_targets(transfers: Mapping[str, Transfer], target: str) -> str:
    if not transfers:
        return "Nobody can be connected on this line. Offer to take a message instead."
    names = "; ".join(
        f"{name} ({it.description})" if it.description else name
        for name, it in transfers.items()
    )
    unknown = "There is no such target. " if target.strip() else ""
    return (
        f"{unknown}The caller can be put through to: {names}. Use one of these names."
    )
