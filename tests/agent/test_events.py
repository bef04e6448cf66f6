"""Listeners: each gets all its events in order, and none can affect another."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agents import (
    FunctionTool,
    GuardrailFunctionOutput,
    OutputGuardrail,
    OutputGuardrailResult,
    RunContextWrapper,
    function_tool,
)
from agents.realtime import (
    RealtimeAgent,
    RealtimeAgentEndEvent,
    RealtimeAgentStartEvent,
    RealtimeAudioEnd,
    RealtimeAudioInterrupted,
    RealtimeError,
    RealtimeGuardrailTripped,
    RealtimeHandoffEvent,
    RealtimeHistoryAdded,
    RealtimeHistoryUpdated,
    RealtimeSessionEvent,
    RealtimeToolApprovalRequired,
    RealtimeToolEnd,
    RealtimeToolStart,
)
from agents.realtime.events import RealtimeEventInfo
from agents.realtime.items import SystemMessageItem
from structlog.testing import capture_logs

from bridge.agent import events
from bridge.agent.events import CallEvent, Listeners, call_event

SID = "CA" + "1" * 32


@asynccontextmanager
async def listeners() -> AsyncIterator[Listeners]:
    """The Listeners of a call that ends when the context is left; all tasks have ended
    then."""
    async with asyncio.TaskGroup() as tasks:

        def start(work: Any, name: str) -> asyncio.Task[None]:
            assert threading.current_thread() is threading.main_thread()
            return tasks.create_task(work, name=name)

        made = Listeners(start, SID)
        try:
            yield made
        finally:
            made.end()


def numbered(*numbers: int) -> list[CallEvent]:
    return [CallEvent("number", {"number": number}) for number in numbers]


async def settled() -> None:
    """Waits until everything that can happen without further input has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_events_in_order_to_every_kind_of_listener() -> None:
    """Plain and async functions, callable objects of both kinds, and a plain function
    that returns an awaitable all work."""
    seen: dict[str, list[int]] = {}

    def keep(name: str, event: CallEvent) -> None:
        seen.setdefault(name, []).append(event.data["number"])

    async def is_async(event: CallEvent) -> None:
        await asyncio.sleep(0)
        keep("async", event)

    class Object:
        async def __call__(self, event: CallEvent) -> None:
            assert threading.current_thread() is threading.main_thread()
            keep("object", event)

    async def late(event: CallEvent) -> None:
        keep("awaitable", event)

    async with listeners() as it:
        it.add(lambda event: keep("plain", event), ())
        it.add(is_async, ())
        it.add(Object(), ())
        it.add(lambda event: late(event), ())
        for event in numbered(1, 2, 3):
            it.emit(event)

    assert set(seen) == {"plain", "async", "object", "awaitable"}
    assert all(numbers == [1, 2, 3] for numbers in seen.values())


async def test_a_listener_gets_only_the_types_it_asked_for() -> None:
    """Events that no listener asked for need not be made."""
    seen: list[str] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event.type)

    async with listeners() as it:
        assert not it.wants("said")
        stop = it.add(keep, ("said", "usage"))
        assert it.wants("said") and not it.wants("tool_start")
        for kind in ("said", "tool_start", "usage"):
            it.emit(CallEvent(kind))
        stop()
        stop()
        assert not it.wants("said")
        it.emit(CallEvent("said"))

    assert seen == ["said", "usage"]


async def test_an_error_of_a_listener_is_logged_once() -> None:
    """The traceback is logged once, not for every event; the listener still gets
    events."""
    seen: list[int] = []

    def raises(event: CallEvent) -> None:
        seen.append(event.data["number"])
        raise SystemExit(3) if seen == [1] else LookupError

    with capture_logs() as logs:
        async with listeners() as it:
            it.add(raises, ())
            for event in numbered(1, 2, 3):
                it.emit(event)

    assert seen == [1, 2, 3]
    [failed] = logs
    assert failed["event"] == "listener_failed" and failed["exc_info"]


async def test_a_slow_listener_misses_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded; the log says that events were dropped, and how many."""
    monkeypatch.setattr(events, "MAX_WAITING", 3)
    seen: list[int] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event.data["number"])

    with capture_logs() as logs:
        async with listeners() as it:
            it.add(keep, ())
            for event in numbered(*range(8)):
                it.emit(event)

    assert seen == [0, 1, 2]
    assert [(it["event"], it.get("events")) for it in logs] == [
        ("listener_queue_full", None),
        ("listener_events_dropped", 5),
    ]


async def test_the_text_in_a_listeners_queue_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few large events can use as much memory as many small ones; delivered events do
    not count."""
    monkeypatch.setattr(events, "MAX_WAITING_CHARS", 25)
    seen: list[str] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event.data["text"])

    async with listeners() as it:
        it.add(keep, ())
        for n in range(3):
            for _ in range(3):
                it.emit(CallEvent("said", {"text": f"{n}" * 10}))
            async with asyncio.timeout(2):
                while len(seen) < 2 * n + 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    assert [text[0] for text in seen] == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.parametrize("removed", [False, True])
async def test_a_listener_that_never_ends_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """A listener's task ends soon after its call, even if the listener hangs."""
    monkeypatch.setattr(events, "LATE_SECONDS", 0.05)
    free = threading.Event()

    async def sleeps(event: CallEvent) -> None:
        await asyncio.sleep(3600)

    def blocks(event: CallEvent) -> None:
        free.wait(120)

    began = time.monotonic()
    async with listeners() as it:
        for listener in (sleeps, blocks):
            stop = it.add(listener, ())
            it.emit(CallEvent("said"))
            if removed:
                stop()

    assert time.monotonic() - began < 60
    free.set()


async def test_blocking_listeners_use_no_thread_of_the_pool() -> None:
    """Tools and DNS look-ups go on, however many listeners hang."""
    free = threading.Event()

    def blocks(event: CallEvent) -> None:
        free.wait(5)

    async with listeners() as it:
        for _ in range(50):
            it.add(blocks, ())
        it.emit(CallEvent("said"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            assert await asyncio.to_thread(lambda: 7) == 7
        free.set()


async def test_listeners_can_be_used_from_a_tools_thread() -> None:
    """A tool's thread may emit events, add listeners and remove them."""
    seen: list[str] = []

    async def keep(event: CallEvent) -> None:
        seen.append(event.type)

    def work(it: Listeners) -> None:
        stop = it.add(keep, ())
        it.emit(CallEvent("first"))
        stop()
        it.emit(CallEvent("second"))

    async with listeners() as it:
        await asyncio.to_thread(work, it)
        await settled()
        assert seen == ["first"]


async def test_no_listener_is_started_after_the_call() -> None:
    """No task is started that nothing would end."""
    async with listeners() as it:
        it.end()
        it.add(lambda event: None, ())
        it.emit(CallEvent("said"))
        assert not it.wants("said")


# --- the SDK's events ---

INFO = RealtimeEventInfo(context=RunContextWrapper(None))
DESK: RealtimeAgent[Any] = RealtimeAgent(name="desk")
BACK: RealtimeAgent[Any] = RealtimeAgent(name="back")


@function_tool
def look_up(word: str) -> str:
    return word


async def _never(context: Any, agent: Any, text: str) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(None, tripwire_triggered=False)


TOOL: FunctionTool = look_up
CALLED = {"tool": "look_up", "arguments": "{}", "agent": "desk"}
TRIPPED = OutputGuardrailResult(
    guardrail=OutputGuardrail(guardrail_function=_never, name="doses"),
    agent_output="",
    agent=DESK,  # type: ignore[arg-type]
    output=GuardrailFunctionOutput(None, tripwire_triggered=True),
)


@pytest.mark.parametrize(
    ("event", "kind", "data"),
    [
        (RealtimeAgentStartEvent(agent=DESK, info=INFO), None, {"agent": "desk"}),
        (RealtimeAgentEndEvent(agent=DESK, info=INFO), None, {"agent": "desk"}),
        (
            RealtimeHandoffEvent(from_agent=DESK, to_agent=BACK, info=INFO),
            None,
            {"agent": "desk", "to": "back"},
        ),
        (
            RealtimeToolStart(agent=DESK, tool=TOOL, arguments="{}", info=INFO),
            None,
            CALLED,
        ),
        (
            RealtimeToolEnd(agent=DESK, tool=TOOL, arguments="{}", output=7, info=INFO),
            None,
            {**CALLED, "output": "7"},
        ),
        (
            RealtimeToolApprovalRequired(
                agent=DESK, tool=TOOL, call_id="c", arguments="{}", info=INFO
            ),
            None,
            {**CALLED, "call_id": "c"},
        ),
        (
            RealtimeAudioEnd(info=INFO, item_id="i", content_index=1),
            None,
            {"item": "i", "content_index": 1},
        ),
        (
            RealtimeAudioInterrupted(info=INFO, item_id="i", content_index=0),
            "agent_interrupted",
            {"item": "i"},
        ),
        (
            RealtimeHistoryAdded(
                info=INFO, item=SystemMessageItem(item_id="i", content=[])
            ),
            None,
            {"item": "i"},
        ),
        (RealtimeHistoryUpdated(info=INFO, history=[]), None, {}),
        (
            RealtimeGuardrailTripped(
                info=INFO, guardrail_results=[TRIPPED], message="no"
            ),
            None,
            {"guardrails": ["doses"], "message": "no"},
        ),
        (RealtimeError(info=INFO, error={"m": 1}), None, {"error": {"m": 1}}),
    ],
    ids=lambda it: type(it).__name__ if hasattr(it, "info") else "",
)
def test_the_sdks_events_as_plain_values(
    event: RealtimeSessionEvent, kind: str | None, data: dict[str, Any]
) -> None:
    """A listener needs no class of the SDK; the SDK's own event is available as
    well."""
    made = call_event(event)

    assert (made.type, made.data) == (kind or event.type, data)
    assert made.source is event
