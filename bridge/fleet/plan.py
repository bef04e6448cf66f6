"""What any instance must know to lead a call on: kept on the Registry's shelf."""

from typing import Literal

import msgspec

from bridge.core.history import HistoryItem


class Plan(msgspec.Struct, frozen=True):
    """What is special about one call: of an inbound one nothing is.

    Under `plan:{call sid}`; from the webhook that answers the call to its streams.
    """

    greeting: str | None = None
    machine: Literal["ignore", "hang_up", "message"] = "ignore"
    """What to do when an answering machine has taken the call."""
    message: str = ""
    """What the agent says to it."""

    @classmethod
    def read(cls, kept: bytes | None) -> "Plan":
        return msgspec.json.decode(kept, type=cls) if kept else cls()

    def kept(self) -> bytes:
        return msgspec.json.encode(self)


class Earlier(msgspec.Struct, frozen=True):
    """What was said in an earlier stream of the call. Under `talk:{call sid}`."""

    history: tuple[HistoryItem, ...] = ()
    agent: str = ""
    """The one in charge."""
    parameters: dict[str, str] = {}
    """Of the stream."""
    seconds: float = 0.0
    """How long the call has lasted; with its cost and its transfers, as limits are of
    the call and not of a stream."""
    cost: float = 0.0
    transfers: int = 0
    word: str = ""
    """What the agent is told about why the call goes on."""

    @classmethod
    def read(cls, kept: bytes | None) -> "Earlier":
        return msgspec.json.decode(kept, type=cls) if kept else cls()

    def kept(self) -> bytes:
        return msgspec.json.encode(self)
