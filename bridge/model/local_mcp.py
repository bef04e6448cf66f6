"""Local MCP servers of the agents: connects them before a call needs them.

The SDK expects `RealtimeAgent.mcp_servers` to be connected already. This module also
closes the servers. It calls no tool: the SDK does.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from agents.handoffs import Handoff
from agents.mcp import MCPServer
from agents.realtime import RealtimeAgent

from bridge.agent import user_code
from bridge.model.tool_runs import watch_server

log = structlog.get_logger()

CONNECT_SECONDS = 10.0
"""Time to connect; a server that is a program has to start first."""

CHECK_SECONDS = 3.0
"""Time for the health check, in which the caller waits. A slower server is
reconnected."""

CLEANUP_SECONDS = 5.0
"""Time to clean up. mcp's stdio client kills a program that does not exit in 2 s."""


class McpUnavailable(Exception):
    """A server cannot be connected. The message has its name and the error's type."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"MCP server {name}: {user_code.kind(error)}")
        self.name = name


def servers_of(agent: RealtimeAgent[Any]) -> list[MCPServer]:
    """The MCP servers of the agent and of all agents reachable from it by handoffs."""
    found = list[MCPServer]()
    for each in reachable(agent):
        found += [server for server in each.mcp_servers if not _among(server, found)]
    return found


def reachable(agent: RealtimeAgent[Any]) -> list[RealtimeAgent[Any]]:
    """The agent itself and all agents reachable from it by handoffs.

    Agents that a hand-written Handoff creates when it is invoked cannot be found.
    """
    agents = [agent]
    for each in agents:
        for next_ in each.handoffs:
            targets = [next_] if isinstance(next_, RealtimeAgent) else _targets(next_)
            agents += [target for target in targets if not _among(target, agents)]
    return agents


def _among(it: object, all_: list[Any]) -> bool:
    # By identity: agents are dataclasses, so two different ones may be equal.
    return any(it is other for other in all_)


def _targets(handoff: Handoff[Any, Any]) -> Iterator[RealtimeAgent[Any]]:
    """Agents that the handoff's function refers to; a Handoff keeps only their name.

    `realtime_handoff(agent)` wraps a closure over `agent` into a partial.
    """
    invoke: Any = handoff.on_invoke_handoff
    while isinstance(invoke, functools.partial):
        invoke = invoke.args[0] if invoke.args else invoke.func
    if inspect.isfunction(invoke):
        named = inspect.getclosurevars(invoke)
        for value in (*named.nonlocals.values(), *named.globals.values()):
            if isinstance(value, RealtimeAgent):
                yield value


@asynccontextmanager
async def local_mcp() -> AsyncIterator["LocalMcp"]:
    """The MCP servers of this process; all are closed when the last call has ended."""
    async with asyncio.TaskGroup() as tasks:
        local = LocalMcp(tasks)
        try:
            yield local
        finally:
            local.let_go()


class LocalMcp:
    """Connects each server once for all calls that use it. See `local_mcp`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._connections: dict[int, _Connection] = {}  # by id() of the server

    async def hold(self, agent: RealtimeAgent[Any]) -> None:
        """Connects the agent's servers and keeps them open between calls.

        McpUnavailable: a server cannot be connected.
        """
        connections = self._connections_of(agent)
        for connection in connections:
            connection.held = True
        await _ready(connections)

    def let_go(self) -> None:
        """Closes the servers of `hold` as soon as no call uses them."""
        for connection in self._connections.values():
            connection.held = False
            self._release(connection)

    @asynccontextmanager
    async def using(self, agent: RealtimeAgent[Any]) -> AsyncIterator[None]:
        """Keeps the agent's servers connected within the context.

        Each server is checked on entry; one that does not answer is reconnected.
        McpUnavailable: a server cannot be connected.
        """
        connections = self._connections_of(agent)
        for connection in connections:
            connection.calls += 1
        try:
            await _ready(connections)
            yield
        finally:
            for connection in connections:
                connection.calls -= 1
                self._release(connection)

    def _connections_of(self, agent: RealtimeAgent[Any]) -> list["_Connection"]:
        for server in (servers := servers_of(agent)):
            if id(server) not in self._connections:
                self._connections[id(server)] = _Connection(server, self._tasks)
        return [self._connections[id(server)] for server in servers]

    def _release(self, connection: "_Connection") -> None:
        # In a task: the end of a call does not wait for a program to exit.
        if not connection.wanted:
            self._tasks.create_task(self._close(connection), name="mcp server closing")

    async def _close(self, connection: "_Connection") -> None:
        await connection.close_unwanted()
        if not connection.wanted:
            self._connections.pop(id(connection.server), None)


class _Connection:
    """One server. MCP requires the same task to connect it and to clean it up."""

    def __init__(self, server: MCPServer, tasks: asyncio.TaskGroup) -> None:
        self.server = server
        watch_server(server)
        self.calls = 0  # calls that use the server
        self.held = False
        self._name = server.name.partition("?")[0]  # a url's query may have a secret
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._lock = asyncio.Lock()
        # A server that user code connected is closed by user code, too.
        self._connected_by_user = getattr(server, "session", None) is not None

    @property
    def wanted(self) -> bool:
        return self.held or self.calls > 0

    async def ready(self) -> None:
        """Returns once the server answers. McpUnavailable: it cannot be connected."""
        async with self._lock:
            if self._connected_by_user:
                return
            if self._task is not None and not await self._answers():
                log.warning("mcp_server_reconnecting", server=self._name)
                await self._close()
            if self._task is None:
                await self._open()

    async def close_unwanted(self) -> None:
        async with self._lock:
            if not self.wanted:
                await self._close()

    async def _open(self) -> None:
        connected = asyncio.get_running_loop().create_future()
        self._closing.clear()
        self._task = self._tasks.create_task(
            self._run(connected), name=f"mcp server {self._name}"
        )
        try:
            await connected
        except Exception as error:
            await self._close()
            raise McpUnavailable(self._name, error) from error
        except asyncio.CancelledError:
            # The call that waited has ended, and connecting may take long.
            self._task.cancel()
            await self._close()
            raise

    async def _close(self) -> None:
        if self._task is not None:
            self._closing.set()
            await asyncio.wait((self._task,))
            self._task = None

    async def _run(self, connected: asyncio.Future[None]) -> None:
        try:
            error = await _try(self.server.connect, CONNECT_SECONDS)
            if connected.done():
                return
            if error:
                connected.set_exception(error)
                return
            connected.set_result(None)
            await self._closing.wait()
        finally:
            if not connected.done():
                # The waiting call did not cancel this task. The server's own code did
                # (as anyio does when a transport breaks), or the process ends.
                connected.set_exception(ConnectionAbortedError())
            if error := await _try(self.server.cleanup, CLEANUP_SECONDS):
                log.warning(
                    "mcp_server_cleanup_failed",
                    server=self._name,
                    error=user_code.kind(error),
                )

    async def _answers(self) -> bool:
        """Health check. An SDK server is asked for its tools, bypassing its cache; any
        other server counts as alive while its connection task runs."""
        assert self._task is not None
        if self._task.done():
            return False
        if not hasattr(self.server, "session"):
            return True
        session = self.server.session
        if session is None:
            return False
        error = await _try(session.list_tools, CHECK_SECONDS)
        if isinstance(error, TimeoutError):
            # The server may be running another call's tool: do not close it then.
            return self.calls > 1
        return error is None


async def _try(
    action: Callable[[], Awaitable[Any]], seconds: float
) -> Exception | None:
    """Returns the action's error, a TimeoutError after `seconds`; raises nothing."""
    try:
        await user_code.call(action, name="mcp server", seconds=seconds)
    except Exception as error:
        # A server's code may raise anything; the caller of `_try` reports it.
        return error
    return None


async def _ready(connections: list[_Connection]) -> None:
    """Waits for all connections, then raises the first error, not in a group."""

    async def error_of(connection: _Connection) -> McpUnavailable | None:
        try:
            await connection.ready()
        except McpUnavailable as error:
            return error
        return None

    async with asyncio.TaskGroup() as tasks:
        results = [tasks.create_task(error_of(it)) for it in connections]
    for result in results:
        if error := result.result():
            raise error
