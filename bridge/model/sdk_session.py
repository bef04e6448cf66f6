"""The SDK's session for a phone call: no tool can end or block the call.

A tool that raises or times out becomes a tool result for the model; what became of
each tool call is reported (tool_runs.py). The history is
bounded and holds speech as it was heard. tests/model/test_sdk_canary.py lists the SDK's
private names used here.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from agents.exceptions import ToolTimeoutError
from agents.realtime import RealtimeAgent, RealtimeModel, RealtimeRunConfig
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.events import RealtimeRawModelEvent, RealtimeSessionEvent
from agents.realtime.items import AssistantAudio, RealtimeItem
from agents.realtime.model import RealtimeModelConfig
from agents.realtime.model_events import RealtimeModelEvent, RealtimeModelToolCallEvent
from agents.realtime.model_inputs import RealtimeModelSendToolOutput
from agents.realtime.session import RealtimeSession, _PendingToolOutputSendError
from agents.tool import FunctionTool, Tool

from bridge.agent import user_code
from bridge.agent.finished_tools import FinishedTool
from bridge.core.limits import MAX_ID_CHARS
from bridge.model import tool_runs
from bridge.model.guarded_agent import guarded, guarded_output, guarded_settings
from bridge.model.tool_runs import ToolRun
from bridge.model.wire import without_lone_surrogates

MAX_HISTORY = 400
"""Limit of items in the SDK's history. The SDK copies the history for every transcript
delta."""

MAX_HISTORY_CHARS = 16_000_000
"""Limit of characters in the SDK's history. One item has no limit of its own and may
hold an image."""

MAX_TRANSCRIPT_CHARS = 500_000
"""Limit of the transcript of one turn, with DELTA_CHARS added for each delta: for every
delta the SDK copies the item's whole transcript. Ten minutes of fast speech reach a
fifth of this."""

DELTA_CHARS = 64
"""Cost of one transcript delta, in characters (MAX_TRANSCRIPT_CHARS)."""

MAX_TOOLS = 64
"""Limit of tool calls that run or wait for approval at a time. A model makes a few at
once."""

MAX_CALLED = 10_000
"""Limit of tool calls in one phone call: the SDK keeps some state for each."""

TOO_MANY = "Too many tools are at work. Wait for their results before you call another."

FAILED = "The tool failed. Tell the caller, or try something else."
TIMED_OUT = "The tool took too long and was given up. Tell the caller."


class ToolWatch(Protocol):
    """Receives what happens to the tools of a session."""

    def tool_running(self, change: int, call_id: str = "") -> None:
        """A tool call began (+1) or ended (-1). Without a `call_id` the model's server
        runs the tool itself, as part of a response."""

    def tool_finished(self, tool: FinishedTool) -> None:
        """A tool call, or a handoff, has ended."""

    def model_limit(self, limit: str) -> None:
        """The model reached a limit, which is one of bridge.core.limits.HITS."""

    def model_stuck(self, why: str) -> None:
        """The call cannot go on because of the model: the call ends."""


class PhoneSession(RealtimeSession):
    """The SDK's session of one call."""

    def __init__(
        self,
        model: RealtimeModel,
        agent: RealtimeAgent[Any],
        context: Any,
        model_config: RealtimeModelConfig,
        run_config: RealtimeRunConfig,
        *,
        tool_seconds: float,
        watch: ToolWatch,
        call_sid: str = "",
        tools: Sequence[Tool] = (),
        wants_raw: Callable[[], bool] = lambda: True,
    ) -> None:
        """`wants_raw`: whether any listener gets the model's raw events."""
        run_config = run_config.copy()
        self._run_guardrails = run_config.pop("output_guardrails", [])
        """Not in the SDK's configuration: _run_output_guardrails adds them."""
        super().__init__(model, agent, context, model_config, run_config)
        self._call_sid = call_sid
        self._more_tools = tools
        self._wants_raw = wants_raw
        self._tool_seconds = tool_seconds
        self._watch = watch
        self._heard: dict[str, dict[int, str]] = {}
        """Item id -> content index -> heard text, for interrupted items."""
        self._transcript_chars = 0
        """Size of this turn's transcript, as counted for MAX_TRANSCRIPT_CHARS."""
        self._history_chars = 0
        """Upper bound of the characters in the history: what was added since they were
        counted. Counting all items at each event would be a tenth of the CPU of a long
        call."""
        self._tools = 0
        """Tool calls that run now."""
        self._called = 0
        """Tool calls so far."""

    @property
    def agent(self) -> RealtimeAgent[Any]:
        """The agent in charge."""
        return self._current_agent

    @property
    def dispatch(self) -> Any:
        """The SDK's tools and handoffs of the agent in charge."""
        return self._current_dispatch_snapshot

    @property
    def is_guarded(self) -> bool:
        """The agent in charge has output guardrails."""
        return bool(self._current_agent.output_guardrails or self._run_guardrails)

    def put_in_charge(self, agent: RealtimeAgent[Any], dispatch: Any) -> None:
        """Only in the SDK: the model's session has the agent's settings already."""
        self._current_agent, self._current_dispatch_snapshot = agent, dispatch

    async def on_event(self, event: RealtimeModelEvent) -> None:
        if event.type == "raw_server_event" and not self._wants_raw():
            return  # the SDK only queues a raw_model_event
        if event.type in ("transcript_delta", "output_text_delta"):
            if not self._item_transcripts:
                self._transcript_chars = 0
            self._transcript_chars += len(event.delta) + DELTA_CHARS
            if self._transcript_chars > MAX_TRANSCRIPT_CHARS:
                return
        await super().on_event(event)
        # The server may still send the transcript of an interrupted item, even all
        # of it.
        if event.type == "item_updated":
            self._history_chars += _size(event.item)
            self._apply_heard(event.item.item_id)
        elif event.type == "input_audio_transcription_completed":
            self._history_chars += len(event.transcript)
        elif event.type == "transcript_delta":
            self._history_chars += len(event.delta)
            self._apply_heard(event.item_id)
        if len(self._history) > MAX_HISTORY:
            self._history = self._history[-MAX_HISTORY:]
        if self._history_chars > MAX_HISTORY_CHARS:
            self._limit_history_chars()

    async def _put_event(self, event: RealtimeSessionEvent) -> bool:
        """Like the SDK's method, but drops the raw events that nobody reads: they are
        half of all events."""
        if isinstance(event, RealtimeRawModelEvent) and not self._wants_raw():
            return not (self._closing or self._closed)
        return await super()._put_event(event)

    def _limit_history_chars(self) -> None:
        """Drops the oldest items while the history exceeds MAX_HISTORY_CHARS."""
        sizes = [_size(item) for item in self._history]
        chars, first = sum(sizes), 0
        while chars > MAX_HISTORY_CHARS:
            chars -= sizes[first]
            first += 1
        self._history = self._history[first:]
        self._history_chars = chars

    def heard(self, item_id: str, content_index: int, text: str) -> None:
        """Cuts an interrupted item in the history to the text that was heard."""
        self._heard.setdefault(item_id, {})[content_index] = text
        if len(self._heard) > MAX_HISTORY:
            del self._heard[next(iter(self._heard))]
        self._apply_heard(item_id)

    def _apply_heard(self, item_id: str) -> None:
        heard = self._heard.get(item_id)
        if heard is None:
            return
        for item in self._history:
            if item.item_id == item_id and item.type == "message":
                for index, part in enumerate(item.content):
                    if isinstance(part, AssistantAudio):
                        part.transcript = heard.get(index, part.transcript)

    async def _get_updated_model_settings_from_agent(
        self,
        starting_settings: RealtimeSessionModelSettings | None,
        agent: RealtimeAgent[Any],
    ) -> RealtimeSessionModelSettings:
        if starting_settings is not None:
            starting_settings = guarded_settings(
                starting_settings, agent, self._call_sid, self._more_tools
            )
        async with asyncio.timeout(user_code.PROMPT_SECONDS):
            return await super()._get_updated_model_settings_from_agent(
                starting_settings, guarded(agent, self._call_sid, self._more_tools)
            )

    async def _run_output_guardrails(
        self,
        text: str,
        response_id: str,
        *,
        agent_snapshot: RealtimeAgent[Any] | None = None,
        **more: Any,
    ) -> bool:
        agent = agent_snapshot or self._current_agent
        # A guardrail of the agent and of the run is one guardrail, and runs once.
        own = {id(it): it for it in (*agent.output_guardrails, *self._run_guardrails)}
        made = copy.copy(agent)
        made.output_guardrails = [
            guarded_output(it, agent, self._call_sid) for it in own.values()
        ]
        return await super()._run_output_guardrails(
            text, response_id, agent_snapshot=made, **more
        )

    async def _handle_tool_call(
        self, event: RealtimeModelToolCallEvent, **more: Any
    ) -> None:
        # `_admit` has checked an approved tool call before it waited for approval.
        if not more.get("from_pending_approval") and not await self._admit(event):
            return
        event = replace(event, arguments=without_lone_surrogates(event.arguments))
        loop = asyncio.get_running_loop()
        snapshot = more.get("dispatch_snapshot") or self._current_dispatch_snapshot
        run = ToolRun(event.arguments, _has_tool(snapshot, event.name))
        began = loop.time()
        token = tool_runs.current.set(run)
        self._tools += 1
        self._watch.tool_running(+1, event.call_id)
        answer: str | None = None
        try:
            with user_code.running_tool(self._call_sid, event.name):
                async with asyncio.timeout(self._seconds_for(event.name)):
                    await super()._handle_tool_call(event, **more)
        except _PendingToolOutputSendError:
            raise  # the model connection is lost; the call handles that elsewhere
        except BaseException as error:
            if not user_code.is_theirs(error):
                run.over = True
                raise
            run.failed(error)
            late = isinstance(error, (TimeoutError, ToolTimeoutError))
            answer = TIMED_OUT if late else FAILED
        finally:
            tool_runs.current.reset(token)
            self._tools -= 1
            self._watch.tool_running(-1, event.call_id)
            self._report(event, run, loop.time() - began)
        if answer is not None:
            await self._answer(event, answer)

    def _report(
        self, event: RealtimeModelToolCallEvent, run: ToolRun, seconds: float
    ) -> None:
        """Says what became of a tool call, unless it now waits for its approval."""
        if event.call_id not in self._pending_tool_calls:
            self._watch.tool_finished(run.finished(event.name, event.call_id, seconds))

    async def _admit(self, event: RealtimeModelToolCallEvent) -> bool:
        """False: the tool call exceeds a limit and must not run."""
        self._called += 1
        named = max(len(event.call_id), len(event.name)) <= MAX_ID_CHARS
        waiting = len(self._pending_tool_calls)
        if named and self._called <= MAX_CALLED and self._tools + waiting < MAX_TOOLS:
            return True
        self._watch.model_limit("model_flood")
        if self._called > MAX_CALLED:
            self._watch.model_stuck("flood")
        elif named:
            await self._answer(event, TOO_MANY)
        return False

    async def _answer(self, event: RealtimeModelToolCallEvent, output: str) -> None:
        await self._model.send_event(
            RealtimeModelSendToolOutput(
                tool_call=event, output=output, start_response=True
            )
        )

    def _seconds_for(self, name: str) -> float:
        """Seconds a tool call may take. The SDK enforces the tool's own limit; what it
        calls before and after the tool must also end."""
        snapshot = self._current_dispatch_snapshot
        own = (
            tool.timeout_seconds or 0.0
            for tool in (snapshot.tools if snapshot else ())
            if isinstance(tool, FunctionTool) and tool.name == name
        )
        return self._tool_seconds + next(own, 0.0)


def _has_tool(snapshot: Any, name: str) -> bool:
    """Whether the agent that was asked has this tool or handoff."""
    return snapshot is None or any(
        name in (getattr(it, "name", ""), getattr(it, "tool_name", ""))
        for it in (*snapshot.tools, *snapshot.handoffs)
    )


def _size(item: RealtimeItem) -> int:
    """Characters in all parts of an item."""
    parts = item.content if item.type == "message" else [item]
    fields = (value for part in parts for _, value in part)
    return sum(len(value) for value in fields if isinstance(value, str))
