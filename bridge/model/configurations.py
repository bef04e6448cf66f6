"""Which agent is in charge, as the model's server knows it.

The SDK puts an agent in charge before the server has taken the agent's settings. If the
server refuses them, the session goes on with the settings of the agent before, so that
agent must be in charge for the SDK, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agents.realtime import RealtimeAgent
from agents.realtime.config import RealtimeSessionModelSettings

MAX_CONFIGURATIONS = 16
"""Limit of configurations that are remembered; the oldest are forgotten. The server
answers an update before a call makes so many."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one session.update of the SDK configures."""

    event_id: str
    agent: RealtimeAgent[Any]
    dispatch: Any
    """The SDK's tools and handoffs of the agent."""
    settings: RealtimeSessionModelSettings


class Configurations:
    """The configurations of one call, the newest last."""

    def __init__(
        self, on_refused: Callable[[Configuration, Configuration], None]
    ) -> None:
        """`on_refused` gets the newest configuration, if it was refused, and the one
        that stays in force."""
        self._on_refused = on_refused
        self._sent: list[Configuration] = []

    def sent(self, configuration: Configuration) -> None:
        self._sent = [*self._sent, configuration][-MAX_CONFIGURATIONS:]

    def refused(self, event_id: str) -> None:
        """The server has refused an update. The first one has none before it: then the
        call ends."""
        known = [it for it in self._sent if it.event_id == event_id]
        if not known or len(self._sent) < 2:
            return
        was_newest = known[-1] is self._sent[-1]
        self._sent.remove(known[-1])
        if was_newest:
            self._on_refused(known[-1], self._sent[-1])
