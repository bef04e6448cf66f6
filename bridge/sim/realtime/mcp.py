"""The hosted MCP servers of one fake session: listing tools, approvals, calls.

Order of events: openai-ruby's examples/realtime/mcp_approval.rb, which runs against the
real server. An approved call runs at once, outside any response; the model speaks about
its result only when the client requests a response.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.sim.realtime.client_events import Json
from bridge.sim.realtime.context import SessionContext
from bridge.sim.realtime.items import ModelItem
from bridge.sim.realtime.turns import CallMcp, ToolOutput

_LIST_SECONDS = 0.02
"""Time in which a server lists its tools."""

_UNKNOWN_SERVER = {
    "type": "protocol_error",
    "code": -32601,
    "message": "The session has no such MCP server.",
}


class HostedServers:
    """The servers in `session.tools`; `Behaviour.mcp` describes them."""

    def __init__(self, session: SessionContext) -> None:
        self._session = session
        # by id of the approval request
        self._waiting: dict[str, tuple[ModelItem, CallMcp, int]] = {}

    def configure(self, before: Sequence[Json]) -> None:
        """List the tools of each server that is new since the session had `before`.

        The mcp_list_tools item gets its tools when it is done. The item of an
        unreachable server is never done.
        """
        for config in self._configs():
            if config not in before:
                item = ModelItem(
                    id=self._session.new_id("mcpl"),
                    type="mcp_list_tools",
                    server_label=config["server_label"],
                )
                self._session.add_item(item, finished=False)
                self._emit("mcp_list_tools.in_progress", item)
                self._session.spawn(self._list(item, config), "mcp list")

    def needs_approval(self, call: CallMcp) -> bool:
        config = self._config(call.server_label)
        return config is not None and _needs_approval(
            config.get("require_approval"), self._tool(call)
        )

    def await_approval(
        self, request: ModelItem, item: ModelItem, call: CallMcp, index: int
    ) -> None:
        """Run `item` when `request` is approved; `index` is its output_index."""
        self._waiting[request.id] = item, call, index

    def decide(self, answer: ModelItem) -> None:
        """Apply the client's mcp_approval_response."""
        assert answer.approval_request_id is not None
        item, call, index = self._waiting.pop(answer.approval_request_id)
        if answer.approve:
            item.approval_request_id = answer.approval_request_id
            self._session.spawn(self._run_late(item, call, index), "mcp call")
        else:
            said = f"not approved: {answer.reason or 'no reason given'}"
            self._session.add_tool_output(ToolOutput(item.id, call.name, said))

    async def run(self, item: ModelItem, call: CallMcp, index: int) -> None:
        """Call the tool. Afterwards the item has its output or its error."""
        self._emit("response.mcp_call.in_progress", item, output_index=index)
        await asyncio.sleep(call.seconds)
        error = call.error
        if self._config(call.server_label) is None:
            error = _UNKNOWN_SERVER
        if error is None:
            item.output = call.output
        else:
            item.error = dict(error)
        item.complete = True
        item.status = "completed"
        how = "completed" if error is None else "failed"
        self._emit(f"response.mcp_call.{how}", item, output_index=index)
        said = call.output if error is None else str(error["message"])
        self._session.add_tool_output(ToolOutput(item.id, call.name, said))

    async def _run_late(self, item: ModelItem, call: CallMcp, index: int) -> None:
        await self.run(item, call, index)
        self._session.finish_item(item)

    async def _list(self, item: ModelItem, config: Json) -> None:
        await asyncio.sleep(_LIST_SECONDS)
        tools = self._session.behaviour.mcp.get(item.server_label)
        if tools is None:
            self._emit("mcp_list_tools.failed", item)
            return
        item.tools = [dict(tool) for tool in tools if _allowed(config, tool)]
        item.complete = True
        self._session.finish_item(item)
        self._emit("mcp_list_tools.completed", item)

    def _configs(self) -> list[Json]:
        tools: list[Json] = self._session.session["tools"]
        return [tool for tool in tools if tool["type"] == "mcp"]

    def _config(self, label: str) -> Json | None:
        if label not in self._session.behaviour.mcp:
            return None
        configs = (it for it in self._configs() if it["server_label"] == label)
        return next(configs, None)

    def _tool(self, call: CallMcp) -> Mapping[str, Any]:
        tools = self._session.behaviour.mcp.get(call.server_label, ())
        named = (tool for tool in tools if tool["name"] == call.name)
        return next(named, {"name": call.name})

    def _emit(self, kind: str, item: ModelItem, **fields: Any) -> None:
        self._session.out.emit({"type": kind, "item_id": item.id} | fields)


def _allowed(config: Json, tool: Mapping[str, Any]) -> bool:
    allowed = config.get("allowed_tools")
    if isinstance(allowed, list):
        allowed = {"tool_names": allowed}
    return allowed is None or _matches(allowed, tool)


def _matches(chosen: Json, tool: Mapping[str, Any]) -> bool:
    hints = tool.get("annotations") or {}
    names = chosen.get("tool_names")
    read_only = chosen.get("read_only")
    return (names is None or tool["name"] in names) and (
        read_only is None or read_only == bool(hints.get("readOnlyHint"))
    )


def _needs_approval(rule: Any, tool: Mapping[str, Any]) -> bool:
    """True if the call needs approval. Without a rule every call does, as in the
    Responses API's guide
    (https://platform.openai.com/docs/guides/tools-connectors-mcp#approvals)."""
    if not isinstance(rule, dict):
        return bool(rule != "never")
    if "never" in rule and _matches(rule["never"], tool):
        return False
    return "always" not in rule or _matches(rule["always"], tool)
