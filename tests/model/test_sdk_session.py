"""The SDK's session on a phone call: failing tools, and a history of what was heard."""

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from agents import FunctionTool, function_tool
from agents.realtime import RealtimeAgent, RealtimeModelEvent, RealtimeModelListener
from structlog.testing import capture_logs

from bridge.agent import user_code
from bridge.agent.finished_tools import FinishedTool
from bridge.model import sdk_session
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import FAILED, TIMED_OUT, PhoneSession
from tests.support.sdk_session import TARGET, Connection, sample

ANSWER = "item_answer"


@dataclass
class Watch:
    """Records what the session reports about tools."""

    running: int = 0
    most: int = 0
    finished: list[FinishedTool] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    def tool_running(self, change: int, call_id: str = "") -> None:
        self.running += change
        self.most = max(self.most, self.running)

    def model_limit(self, limit: str) -> None:
        self.limits.append(limit)

    def model_stuck(self, why: str) -> None:
        self.limits.append(why)

    def tool_finished(self, tool: FinishedTool) -> None:
        self.finished.append(tool)

    @property
    def failed(self) -> list[tuple[str, str]]:
        return [(it.tool, it.error) for it in self.finished if it.error]


@dataclass
class ToolSession:
    connection: Connection
    session: PhoneSession
    watch: Watch = field(default_factory=Watch)
    error: Exception | None = None
    """What the session ended with."""

    async def listen(self) -> None:
        try:
            async for _ in self.session:
                pass
        except ConnectionError as error:
            self.error = error

    async def calls(
        self, name: str, seconds: float = 0.0, arguments: str = "{}"
    ) -> str | None:
        """What the model is told when it calls this tool, within the given limit."""
        item = {
            **sample("response.output_item.done")["item"],
            "type": "function_call",
            "id": f"item_{name}",
            "call_id": f"call_{name}",
            "name": name,
            "arguments": arguments,
            "status": "completed",
        }
        item.pop("role", None)
        item.pop("content", None)
        self.connection.says(sample("response.output_item.done", item=item))
        await self.connection.settled()
        until = monotonic() + seconds
        # There is no event to wait for.
        while not self.told and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self.connection.settled()
        return self.told[-1] if self.told else None

    @property
    def told(self) -> list[str]:
        return [
            event["item"]["output"]
            for event in self.connection.sent
            if event["type"] == "conversation.item.create"
        ]

    @property
    def words(self) -> list[str]:
        """The texts of the history's items."""
        return [
            " ".join(getattr(part, "transcript", "") or "" for part in item.content)
            for item in self.session._history
            if item.type == "message"
        ]


@asynccontextmanager
async def talk(
    agent: RealtimeAgent[Any] | None = None,
    tool_seconds: float = 5.0,
    misread: Callable[[str, str], None] = lambda reason, kind: None,
) -> AsyncIterator[ToolSession]:
    connection, watch = Connection(), Watch()
    session = PhoneSession(
        PhoneModel(connection.dial, lambda by, answer: None, lambda it: it, misread),
        agent or RealtimeAgent(name="desk"),
        None,
        {
            "url": TARGET.address,
            "headers": {},
            "initial_model_settings": TARGET.settings,
        },
        {},
        tool_seconds=tool_seconds,
        watch=watch,
    )
    await session.enter()
    found = ToolSession(connection, session, watch)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(found.listen(), name="listener")
        try:
            yield found
            await connection.settled()
        finally:
            await session.close()


@pytest.mark.parametrize("error", [LookupError, SystemExit, None])
async def test_a_listener_of_the_model_that_fails(
    error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that user code adds to `session.model` misses events; the session goes
    on. None: it hangs."""
    monkeypatch.setattr(user_code, "SECONDS", 0.05)
    told = []

    class Theirs(RealtimeModelListener):
        async def on_event(self, event: RealtimeModelEvent) -> None:
            told.append(event.type)
            if error is None:
                await asyncio.Event().wait()
            else:
                raise error("theirs")

    @function_tool
    async def look_up() -> str:
        return "found"

    with capture_logs() as logs:
        async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
            it.session.model.add_listener(Theirs())
            assert await it.calls("look_up", 4.0) == "found"

    assert len(told) == 1
    assert [it["event"] for it in logs] == ["model_listener_failed"]


# --- tools ---


async def test_a_running_tool_is_counted() -> None:
    """A caller who waits for a tool is not asked whether they are still there."""

    @function_tool
    async def look_up() -> str:
        assert it.watch.running == 1
        return "found"

    async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
        assert await it.calls("look_up") == "found"

    assert (it.watch.running, it.watch.most, it.watch.failed) == (0, 1, [])


def look_up_line(tool: FunctionTool) -> int:
    """The line of the `raise`, the first of the tool's function."""
    return inspect.unwrap(tool).__code__.co_firstlineno + 2


async def test_a_tool_that_raises_is_answered() -> None:
    """The model is told; the watch learns the error's type and place, and its text
    apart from them."""

    @function_tool(failure_error_function=None)
    async def look_up() -> str:
        raise LookupError("what the caller said")

    async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
        assert it.session.agent.name == "desk"
        assert await it.calls("look_up") == FAILED
        assert it.connection.sent_types()[-1] == "response.create"

    assert it.watch.failed == [("look_up", "LookupError")] and it.watch.running == 0
    [tool] = it.watch.finished
    line = look_up_line(look_up)
    assert tool.outcome == "failed" and tool.call_id == "call_look_up"
    assert tool.where == f"{__file__}:{line} look_up"
    assert f'File "{__file__}", line {line}, in look_up' in tool.traceback
    assert tool.traceback.endswith("\nLookupError: what the caller said")
    assert tool.message == "what the caller said"


async def test_a_tool_that_takes_too_long_is_cancelled() -> None:
    """It is cancelled after the time limit of the route."""

    @function_tool
    async def look_up() -> str:
        await asyncio.sleep(5)
        return "never"

    async with talk(
        RealtimeAgent(name="desk", tools=[look_up]), tool_seconds=0.05
    ) as it:
        assert await it.calls("look_up", 4.0) == TIMED_OUT

    assert it.watch.failed == [("look_up", "timeout")]


async def test_a_tools_own_time_limit_counts() -> None:
    """Its author's limit counts, even if it is longer than the route's."""

    @function_tool(timeout=2.0)
    async def look_up() -> str:
        await asyncio.sleep(0.1)
        return "found"

    async with talk(
        RealtimeAgent(name="desk", tools=[look_up]), tool_seconds=0.05
    ) as it:
        assert await it.calls("look_up", 4.0) == "found"


async def test_a_tool_that_cancels_itself_is_answered() -> None:
    """The caller does not wait for work that was abandoned."""

    @function_tool(failure_error_function=None)
    async def look_up() -> str:
        raise asyncio.CancelledError

    async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
        assert await it.calls("look_up") == FAILED


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "7", '{"word": 7}', "{}"])
@pytest.mark.parametrize("excused", [False, True])
async def test_invalid_arguments_are_reported_to_the_model(
    arguments: str, excused: bool
) -> None:
    """A model that writes invalid JSON is told so, and the call goes on."""

    async def look_up(word: str) -> str:
        return "never"

    how: dict[str, Any] = {} if excused else {"failure_error_function": None}
    tool = function_tool(look_up, **how)
    async with talk(RealtimeAgent(name="desk", tools=[tool])) as it:
        told = await it.calls("look_up", arguments=arguments)
        assert told == FAILED or (excused and told and "error" in told)
        assert it.connection.sent_types()[-1] == "response.create"

    assert it.error is None and it.watch.running == 0


async def test_a_lone_surrogate_in_the_arguments_is_replaced() -> None:
    """JSON can encode a lone surrogate. A tool that repeats it would end the call, as
    its result could not be sent."""

    async def echo(word: str) -> str:
        return word

    tool = function_tool(echo, failure_error_function=None)
    async with talk(RealtimeAgent(name="desk", tools=[tool])) as it:
        told = await it.calls("echo", arguments='{"word": "\\ud83d, is it?"}')

    assert told == "?, is it?"
    assert it.error is None and it.watch.failed == []


async def test_the_end_of_the_call_is_not_a_tool_failure() -> None:
    """A running tool is cancelled with the call, and nothing is reported."""
    cancelled: list[bool] = []

    @function_tool
    async def look_up() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "never"

    async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
        assert await it.calls("look_up") is None

    assert cancelled == [True]
    assert (it.watch.running, it.watch.failed) == (0, [])


async def test_a_lost_model_is_not_a_tool_failure() -> None:
    """A result that cannot be sent means that the model is lost, not that the tool
    failed."""

    @function_tool
    async def look_up() -> str:
        return "found"

    async def send(text: str) -> None:
        raise ConnectionError

    async with talk(RealtimeAgent(name="desk", tools=[look_up])) as it:
        it.connection.send = send  # type: ignore[method-assign]
        assert await it.calls("look_up") is None

    assert (it.watch.running, it.watch.failed) == (0, [])


# --- the history ---


def answer(*transcripts: str, done: bool = False) -> dict[str, Any]:
    """The server's item of an answer with these parts."""
    content = [{"type": "output_audio", "transcript": it} for it in transcripts]
    item = {
        "id": ANSWER,
        "object": "realtime.item",
        "type": "message",
        "role": "assistant",
        "status": "completed" if done else "in_progress",
        "content": content,
    }
    return {
        "type": f"response.output_item.{'done' if done else 'added'}",
        "event_id": "event_1",
        "response_id": "resp_1",
        "output_index": 0,
        "item": item,
    }


async def test_the_history_holds_what_was_heard() -> None:
    """An interrupted answer keeps the heard text, whatever the server reports
    afterwards; any other answer keeps its whole text."""
    async with talk() as it:
        it.connection.says(answer("I have much to say."))
        await it.connection.settled()
        assert it.words == ["I have much to say."]

        it.session.heard(ANSWER, 0, "I have")
        assert it.words == ["I have"]

        late = sample("response.output_audio_transcript.delta", delta=" to say.")
        for event in (
            {**late, "item_id": ANSWER},
            answer("I have much to say.", done=True),
        ):
            it.connection.says(event)
            await it.connection.settled()
            assert it.words == ["I have"]


async def test_the_heard_text_may_come_before_the_item() -> None:
    """A session that lags behind does not keep more than was heard."""
    async with talk() as it:
        it.session.heard(ANSWER, 0, "I have")
        it.connection.says(answer("I have much to say.", done=True))
        await it.connection.settled()

        assert it.words == ["I have"]


async def test_each_part_of_an_answer_has_its_heard_text() -> None:
    """The heard text is kept per content index."""
    async with talk() as it:
        it.connection.says(answer("One.", "Two and three.", done=True))
        await it.connection.settled()
        it.session.heard(ANSWER, 1, "Two")
        it.session.heard("item_other", 0, "nothing")

        assert it.words == ["One. Two"]


async def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of hours does not fill the memory; the newest items are kept."""
    monkeypatch.setattr(sdk_session, "MAX_HISTORY", 5)
    async with talk() as it:
        for number in range(12):
            event = json.loads(json.dumps(answer(f"Word {number}.", done=True)))
            event["item"]["id"] = f"item_{number}"
            it.connection.says(event)
            it.session.heard(f"item_{number}", 0, f"{number}")
            await it.connection.settled()

        assert it.words == [str(number) for number in range(7, 12)]
        assert len(it.session._heard) == 5


# --- limits ---


async def test_too_many_tool_calls_end_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that calls tools without end is told to wait; in the end the call is
    ended."""
    monkeypatch.setattr(sdk_session, "MAX_TOOLS", 1)
    monkeypatch.setattr(sdk_session, "MAX_CALLED", 3)
    done = asyncio.Event()

    @function_tool
    async def first() -> str:
        await done.wait()
        return "found"

    async with talk(RealtimeAgent(name="desk", tools=[first])) as it:
        assert await it.calls("first") is None
        assert await it.calls("second") == sdk_session.TOO_MANY
        assert it.watch.running == 1
        done.set()
        await it.connection.settled()
        assert await it.calls("first_again") is not None
        told = it.told
        await it.calls("one_too_many")
        assert it.told == told, "nothing is said to a call that ends"

    assert it.watch.limits == ["model_flood", "model_flood", "flood"]


async def test_a_tool_call_with_a_very_long_name_is_ignored() -> None:
    """It is neither stored nor answered: no tool has such a name."""
    async with talk() as it:
        assert await it.calls("x" * 1000) is None

    assert it.watch.limits == ["model_flood"]


async def test_the_transcript_of_a_turn_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK copies the transcript for every delta; the next turn starts counting
    anew."""
    monkeypatch.setattr(sdk_session, "MAX_TRANSCRIPT_CHARS", 1000)
    kind = "response.output_audio_transcript.delta"
    async with talk() as it:
        for n in range(100):
            it.connection.says(sample(kind, delta="and so on ", item_id="i1"))
            if n % 10 == 0:
                await it.connection.settled()
        await it.connection.settled()
        assert it.words == ["and so on " * 13]
        response_id = sample(kind)["response_id"]
        response = {**sample("response.done")["response"], "id": response_id}
        it.connection.says(sample("response.done", response=response))
        it.connection.says(sample(kind, delta="again", item_id="i2"))
        await it.connection.settled()
        assert it.words[-1] == "again"


async def test_the_characters_of_the_history_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The history is bounded, however long its items are."""
    monkeypatch.setattr(sdk_session, "MAX_HISTORY_CHARS", 2500)
    async with talk() as it:
        for n in range(5):
            item = {
                "id": f"i{n}",
                "type": "message",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": str(n) * 1000}],
            }
            it.connection.says(sample("conversation.item.added", item=item))
        await it.connection.settled()
        assert [words[0] for words in it.words] == ["3", "4"]


async def test_an_item_takes_no_more_work_late_in_a_long_call() -> None:
    """The sixtieth minute of a call costs what the first costs: with hundreds of items
    in the history, the bridge looks only at the one that has changed."""
    works: list[int] = []

    def count(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename == sdk_session.__file__:
            works[-1] += 1

    async with talk() as it:
        for n in range(300):
            event = json.loads(json.dumps(answer(f"Word {n}.", done=True)))
            event["item"]["id"] = f"item_{n}"
            it.connection.says(event)
            works.append(0)
            sys.setprofile(count)
            try:
                await it.connection.settled()
            finally:
                sys.setprofile(None)

    assert len(it.words) == 300
    assert works[-1] <= 1.1 * works[10]


async def test_items_the_sdk_cannot_handle_do_not_end_a_session() -> None:
    """Items of shapes that the SDK does not check are counted and skipped."""
    misread: list[tuple[str, str]] = []

    def note(reason: str, kind: str) -> None:
        misread.append((reason, kind))

    async with talk(misread=note) as it:
        for content in (5, [{"type": "text", "text": 5}]):
            item = {"id": "i", "type": "message", "role": "king", "content": content}
            it.connection.says(sample("response.output_item.added", item=item))
        it.connection.says({"type": "rate_limits.updated", "rate_limits": 5})
        await it.connection.settled()
        assert await it.calls("no_such_tool") is not None

    assert {reason for reason, _ in misread} == {"event that the SDK cannot take"}
    assert [kind for _, kind in misread] == [
        "response.output_item.added",
        "response.output_item.added",
        "rate_limits.updated",
    ]
