"""The SDK's session, on a phone: no tool of it ends or blocks a call.

A tool that raises or takes too long becomes an answer to the model. The history is
bounded and holds what was heard. Private names used: tests/model/test_sdk_canary.py.
"""

import asyncio
from dataclasses import replace
from typing import Any, Protocol

import structlog
from agents.exceptions import ToolTimeoutError
from agents.realtime import RealtimeAgent, RealtimeModel, RealtimeRunConfig
from agents.realtime.items import AssistantAudio, RealtimeItem
from agents.realtime.model import RealtimeModelConfig
from agents.realtime.model_events import RealtimeModelEvent, RealtimeModelToolCallEvent
from agents.realtime.model_inputs import RealtimeModelSendToolOutput
from agents.realtime.session import RealtimeSession, _PendingToolOutputSendError
from agents.tool import FunctionTool

from bridge.agent import user_code
from bridge.core.bounds import MAX_ID_CHARS
from bridge.model.wire import whole

log = structlog.get_logger()

MAX_HISTORY = 400
"""Items the SDK's own history keeps: it is copied for every word that is said ..."""

MAX_HISTORY_CHARS = 16_000_000
"""... with so many characters: an item may have any length, and hold a picture."""

MAX_WORDS = 500_000
"""Of one turn's words, each delta of them worth WORD_CHARS more: the SDK copies all of
an item's for every one that comes. Ten minutes of quick speech have a fifth of it."""

WORD_CHARS = 64

MAX_TOOLS = 64
"""At work at a time, or waiting for a yes. A model calls a few at once."""

MAX_CALLED = 10_000
"""Tools in one call, of each of which the SDK remembers something."""

TOO_MANY = "Too many tools are at work. Wait for their results before you call another."

FAILED = "The tool failed. Tell the caller, or try something else."
TIMED_OUT = "The tool took too long and was given up. Tell the caller."


class ToolWatch(Protocol):
    """Told about the tools of a session."""

    def tool_running(self, change: int, call_id: str = "") -> None:
        """+1 when one begins, -1 when it ends, both with the id of its call; without
        one it is the work of the model's own server, as a part of an answer."""

    def tool_failed(self, tool: str, error: str) -> None:
        """It raised (`error` is the exception's type) or took too long."""

    def model_limit(self, limit: str) -> None:
        """The model asks for more than we bear: one of bridge.core.limits.HITS."""

    def model_stuck(self, why: str) -> None:
        """It goes beyond all measure: the call ends."""


class PhoneSession(RealtimeSession):
    """One per call."""

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
    ) -> None:
        super().__init__(model, agent, context, model_config, run_config)
        self._tool_seconds = tool_seconds
        self._watch = watch
        self._heard: dict[str, dict[int, str]] = {}
        """Of items that were cut: the words of their parts."""
        self._words = 0
        """Of this turn, as they count for MAX_WORDS."""
        self._tools = 0
        """At work."""
        self._called = 0

    @property
    def agent(self) -> RealtimeAgent[Any]:
        """The agent in charge."""
        return self._current_agent

    async def on_event(self, event: RealtimeModelEvent) -> None:
        if event.type in ("transcript_delta", "output_text_delta"):
            if not self._item_transcripts:
                self._words = 0
            self._words += len(event.delta) + WORD_CHARS
            if self._words > MAX_WORDS:
                return
        await super().on_event(event)
        # Of what was cut the server may still tell, even all of its words.
        if event.type == "item_updated":
            self._put_heard(event.item.item_id)
        elif event.type == "transcript_delta":
            self._put_heard(event.item_id)
        if len(self._history) > MAX_HISTORY:
            self._history = self._history[-MAX_HISTORY:]
        if event.type in ("item_updated", "input_audio_transcription_completed"):
            self._forget_books()

    def _forget_books(self) -> None:
        """The oldest of what is longer than any conversation."""
        sizes = [_size(item) for item in self._history]
        chars, first = sum(sizes), 0
        while chars > MAX_HISTORY_CHARS:
            chars -= sizes[first]
            first += 1
        if first:
            self._history = self._history[first:]

    def heard(self, item_id: str, content_index: int, text: str) -> None:
        """The caller heard no more than this of an answer: nor did the history."""
        self._heard.setdefault(item_id, {})[content_index] = text
        if len(self._heard) > MAX_HISTORY:
            del self._heard[next(iter(self._heard))]
        self._put_heard(item_id)

    def _put_heard(self, item_id: str) -> None:
        heard = self._heard.get(item_id)
        if heard is None:
            return
        for item in self._history:
            if item.item_id == item_id and item.type == "message":
                for index, part in enumerate(item.content):
                    if isinstance(part, AssistantAudio):
                        part.transcript = heard.get(index, part.transcript)

    async def _handle_tool_call(
        self, event: RealtimeModelToolCallEvent, **more: Any
    ) -> None:
        # One that got its yes was let in before.
        if not more.get("from_pending_approval") and not await self._bears(event):
            return
        event = replace(event, arguments=whole(event.arguments))
        self._tools += 1
        self._watch.tool_running(+1, event.call_id)
        try:
            async with asyncio.timeout(self._limit(event.name)):
                await super()._handle_tool_call(event, **more)
        except _PendingToolOutputSendError:
            raise  # the model is gone: that is told elsewhere
        except BaseException as error:
            if not user_code.is_theirs(error):
                raise
            await self._answer_for(event, error)
        finally:
            self._tools -= 1
            self._watch.tool_running(-1, event.call_id)

    async def _answer_for(
        self, event: RealtimeModelToolCallEvent, error: BaseException
    ) -> None:
        """What the model is told in the place of a result."""
        late = isinstance(error, (TimeoutError, ToolTimeoutError))
        kind = "timeout" if late else type(error).__name__
        # The text of the error may be what the caller said: their log, not ours.
        log.warning("tool_failed", tool=event.name, error=kind)
        self._watch.tool_failed(event.name, kind)
        await self._answer(event, TIMED_OUT if late else FAILED)

    async def _bears(self, event: RealtimeModelToolCallEvent) -> bool:
        """False: this call is one too many, or none."""
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

    def _limit(self, name: str) -> float | None:
        """None for a tool that has a limit of its own, for the SDK keeps that."""
        snapshot = self._current_dispatch_snapshot
        own = any(
            isinstance(tool, FunctionTool)
            and tool.name == name
            and tool.timeout_seconds is not None
            for tool in (snapshot.tools if snapshot else ())
        )
        return None if own else self._tool_seconds


def _size(item: RealtimeItem) -> int:
    """The characters of all its parts."""
    parts = item.content if item.type == "message" else [item]
    fields = (value for part in parts for _, value in part)
    return sum(len(value) for value in fields if isinstance(value, str))
