"""What any instance must know to lead a call on: kept on the Registry's shelf."""

import enum
from typing import Literal

import msgspec

from bridge.core.history import HistoryItem
from bridge.fleet import Registry

ANSWERED_BY_SECONDS = 600.0


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


class AnsweredBy(enum.StrEnum):
    """Who picked up a call of ours, in Twilio's words. Under `amd:{call sid}`."""

    HUMAN = "human"
    MACHINE_START = "machine_start"
    MACHINE_END_BEEP = "machine_end_beep"
    MACHINE_END_SILENCE = "machine_end_silence"
    MACHINE_END_OTHER = "machine_end_other"
    FAX = "fax"

    @property
    def is_machine(self) -> bool:
        return self is not AnsweredBy.HUMAN

    async def keep(self, registry: Registry, call_sid: str) -> None:
        await registry.put(f"amd:{call_sid}", self.encode(), ANSWERED_BY_SECONDS)

    @classmethod
    async def of(cls, registry: Registry, call_sid: str) -> "AnsweredBy | None":
        """None as long as Twilio has not said."""
        kept = await registry.get(f"amd:{call_sid}")
        return None if kept is None else cls(kept.decode())
