"""One connection to the fake Realtime model: its events, its answers, its lifetime.

All decisions are synchronous. Tasks exist only to wait (for a response's pace, a late
transcription, a scheduled fault) and live in the session's TaskGroup. The session does
not know the playout: after response.done, speech cancels nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias, assert_never

from websockets.exceptions import ConnectionClosed

from bridge.sim.realtime import faults
from bridge.sim.realtime.caller_input import CallerInput
from bridge.sim.realtime.client_events import (
    BufferAppend,
    BufferClear,
    BufferCommit,
    ClientEvent,
    FunctionCallOutputItem,
    InvalidRequestError,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    Json,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
    check,
    decode_append,
    parse,
)
from bridge.sim.realtime.configuration import updated
from bridge.sim.realtime.connection import ModelSocket
from bridge.sim.realtime.context import SessionContext
from bridge.sim.realtime.default_answers import default_answer
from bridge.sim.realtime.event_sender import Direction
from bridge.sim.realtime.items import ModelItem, RememberedItem, ResponseRecord
from bridge.sim.realtime.leg import Leg, accepted_session, check_formats
from bridge.sim.realtime.mcp import HostedServers
from bridge.sim.realtime.response import ActiveResponse
from bridge.sim.realtime.turns import (
    Behaviour,
    SayText,
    ToolOutput,
    Trigger,
    Turn,
    TurnContext,
)

Hook: TypeAlias = Callable[["ModelSession", Direction, Json], None]

_NOTHING_LEFT = (SayText("I have nothing more to say."),)
_CLEAR = "output_audio_buffer.clear"  # only sessions with a phone leg know this event


class ModelSession(SessionContext):
    """The session itself, and what tests and reports read of it."""

    def __init__(
        self,
        connection: ModelSocket,
        behaviour: Behaviour,
        *,
        model: str,
        model_chosen: bool,
        keep_audio: bool = True,
        record_appends: bool = False,
        on_event: Hook | None = None,
        accepted_with: Json | None = None,
        fault: faults.Fault | None = None,
    ) -> None:
        """`accepted_with`: the body of the accept request, if this is the control
        socket of a SIP call. `fault` is applied before the first event."""
        super().__init__(connection, behaviour, model)
        self.headers: Mapping[str, str] = _headers(connection)
        self.leg: Leg | None = None
        if accepted_with is not None:
            self.session = accepted_session(f"sess_{self.id}", accepted_with, model)
            self.model = self.session["model"]
            self.leg = Leg(connection, self)
            self.out = self.leg
        self.out.says = behaviour.says
        self.responses: list[ResponseRecord] = []
        self.received: list[tuple[float, Json]] = []  # all client events except appends
        self.opened_at = self.now()
        self.configured_at: float | None = None  # when the first update was confirmed
        # the response in the conversation; those out of band are separate
        self.active_response: ActiveResponse | None = None
        self.mcp = HostedServers(self)
        self.caller_input = CallerInput(
            self, self, keep_audio=keep_audio, record_appends=record_appends
        )
        self._fault = fault
        self._model_chosen = model_chosen
        self._out_of_band_responses: list[ActiveResponse] = []
        self._responses_begun = 0
        self._updates = 0
        self.observe(on_event)

    # --- what reports and tests read ------------------------------------------------

    def observe(self, on_event: Hook | None) -> None:
        """Call `on_event(session, "sent" | "received", event)` for each event."""
        self.out.observe = partial(on_event, self) if on_event is not None else None

    @property
    def items(self) -> dict[str, ModelItem]:
        """All items in conversation order, deleted ones included."""
        return self.history.items

    @property
    def conversation(self) -> tuple[RememberedItem, ...]:
        """The conversation as the model remembers it."""
        return self.history.remembered()

    @property
    def errors_sent(self) -> list[Json]:
        return self.out.errors

    @property
    def sent_deltas(self) -> list[tuple[float, str, bytes]]:
        """(monotonic second, item id, audio) of each audio delta."""
        return self.out.deltas

    @property
    def appends(self) -> int:
        return self.caller_input.appends

    @property
    def append_at(self) -> list[float]:
        return self.caller_input.append_at

    @property
    def append_ends(self) -> list[int]:
        """Bytes of the caller's audio up to the end of each append."""
        return self.caller_input.append_ends

    @property
    def audio_in_bytes(self) -> int:
        return self.caller_input.audio_in_bytes

    @property
    def caller_audio(self) -> bytearray:
        """The first ten minutes as appended, in the session's format."""
        return self.caller_input.caller_audio

    @property
    def speech_started_at(self) -> list[float]:
        return self.caller_input.speech_started_at

    @property
    def caller_turns(self) -> int:
        return self.caller_input.turns

    # --- lifetime -----------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends. Leaves no task behind."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                if self._fault is not None:
                    self._fault(self)
                if self.model in self.behaviour.refuse_model:
                    self._refuse_model()
                elif self.closed is None:
                    faults.schedule_faults(self)
                    self.out.emit({"type": "session.created", "session": self.session})
                    self.mcp.configure([])
                await self._read()
                for task in self._tasks:
                    task.cancel()
        finally:
            for response in (self.active_response, *self._out_of_band_responses):
                if response is not None:
                    response.abandon()
            self.active_response = None

    async def _read(self) -> None:
        try:
            self.connection.take_now(self._receive_now)
            while True:
                frame = await self.connection.recv()
                await self._thawed.wait()
                self._receive(frame)
        except ConnectionClosed as end:
            if self.closed is None:
                self.closed = "client does not read" if self.out.cut_off else _how(end)

    def _receive_now(self, text: str) -> bool:
        """Take a message in the callback in which it arrived; False: `_read` has to
        take it, and all that follow."""
        if self.frozen:
            return False
        self._receive(text)
        return True

    def _refuse_model(self) -> None:
        message = f"The model `{self.model}` does not exist or you do not have access."
        self.out.error(InvalidRequestError(message, "model_not_found"))
        faults.closing(4000, "invalid_request_error.model_not_found")(self)

    # --- receiving ----------------------------------------------------------------

    def _receive(self, frame: str | bytes) -> None:
        event: Json = {}
        try:
            if isinstance(frame, bytes):
                raise InvalidRequestError(
                    "Events are sent as text frames.", "invalid_json"
                )
            append = decode_append(frame) if self.out.observe is None else None
            if append is not None:
                if isinstance(append.event_id, str):
                    event = {"event_id": append.event_id}
                self.caller_input.append(append)
                return
            event = parse(frame)
            if self.out.observe is not None:
                self.out.observe("received", event)
            if event.get("type") != "input_audio_buffer.append":
                self.received.append((self.now(), event))
            if self.leg is not None and event.get("type") == _CLEAR:
                self._clear_phone(self.leg, event)
                return
            if self.behaviour.hears is not None:
                event = self.behaviour.hears(event)
            self._dispatch(check(event), event)
        except InvalidRequestError as refused:
            self.out.error(refused, event.get("event_id"))

    def _dispatch(self, event: ClientEvent, raw: Json) -> None:
        match event:
            case BufferAppend():
                self.caller_input.append(event)
            case SessionUpdate():
                self._update(raw)
            case BufferCommit():
                self.caller_input.commit_by_client()
            case BufferClear():
                self.caller_input.clear()
            case ItemCreate():
                self._create_item(event, raw)
            case ItemRetrieve():
                item = self.history.find(event.item_id, "retrieve")
                shown = item.wire(with_audio=True)
                self.out.emit({"type": "conversation.item.retrieved", "item": shown})
            case ItemTruncate():
                self._truncate(event)
            case ItemDelete():
                self.history.find(event.item_id, "delete").deleted = True
                self.out.emit(
                    {"type": "conversation.item.deleted", "item_id": event.item_id}
                )
            case ResponseCreate():
                self._create_response(raw.get("response", {}))
            case ResponseCancel():
                self._cancel_response(raw.get("response_id"))
            case _:
                assert_never(event)

    def _clear_phone(self, leg: Leg, event: Json) -> None:
        if unknown := set(event) - {"type", "event_id"}:
            param = min(unknown)
            problem = f"Unknown parameter: '{param}'."
            raise InvalidRequestError(problem, "unknown_parameter", param)
        leg.clear()

    def _update(self, raw: Json) -> None:
        if self.leg is not None:
            check_formats(raw["session"])
        if self.behaviour.reject_update is not None:
            raise InvalidRequestError(
                "This session.update is rejected.", self.behaviour.reject_update
            )
        delay = self.behaviour.delay_updated
        if delay:
            # The update also takes effect late: until then, appended audio is heard
            # under the old settings.
            self.later(delay, lambda: self._apply(raw))
        else:
            self._apply(raw)

    def _apply(self, raw: Json) -> None:
        tools_before = self.session["tools"]
        try:
            self.session = updated(
                self.session,
                raw["session"],
                spoken=bool(self.sent_deltas),
                model_chosen=self._model_chosen,
                only_pcm=self.behaviour.ignore_formats,
            )
        except InvalidRequestError as refused:
            self.out.error(refused, raw.get("event_id"))
            return
        self.model = self.session["model"]
        self.caller_input.configure()
        self.out.emit({"type": "session.updated", "session": self.session})
        if self.configured_at is None and not self.out.muted:
            self.configured_at = self.now()
        self.mcp.configure(tools_before)
        self._updates += 1
        if self._updates == 1:
            for frame in self.behaviour.garbage:
                self.out.put(frame)

    def _create_item(self, event: ItemCreate, raw: Json) -> None:
        self._check_output(event)
        item = self.history.create(event, raw, self.new_id("item"))
        if item.type == "function_call_output":
            self.add_tool_output(
                ToolOutput(item.call_id or "", item.name or "", item.output or "")
            )
        elif item.role == "assistant":
            # A restored history: its tool outputs were spoken about already.
            self.tool_outputs.clear()
        elif any(part["type"] == "input_audio" for part in item.parts):
            self.caller_input.take_audio_item(item)
        self.emit_item("added", item)
        self.emit_item("done", item)
        if item.type == "mcp_approval_response":
            self.mcp.decide(item)

    def _check_output(self, event: ItemCreate) -> None:
        most = self.behaviour.longest_output
        if most is None or not isinstance(event.item, FunctionCallOutputItem):
            return
        if len(event.item.output) > most:
            raise InvalidRequestError(
                "Invalid 'item.output': string too long.",
                "string_above_max_length",
                "item.output",
            )

    def _truncate(self, event: ItemTruncate) -> None:
        item = self.history.truncate(event)
        self.out.emit(
            {
                "type": "conversation.item.truncated",
                "item_id": item.id,
                "content_index": event.content_index,
                "audio_end_ms": event.audio_end_ms,
            }
        )

    # --- answering ----------------------------------------------------------------

    def _create_response(self, overrides: Json) -> None:
        out_of_band = overrides.get("conversation") == "none"
        if self.active_response is not None and not out_of_band:
            raise self.already_active_error()
        voice = overrides.get("audio", {}).get("output", {}).get("voice")
        current = self.session["audio"]["output"]["voice"]
        if voice not in (None, current) and self.sent_deltas:
            raise InvalidRequestError(
                "Cannot update a conversation's voice if assistant audio is present.",
                "cannot_update_voice",
                "response.audio.output.voice",
            )
        self.respond("client", overrides)

    def already_active_error(self) -> InvalidRequestError:
        assert self.active_response is not None
        return InvalidRequestError(
            "Conversation already has an active response in progress: "
            f"{self.active_response.record.id}. Wait until the response is finished "
            "before creating a new one.",
            "conversation_already_has_active_response",
        )

    def respond(self, trigger: Trigger, overrides: Json) -> None:
        self.caller_input.stop_idle_timer()
        out_of_band = overrides.get("conversation") == "none"
        if not out_of_band:
            self._responses_begun += 1
        number = 0 if out_of_band else self._responses_begun
        record = ResponseRecord(self.new_id("resp"), number, trigger, self.now())
        context = self._turn_context(number, trigger, overrides)
        response = ActiveResponse(
            self, self.mcp, record, self._turn(context), overrides, self._response_ended
        )
        self.responses.append(record)
        if out_of_band:
            self._out_of_band_responses.append(response)
        else:
            self.tool_outputs.clear()
            self.active_response = response
        response.start()

    def _turn(self, context: TurnContext) -> Turn:
        behaviour = self.behaviour
        if 1 <= context.number <= len(behaviour.turns):
            return behaviour.turns[context.number - 1]
        if behaviour.answer is not None:
            return behaviour.answer(context)
        if behaviour.fallback is not None:
            return behaviour.fallback
        return _NOTHING_LEFT if behaviour.turns else default_answer(context)

    def _turn_context(
        self, number: int, trigger: Trigger, overrides: Json
    ) -> TurnContext:
        effective: Json = self.session | overrides
        written = [
            item.text
            for item in self.items.values()
            if item.role == "user" and not item.deleted and "text" in item.parts[0]
        ]
        return TurnContext(
            number=number,
            trigger=trigger,
            instructions=str(effective["instructions"]),
            tools=tuple(effective["tools"]),
            caller_turns=self.caller_input.turns,
            seconds=self.caller_input.seconds,
            transcript=self.caller_input.transcript,
            text=written[-1] if written else None,
            answered=tuple(self.tool_outputs),
            overrides=overrides,
            conversation=self.conversation,
        )

    def _cancel_response(self, response_id: str | None) -> None:
        active = [self.active_response] if self.active_response is not None else []
        if response_id is not None:
            active = [
                response
                for response in (*active, *self._out_of_band_responses)
                if response.record.id == response_id
            ]
        if not active:
            raise InvalidRequestError(
                "Cancellation failed: no active response found",
                "response_cancel_not_active",
            )
        active[0].cancel("client_cancelled")

    def _response_ended(self, response: ActiveResponse) -> None:
        """Called when response.done has been sent."""
        if response.out_of_band:
            self._out_of_band_responses.remove(response)
            return
        self.active_response = None
        if response.afterwards is not None:
            response.afterwards()
        elif response.record.status == "completed":
            self.caller_input.start_idle_timer(response.spoken_seconds)


def _headers(connection: ModelSocket) -> Mapping[str, str]:
    request = connection.request
    assert request is not None
    return {name.lower(): value for name, value in request.headers.raw_items()}


def _how(end: ConnectionClosed) -> str:
    if end.sent is not None and not end.rcvd_then_sent:
        return f"server {end.sent.code} {end.sent.reason}".rstrip()
    if end.rcvd is None:
        return "client 1006"
    return f"client {end.rcvd.code} {end.rcvd.reason}".rstrip()
