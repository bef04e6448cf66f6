"""The agent's end of a call: runs its session, turns what the session reports into
inputs of the core, and carries out the core's commands for it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agents.exceptions import ModelBehaviorError
from agents.realtime import RealtimeSessionEvent, RealtimeToolApprovalRequired
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from bridge.agent import tool_definitions, user_code
from bridge.agent.approvals import Approvals
from bridge.agent.events import tool_notes
from bridge.agent.finished_tools import MAX_KEPT, FinishedTool
from bridge.agent.live import BadRequest, LiveCall
from bridge.call.leg import SessionControl
from bridge.core import realtime_events
from bridge.core.commands import (
    CloseConnection,
    Dial,
    Interrupted,
    Note,
    Switch,
    limit_hit,
)
from bridge.core.inputs import (
    Ask,
    Dialled,
    EndCall,
    FromModel,
    Input,
    Interrupt,
    Misread,
    ModelLost,
    NotDialled,
    Send,
    ToolRunning,
)

SessionCommand = Interrupted | Dial | Switch | CloseConnection


class AgentSide:
    """A bridge.model.session.SessionOwner."""

    def __init__(
        self,
        feed: Callable[[Input], None],
        note: Callable[[Note], None],
        on_event: Callable[[RealtimeSessionEvent], None],
        model_away: Callable[[], None],
    ) -> None:
        """`on_event` gets the events of the SDK's session. `model_away` is called when
        a connection is lost, or could not be opened."""
        self._feed = feed
        self._note = note
        self._on_event = on_event
        self._model_away = model_away
        self._session: SessionControl | None = None
        self._live: LiveCall | None = None
        self._approvals: Approvals | None = None

    async def run(
        self,
        live: LiveCall,
        approvals: Approvals,
        log: FilteringBoundLogger,
        prepare: Callable[[], Awaitable[SessionControl]],
    ) -> None:
        """Runs the session that `prepare` makes, until it is closed. Its end, or an
        error of the user's code in either, ends the call."""
        self._live, self._approvals = live, approvals
        try:
            self._session = await prepare()
            await self._session.run()
        except (ValidationError, ModelBehaviorError) as error:
            # The model sent something that the SDK rejects. The error's text quotes it,
            # so only the error's type is logged.
            log.error("model_misbehaved", error=type(error).__name__)
            self._feed(EndCall("model", "protocol_error"))
        except BaseException as error:
            if not user_code.is_theirs(error):
                raise
            # A bug in the user's code (a function, the instructions). The user must fix
            # it, so the whole traceback is logged.
            hint = tool_definitions.explained(error)
            log.exception("agent_failed", **({"hint": hint} if hint else {}))
            self._feed(EndCall("bridge", "agent_failed"))
        else:
            self._feed(EndCall("model", "closed"))

    # --- called by the call ---

    def post(self, text: str) -> None:
        """Carries out `ToModel`."""
        assert self._session, "only a session leads to this command"
        self._session.post(text)

    def obey(self, command: SessionCommand) -> None:
        session = self._session
        assert session, "only a session leads to these commands"
        match command:
            case Interrupted(item_id, content_index):
                session.interrupted(item_id, content_index)
            case Dial(connection, seconds):
                session.dial(connection, seconds)
            case Switch(connection):
                session.switch(connection)
            case CloseConnection(connection):
                session.leave(connection)

    def mute(self, on: bool) -> None:
        """Carries out `MuteSession`."""
        assert self._session, "only a session leads to this command"
        self._session.mute(on)

    def heard(self, item_id: str, content_index: int, text: str) -> None:
        """Cuts an interrupted item in the SDK's history to the heard text."""
        if self._session:
            self._session.heard(item_id, content_index, text)

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if self._session is None or not self._session.send_raw(event):
            raise BadRequest("the model is not connected yet")

    # --- called by the agent's session (bridge.model.session.SessionOwner) ---

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        if not isinstance(event, realtime_events.AudioDelta) and self._session:
            self._session.model_event(text)
        if not isinstance(event, realtime_events.Other):
            self._feed(FromModel(connection, event))

    def model_misread(self, reason: str, kind: str = "") -> None:
        self._feed(Misread("model", reason, kind))

    def model_dialled(self, connection: int) -> None:
        self._feed(Dialled(connection))

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        self._feed(NotDialled(connection, why, fatal))
        self._model_away()

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        self._note(Note("model_gone", {"why": why, "close_code": code}))
        self._feed(ModelLost(connection, why, code))
        self._model_away()

    def model_stuck(self, why: str) -> None:
        self._feed(EndCall("model", why))

    def model_limit(self, limit: str) -> None:
        self._note(limit_hit(limit))

    def send_to_model(self, text: str) -> None:
        self._feed(Send(text))

    def interrupt_agent(self, by: str, response_id: str | None) -> None:
        self._feed(Interrupt(by, response_id))

    def handoff_refused(self, agent: str, to: str) -> None:
        self._note(Note("handoff_refused", {"agent": agent, "to": to}))

    def ask(self) -> None:
        self._feed(Ask())

    def tool_running(self, change: int, call_id: str = "") -> None:
        self._feed(ToolRunning(change, call_id))

    def tool_finished(self, tool: FinishedTool) -> None:
        assert self._live, "only a session has tools"
        kept = self._live.finished_tools
        kept[tool.call_id] = tool
        if len(kept) > MAX_KEPT:
            del kept[next(iter(kept))]
        for note in tool_notes(tool):
            self._note(note)

    def session_event(self, event: RealtimeSessionEvent) -> None:
        if isinstance(event, RealtimeToolApprovalRequired):
            assert self._approvals and self._live, "only a session has events"
            self._approvals.ask_for(event, self._live.session)
        self._on_event(event)
