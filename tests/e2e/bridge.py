"""A bridge between the fake Twilio and the fake model; checks that a call leaves
nothing."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.realtime import RealtimeAgent

from bridge.agent.loader import AgentSource
from bridge.app.routes import Route, Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, load_user_code, start_services
from bridge.http.server import Server
from bridge.sim.caller import Caller
from bridge.sim.model import Behaviour, ModelServer, ModelSession
from bridge.sim.voice import speak

CLOSED_SECONDS = 2.0
"""Time after the end of a call within which everything of it must be gone (issue 2)."""

AGENT: RealtimeAgent[Any] = RealtimeAgent(name="plain", instructions="You are a test.")

# Short, because about a hundred calls of the tests begin with them.
HELLO = speak("Hello.").mulaw()
WAIT = speak("Wait!").mulaw()


@dataclass
class RunningBridge:
    """One bridge, its fake model, and callers for it."""

    server: Server
    model: ModelServer
    settings: Settings
    callers: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def caller(self, **more: Any) -> Caller:
        return Caller(webhook_url=f"{self.url}/voice", **{**self.callers, **more})

    @property
    def session(self) -> ModelSession:
        """The fake model's session of the latest call."""
        return self.model.sessions[-1]

    def metric(self, line: str) -> float:
        """The value of a line of /metrics, such as `bridge_calls_active`."""
        name, _, label = line.partition("{")
        labels = dict(
            pair.split("=", 1) for pair in label.rstrip("}").split(",") if pair
        )
        value = self.server.metrics.registry.get_sample_value(
            name, {key: text.strip('"') for key, text in labels.items()}
        )
        return value or 0.0

    async def empty(self) -> None:
        """Waits until nothing of any call is left; fails if that takes too long."""
        left = await self._left()
        # The time is that of the loop's turns: what a busy machine takes away from this
        # process does not count.
        for _ in range(round(CLOSED_SECONDS / 0.02)):
            if not left:
                return
            await asyncio.sleep(0.02)
            left = await self._left()
        assert not left, f"left behind: {left}"

    async def _left(self) -> list[str]:
        left = [f"call {sid}" for sid in await self.server.registered()]
        left += ["open stream"] * self.server.calls
        left += ["model session"] * self.model.active
        names = (task.get_name() for task in asyncio.all_tasks())
        left += [name for name in names if name.startswith(("CA", "call "))]
        return left


@asynccontextmanager
async def bridge(
    behaviour: Behaviour | None = None,
    *,
    agent: AgentSource = AGENT,
    api_key: str | None = None,
    callers: dict[str, Any] | None = None,
    record_dir: Path | None = None,
    model_url: str | None = None,
    model_tls: ssl.SSLContext | None = None,
    route: Route | None = None,
    functions: dict[str, Any] | None = None,
    **conf: Any,
) -> AsyncIterator[RunningBridge]:
    """A bridge on a free port; it accepts unsigned requests unless `conf` says
    otherwise. `route` is the route of every call, `functions` are the functions that it
    names."""
    conf = {"insecure": "public_url" not in conf, "greeting": "", **conf}
    conf = {"calls_per_number": 0, "calls_per_number_hour": 0, **conf}
    settings = Settings(host="127.0.0.1", port=0, record_dir=record_dir, **conf)
    user_code = UserCode(
        agent, Routes(defaults=route or Route()), functions=functions or {}
    )
    if settings.routes:
        user_code = replace(load_user_code(settings), source=agent)
    async with (
        ModelServer(behaviour, api_key=api_key, tls=model_tls) as model,
        start_services(settings, user_code, model_url or model.url) as services,
    ):
        server = Server(settings, services)
        await server.start()
        try:
            yield RunningBridge(server, model, settings, callers or {})
        finally:
            await server.close()
