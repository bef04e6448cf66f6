"""What the control API takes and gives, as JSON bodies. Knows no HTTP.

What a call's route takes out (`redact`) is not given.
The OpenAPI document is made of these, so each field says what it means.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.agent.approvals import Approval
from bridge.agent.live import (
    MAX_DIGITS,
    MAX_TEXT_CHARS,
    RING_SECONDS,
    LiveCall,
)
from bridge.core.history import HistoryItem, Kind
from bridge.fleet import CallEntry
from bridge.privacy.redaction import Redaction
from bridge.records.report import said

BRIDGES_OWN = frozenset({"From", "To", "Direction", "Route"})
"""Parameters of a call that the bridge itself gives."""

Ring = Annotated[int, Field(ge=RING_SECONDS[0], le=RING_SECONDS[-1])]


class Body(BaseModel):
    """Nothing unknown, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- taken ---


class Nothing(Body):
    """No body, or an empty object."""


class PlaceCall(Body):
    """Who is called, and what for."""

    to: Annotated[str, Field(description="E.164, such as +14155550100.")]
    from_number: Annotated[
        str | None,
        Field(
            alias="from",
            description="A number of the account; without: the deployment's own.",
        ),
    ] = None
    route: Annotated[
        str, Field(description="Name of the route; empty: as the routes match.")
    ] = ""
    parameters: Annotated[
        dict[str, str],
        Field(description="For routes, instructions and tools; as of a TwiML stream."),
    ] = {}
    greeting: Annotated[
        str | None, Field(description="Empty: the one called speaks first.")
    ] = None
    machine: Annotated[
        Literal["hang_up", "ignore", "message"],
        Field(description="What is done when an answering machine picks up."),
    ] = "hang_up"
    message: Annotated[str, Field(description="Left behind the beep of a machine.")] = (
        ""
    )
    ring_seconds: Ring = 30
    longest_seconds: Annotated[
        int | None, Field(ge=1, description="Twilio ends the call then.")
    ] = None

    @model_validator(mode="after")
    def _parameters_are_free(self) -> Self:
        if taken := sorted(BRIDGES_OWN & self.parameters.keys()):
            raise ValueError(f"the bridge itself gives {', '.join(taken)}")
        return self


class TransferTo(Body):
    """Who is dialled in the agent's place."""

    number: Annotated[str, Field(description="E.164.")]
    caller_id: Annotated[
        str, Field(description="Whom they see: empty, the caller; else ours.")
    ] = ""
    ring_seconds: Ring = 20


class Digits(Body):
    """Keys to be pressed."""

    digits: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_DIGITS,
            description="0-9 * # A-D; w waits half a second.",
        ),
    ]


class Text(Body):
    """Words put into the call."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
    role: Annotated[
        Literal["user", "system"],
        Field(description="As if the caller had said it, or a word to the agent."),
    ] = "user"
    respond: Annotated[bool, Field(description="The agent answers it.")] = True


class Mute(Body):
    """Whether the agent hears silence in the caller's place."""

    on: bool


class Decision(Body):
    """A yes or no to a tool call."""

    approve: bool
    always: Annotated[
        bool, Field(description="For this tool, to the end of the call.")
    ] = False
    message: Annotated[
        str | None, Field(description="What the model is told of a no.")
    ] = None

    @model_validator(mode="after")
    def _a_yes_has_no_message(self) -> Self:
        if self.approve and self.message is not None:
            raise ValueError("a message is for what is rejected")
        return self


class EditHistory(Body):
    """What the model is to forget, or to remember otherwise."""

    remove: Annotated[list[str], Field(description="Ids of items.")] = []
    correct: Annotated[
        dict[str, str], Field(description="Id of an item -> its words.")
    ] = {}


# --- given ---


class CallSummary(Body):
    """One running call of the fleet."""

    call_sid: str
    stream_sid: str
    started_at: datetime
    here: Annotated[
        bool, Field(description="On the instance that answers: it can be steered.")
    ]


class CallList(Body):
    calls: Annotated[list[CallSummary], Field(description="Oldest first.")]


class Words(Body):
    """What one of the two said at a time."""

    at: Annotated[float, Field(description="Seconds since the stream began.")]
    who: Literal["caller", "agent"]
    text: Annotated[str, Field(description="What was heard of it.")]
    generated: Annotated[str, Field(description="The agent's, heard or not.")]
    cut: Annotated[bool, Field(description="Not all of it was heard.")]


class WaitingApproval(Body):
    """A tool call that waits for a yes or no."""

    call_id: str
    tool: str
    arguments: Annotated[str, Field(description="JSON, as the model wrote it.")]
    agent: str
    server: Annotated[str, Field(description="Label of an MCP server, or empty.")]
    since: datetime
    until: Annotated[datetime, Field(description="When the default is taken.")]


class CallDetails(Body):
    """One running call of this instance."""

    call_sid: str
    stream_sid: str
    account_sid: str
    from_number: str
    to_number: str
    direction: Literal["inbound", "outbound"]
    route: str
    parameters: dict[str, str]
    started_at: datetime
    seconds: float
    agent: Annotated[str, Field(description="Name of the one in charge.")]
    muted: bool
    messages: Annotated[int, Field(description="Left by the caller so far.")]
    input_tokens: int
    output_tokens: int
    cost: Annotated[float, Field(description="In the unit of the route's prices.")]
    transcript: list[Words]
    approvals: list[WaitingApproval]


class Placed(Body):
    """The call rings from now on."""

    call_sid: str


class Done(Body):
    done: Annotated[
        bool, Field(description="False: the caller spoke meanwhile; it was not done.")
    ]


class ApprovalList(Body):
    approvals: list[WaitingApproval]


class Item(Body):
    """One item of the conversation as the model has it."""

    id: str
    kind: Kind
    text: Annotated[str, Field(description="What was heard; a tool's output.")]
    generated: str
    cut: bool
    at: Annotated[float, Field(description="Seconds since the stream began.")]
    call_id: str
    name: Annotated[str, Field(description="Of the tool.")]
    arguments: str


class ItemList(Body):
    items: Annotated[list[Item], Field(description="Oldest first.")]


class Mistake(Body):
    """One thing that is wrong with a body."""

    at: Annotated[str, Field(description="Name of the field, dotted; empty: all.")]
    what: str


class ProblemBody(Body):
    """RFC 9457."""

    type: Annotated[str, Field(description="Stable; for programs.")]
    title: str
    status: int
    detail: str
    errors: list[Mistake] = []


# --- how they are made ---


def call_list(entries: list[CallEntry], here: set[str]) -> CallList:
    return CallList(
        calls=[
            CallSummary(
                call_sid=entry.call_sid,
                stream_sid=entry.stream_sid,
                started_at=_moment(entry.started_at),
                here=entry.call_sid in here,
            )
            for entry in entries
        ]
    )


def details(live: LiveCall, now: float) -> CallDetails:
    """`now`: seconds since the epoch."""
    facts = live.facts
    return CallDetails(
        call_sid=facts.call_sid,
        stream_sid=facts.stream_sid,
        account_sid=facts.account_sid,
        from_number=facts.from_number,
        to_number=facts.to_number,
        direction=facts.direction,
        route=facts.route,
        parameters=dict(facts.parameters),
        started_at=_moment(live.began),
        seconds=round(now - live.began, 3),
        agent=live.agent_name,
        muted=live.muted,
        messages=len(live.messages),
        input_tokens=live.input_tokens,
        output_tokens=live.output_tokens,
        cost=live.cost,
        transcript=[_words(live.redaction.item(item)) for item in live.transcript],
        approvals=_approvals(live),
    )


def approval_list(live: LiveCall) -> ApprovalList:
    return ApprovalList(approvals=_approvals(live))


def item_list(live: LiveCall) -> ItemList:
    return ItemList(
        items=[
            Item(
                id=it.id,
                kind=it.kind,
                text=it.text,
                generated=it.generated,
                cut=it.cut,
                at=it.at,
                call_id=it.call_id,
                name=it.name,
                arguments=it.arguments,
            )
            for it in map(live.redaction.item, live.history)
        ]
    )


def _words(item: HistoryItem) -> Words:
    it = said(item)
    return Words(at=it.at, who=it.who, text=it.text, generated=it.generated, cut=it.cut)


def _approvals(live: LiveCall) -> list[WaitingApproval]:
    return [_approval(it, live.redaction) for it in live.approvals]


def _approval(it: Approval, redaction: Redaction) -> WaitingApproval:
    return WaitingApproval(
        call_id=it.call_id,
        tool=it.tool,
        arguments=redaction.json(it.arguments),
        agent=it.agent,
        server=it.server,
        since=_moment(it.since),
        until=_moment(it.until),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
