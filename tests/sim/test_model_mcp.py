"""The fake model's hosted MCP servers, validated with `openai`'s own types."""

from typing import Any

import pytest

from bridge.sim.model import Behaviour, CallMcp, SayText, Turn, TurnContext
from tests.sim.realtime_client import QUICK, Client, Event, talking

BOOK: Event = {
    "name": "book",
    "description": "Books a table.",
    "input_schema": {"type": "object"},
    "annotations": {"readOnlyHint": False},
}
LOOK: Event = BOOK | {"name": "look", "annotations": {"readOnlyHint": True}}
SERVERS = {"tables": [BOOK, LOOK]}
CALL = CallMcp("tables", "book", {"guests": 4, "name": "Ms. Doe"}, output="table 7")


def server(label: str = "tables", **config: Any) -> Event:
    url = "https://mcp.example/sse"
    return {"type": "mcp", "server_label": label, "server_url": url} | config


def behaviour(*turns: Turn) -> Behaviour:
    def answer(context: TurnContext) -> Turn:
        return [
            SayText("; ".join(f"{it.name}: {it.output}" for it in context.answered))
        ]

    return Behaviour(turns=turns, answer=answer, mcp=SERVERS, **QUICK)


async def listed(client: Client, how: str = "completed") -> Event:
    """The mcp_list_tools item in its last state."""
    await client.until(f"mcp_list_tools.{how}")
    items = [event["item"] for event in client.events if "item" in event]
    return next(item for item in reversed(items) if item["type"] == "mcp_list_tools")


async def decide(client: Client, request_id: str, **answer: Any) -> None:
    item = {"type": "mcp_approval_response", "id": "answer"} | answer
    item["approval_request_id"] = request_id
    await client.send(type="conversation.item.create", item=item)


async def asked_for(client: Client) -> Event:
    """The approval request at the end of a response."""
    await client.send(type="response.create")
    done = await client.until("response.done")
    request: Event = done["response"]["output"][-1]
    assert request["type"] == "mcp_approval_request"
    return request


async def what_is_said(client: Client) -> str:
    await client.send(type="response.create")
    done = await client.until("response.output_audio_transcript.done")
    return str(done["transcript"])


async def test_server_lists_its_tools_once_it_is_in_the_session() -> None:
    """The item is empty when it is added and has the tools when it is done."""
    async with talking(behaviour(), tools=[server()]) as (client, _):
        item = await listed(client)

        assert [tool["name"] for tool in item["tools"]] == ["book", "look"]
        added = next(it for it in client.events if it["type"].endswith("item.added"))
        assert added["item"]["tools"] == []
        assert client.types()[2:] == [
            "conversation.item.added",
            "mcp_list_tools.in_progress",
            "conversation.item.done",
            "mcp_list_tools.completed",
        ]


async def test_server_is_listed_again_only_when_its_settings_change() -> None:
    """An update with unchanged tools lists no tools again."""
    async with talking(behaviour(), tools=[server()]) as (client, _):
        await listed(client)
        await client.configure(tools=[server()])
        await client.configure(tools=[server(allowed_tools=["look"])])

        assert [it["name"] for it in (await listed(client))["tools"]] == ["look"]
        assert client.types().count("mcp_list_tools.in_progress") == 2


async def test_server_that_cannot_be_reached_lists_nothing() -> None:
    """The listing fails, and its item is never done."""
    async with talking(behaviour(), tools=[server("gone")]) as (client, _):
        item = await listed(client, "failed")

        assert item["tools"] == []
        assert "conversation.item.done" not in client.types()


async def test_tool_that_needs_no_approval_is_called_within_the_response() -> None:
    """The item has the result; the model speaks about it only in a requested
    response."""
    tools = [server(require_approval="never")]
    async with talking(behaviour([CALL]), tools=tools) as (client, _):
        await listed(client)
        await client.send(type="response.create")
        done = await client.until("response.done")

        [item] = done["response"]["output"]
        assert item["output"] == "table 7" and item["error"] is None
        assert item["arguments"] == '{"guests":4,"name":"Ms. Doe"}'
        kinds = client.types()
        order = [
            "response.output_item.added",
            "response.mcp_call_arguments.done",
            "response.mcp_call.in_progress",
            "response.mcp_call.completed",
            "response.output_item.done",
        ]
        assert sorted(order, key=kinds.index) == order
        assert await what_is_said(client) == "book: table 7"


async def test_tool_that_fails_says_why() -> None:
    """The item of the call has the error and no output."""
    error = {"type": "tool_execution_error", "message": "no table is free"}
    call = CallMcp("tables", "look", {}, error=error)
    tools = [server(require_approval="never")]
    async with talking(behaviour([call]), tools=tools) as (client, _):
        await listed(client)
        await client.send(type="response.create")
        await client.until("response.mcp_call.failed")
        done = await client.until("response.done")

        [item] = done["response"]["output"]
        assert item["error"] == error and item["output"] is None
        assert await what_is_said(client) == "look: no table is free"


async def test_server_that_the_session_does_not_have_cannot_be_called() -> None:
    """A scripted call of an unknown server is a failed call."""
    async with talking(behaviour([CALL])) as (client, _):
        await client.send(type="response.create")
        await client.until("response.mcp_call.failed")
        done = await client.until("response.done")

        assert done["response"]["output"][0]["error"]["type"] == "protocol_error"


async def test_approved_tool_is_called_at_once() -> None:
    """The call runs without a response and names the request that approved it."""
    async with talking(behaviour([CALL]), tools=[server()]) as (client, _):
        await listed(client)
        request = await asked_for(client)
        assert "response.mcp_call.in_progress" not in client.types()

        await decide(client, request["id"], approve=True)

        await client.until("response.mcp_call.completed")
        item = (await client.until("conversation.item.done"))["item"]
        assert item["approval_request_id"] == request["id"]
        assert item["output"] == "table 7"
        assert client.types().count("response.created") == 1
        assert await what_is_said(client) == "book: table 7"


async def test_rejected_tool_is_not_called() -> None:
    """The model knows the reason of the rejection in its next response."""
    async with talking(behaviour([CALL]), tools=[server()]) as (client, _):
        await listed(client)
        request = await asked_for(client)
        await decide(client, request["id"], approve=False, reason="too many")

        assert await what_is_said(client) == "book: not approved: too many"
        assert "response.mcp_call.in_progress" not in client.types()


async def test_request_is_answered_once() -> None:
    """A second approval response, or one to an unknown request, is refused."""
    async with talking(behaviour([CALL]), tools=[server()]) as (client, _):
        await listed(client)
        request = await asked_for(client)
        await decide(client, request["id"], approve=True)
        await client.until("response.mcp_call.completed")

        for request_id in (request["id"], "nobody"):
            item = {"type": "mcp_approval_response", "id": "again", "approve": True}
            item["approval_request_id"] = request_id
            error = await client.refused(type="conversation.item.create", item=item)
            assert error["code"] == "invalid_approval_request_id"


@pytest.mark.parametrize(
    ("rule", "asks"),
    [
        ("always", True),
        ("never", False),
        (None, True),
        ({"never": {"tool_names": ["book"]}}, False),
        ({"never": {"tool_names": ["look"]}}, True),
        ({"always": {"tool_names": ["book"]}}, True),
        ({"always": {"read_only": True}}, False),
    ],
)
async def test_rule_of_the_server_says_which_tools_are_asked_for(
    rule: Any, asks: bool
) -> None:
    """Approval can be required for all tools, for none, or by name and kind."""
    tools = [server(require_approval=rule)]
    async with talking(behaviour([CALL]), tools=tools) as (client, _):
        await listed(client)
        await client.send(type="response.create")
        await client.until("response.done")

        assert ("response.mcp_call.in_progress" not in client.types()) == asks


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ({"type": "mcp", "server_label": "a"}, "invalid_value"),
        (server(colour="red"), "unknown_parameter"),
        (server(require_approval="perhaps"), "invalid_value"),
        (server(allowed_tools={"names": []}), "unknown_parameter"),
    ],
)
async def test_faulty_server_is_refused(tool: Event, code: str) -> None:
    """An invalid MCP server is refused, and the session is unchanged."""
    async with talking(behaviour()) as (client, session):
        update = {"type": "realtime", "tools": [tool]}
        error = await client.refused(type="session.update", session=update)

        assert error["code"] == code and error["param"].startswith("session.tools[0]")
        assert session.session["tools"] == []
