"""JSON bodies of the control API's requests and answers. Knows no HTTP.

The answers do not contain text that the call's route redacts (`redact`). The OpenAPI
document is made from these models, so each field has a description.
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
from bridge.app.fallback import FallbackState
from bridge.app.outbound import LONGEST_SECONDS, CallStatus, State
from bridge.core.history import HistoryItem, Kind
from bridge.fleet import CallEntry
from bridge.http.parameters import BRIDGES_OWN
from bridge.privacy.redaction import Redaction
from bridge.records.report import said

Ring = Annotated[int, Field(ge=RING_SECONDS[0], le=RING_SECONDS[-1])]


class Body(BaseModel):
    """Base of all bodies: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- requests ---


class Nothing(Body):
    """No body, or an empty object."""


class PlaceCall(Body):
    """An outbound call: the number, and what the agent needs for the call."""

    to: Annotated[str, Field(description="E.164, such as +14155550100.")]
    from_number: Annotated[
        str | None,
        Field(
            alias="from",
            description="A number of the account; default: BRIDGE_OUTBOUND_NUMBER.",
        ),
    ] = None
    route: Annotated[
        str, Field(description="Name of the route; empty: the one that matches.")
    ] = ""
    parameters: Annotated[
        dict[str, str],
        Field(description="For routes, instructions and tools, like a TwiML stream's."),
    ] = {}
    greeting: Annotated[
        str | None,
        Field(
            max_length=MAX_TEXT_CHARS,
            description="Empty: the person called speaks first.",
        ),
    ] = None
    machine: Annotated[
        Literal["hang_up", "ignore", "message"],
        Field(description="What to do if an answering machine answers."),
    ] = "hang_up"
    message: Annotated[
        str,
        Field(
            max_length=MAX_TEXT_CHARS, description="Left on a machine, after the beep."
        ),
    ] = ""
    agent_decides: Annotated[
        bool,
        Field(
            description="The agent hears who has answered and says it by a tool; "
            "`machine` is what is done about a mailbox."
        ),
    ] = False
    ring_seconds: Ring = 30
    longest_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=LONGEST_SECONDS,
            description="Twilio ends the call after this time; BRIDGE_LONGEST_SECONDS "
            "is the limit.",
        ),
    ] = None
    send_digits: Annotated[
        str,
        Field(
            max_length=32,
            description="Pressed when the call is answered: 0-9 A-D * #; w and W wait "
            "half a second and one. Needs machine=ignore.",
        ),
    ] = ""
    campaign: Annotated[
        str,
        Field(max_length=200, description="Its calls are placed one after the other."),
    ] = ""

    @model_validator(mode="after")
    def _parameters_are_free(self) -> Self:
        if taken := sorted(BRIDGES_OWN & self.parameters.keys()):
            raise ValueError(f"the bridge itself sets {', '.join(taken)}")
        return self


class TransferTo(Body):
    """The number that takes over the call from the agent."""

    number: Annotated[
        str, Field(description="E.164, or a SIP URI that the call's route names.")
    ]
    caller_id: Annotated[
        str, Field(description="The number that is shown; empty: the caller's.")
    ] = ""
    ring_seconds: Ring = 20
    digits: Annotated[
        str,
        Field(max_length=32, description="Pressed when it is answered: an extension."),
    ] = ""
    whisper: Annotated[
        str,
        Field(
            max_length=MAX_TEXT_CHARS,
            description="What the person who answers hears first.",
        ),
    ] = ""
    accept: Annotated[
        bool, Field(description="The person must press 1 to take the call.")
    ] = False
    warm: Annotated[
        bool,
        Field(
            description="The caller stays with the agent until the person has "
            "answered; the request is answered when the phone rings."
        ),
    ] = False
    summary: Annotated[
        str,
        Field(
            max_length=MAX_TEXT_CHARS,
            description="Of a warm transfer: what the person hears before `whisper`.",
        ),
    ] = ""


class Digits(Body):
    """Keys to press."""

    digits: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_DIGITS,
            description="0-9 * # A-D; w waits half a second.",
        ),
    ]


class Text(Body):
    """Text to put into the conversation."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
    role: Annotated[
        Literal["user", "system"],
        Field(description="user: as if the caller had said it; system: for the agent."),
    ] = "user"
    respond: Annotated[bool, Field(description="Whether the agent answers.")] = True


class Mute(Body):
    """Whether the agent hears silence instead of the caller."""

    on: bool


class Decision(Body):
    """The decision on a tool call that waits for approval."""

    approve: bool
    always: Annotated[
        bool, Field(description="For this tool, until the call ends.")
    ] = False
    message: Annotated[
        str | None, Field(description="What the model is told about the rejection.")
    ] = None

    @model_validator(mode="after")
    def _message_only_if_rejected(self) -> Self:
        if self.approve and self.message is not None:
            raise ValueError("a message can be given only with a rejection")
        return self


class EditHistory(Body):
    """Items that the model forgets, and items whose text is replaced."""

    remove: Annotated[list[str], Field(description="Ids of items.")] = []
    correct: Annotated[
        dict[str, str], Field(description="Id of an item -> its new text.")
    ] = {}


class SetFallback(Body):
    """The fallback switch of the whole fleet."""

    on: bool
    reason: Annotated[
        str, Field(max_length=200, description="For the people who see it.")
    ] = ""
    by: Annotated[
        str, Field(max_length=100, description="Who switches: a name, a program.")
    ] = ""
    minutes: Annotated[
        int | None,
        Field(
            ge=1,
            le=7 * 24 * 60,
            description="It goes off by itself after this time; null: never.",
        ),
    ] = None


# --- answers ---


class CallSummary(Body):
    """One running call of the fleet."""

    call_sid: str
    stream_sid: str
    started_at: datetime
    here: Annotated[bool, Field(description="On the instance that answers.")]
    instance: Annotated[
        str, Field(description="Id of the instance that has it; empty without Redis.")
    ]


class CallList(Body):
    calls: Annotated[list[CallSummary], Field(description="Oldest first.")]


class Words(Body):
    """One utterance of the caller or the agent."""

    at: Annotated[float, Field(description="Seconds since the call began.")]
    who: Literal["caller", "agent"]
    text: Annotated[str, Field(description="What was heard.")]
    generated: Annotated[str, Field(description="What was generated, heard or not.")]
    cut: Annotated[bool, Field(description="Not everything was heard.")]


class WaitingApproval(Body):
    """A tool call that waits for approval."""

    call_id: str
    tool: str
    arguments: Annotated[str, Field(description="JSON, as the model wrote it.")]
    agent: str
    server: Annotated[str, Field(description="Label of an MCP server, or empty.")]
    since: datetime
    until: Annotated[datetime, Field(description="When the default decision is made.")]


class CallDetails(Body):
    """One running call."""

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
    agent: Annotated[str, Field(description="Name of the agent in charge.")]
    muted: bool
    messages: Annotated[int, Field(description="Left by the caller so far.")]
    input_tokens: int
    output_tokens: int
    cost: Annotated[float, Field(description="In the unit of the route's prices.")]
    transcript: list[Words]
    approvals: list[WaitingApproval]


class Placed(Body):
    """Twilio has accepted the call; it starts to ring."""

    call_sid: str


class CallProgress(Body):
    """The newest status of an outbound call that Twilio has reported."""

    call_sid: str
    state: State
    talked_seconds: int | None
    sip_code: Annotated[
        int | None,
        Field(description="Why it failed: the SIP code of the callee's network."),
    ]
    error_code: Annotated[
        int | None, Field(description="Why it failed: Twilio's error code.")
    ]


class Done(Body):
    done: Annotated[
        bool, Field(description="False: not done, because the caller spoke.")
    ]


class ApprovalList(Body):
    approvals: list[WaitingApproval]


class Fallback(Body):
    """The fallback switch of the whole fleet."""

    on: Annotated[
        bool, Field(description="New callers are sent to the fallback, not the agent.")
    ]
    reason: str
    by: str
    since: Annotated[
        datetime | None,
        Field(description="When it was switched; null: BRIDGE_FALLBACK decides."),
    ]
    until: Annotated[
        datetime | None, Field(description="When it goes off by itself; null: never.")
    ]


class Item(Body):
    """One item of the conversation as the model has it."""

    id: str
    kind: Kind
    text: Annotated[str, Field(description="What was heard, or a tool's output.")]
    generated: str
    cut: bool
    at: Annotated[float, Field(description="Seconds since the call began.")]
    call_id: str
    name: Annotated[str, Field(description="Name of the tool.")]
    arguments: str


class ItemList(Body):
    items: Annotated[list[Item], Field(description="Oldest first.")]


class Mistake(Body):
    """One error in a request's body."""

    at: Annotated[str, Field(description="Field's path, with dots; empty: the body.")]
    what: str


class ProblemBody(Body):
    """RFC 9457."""

    type: Annotated[str, Field(description="Stable; for programs.")]
    title: str
    status: int
    detail: str
    errors: list[Mistake] = []


# --- construction ---


def call_list(entries: list[CallEntry], here: set[str]) -> CallList:
    return CallList(
        calls=[
            CallSummary(
                call_sid=entry.call_sid,
                stream_sid=entry.stream_sid,
                started_at=_moment(entry.started_at),
                here=entry.call_sid in here,
                instance=entry.instance,
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


def call_progress(status: CallStatus) -> CallProgress:
    return CallProgress(
        call_sid=status.call_sid,
        state=status.state,
        talked_seconds=status.talked_seconds,
        sip_code=status.sip_code,
        error_code=status.error_code,
    )


def fallback(state: FallbackState, *, on: bool) -> Fallback:
    return Fallback(
        on=on,
        reason=state.reason,
        by=state.by,
        since=_moment(state.changed_at) if state.changed_at else None,
        until=_moment(state.until) if state.until is not None else None,
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
                name=live.redaction.text(it.name),
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
