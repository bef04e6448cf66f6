"""The plan of an outbound call, and who has answered it: stored in the Registry for the
instance that gets the stream."""

import enum
from typing import Literal

import msgspec
import structlog

from bridge.core.answered import Answer
from bridge.fleet import Registry, formats

log = structlog.get_logger()

ANSWERED_BY_SECONDS = 600.0


PLAN_SECONDS = 24 * 3600.0
"""How long a plan is stored."""


class Plan(msgspec.Struct, frozen=True):
    """Settings of one outbound call; an inbound call has none.

    Stored under `plan:{call sid}` by the webhook that answers the call.
    """

    greeting: str | None = None
    machine: Literal["ignore", "hang_up", "message"] = "ignore"
    """The reaction to an answering machine."""
    message: str = ""
    """The text that the agent says to the answering machine."""
    agent_decides: bool = False
    """The agent says who has answered; `machine` is what is done about a mailbox."""
    answered_by: Answer | Literal[""] = ""
    """What the agent has said."""

    @classmethod
    def read(cls, stored: bytes | None) -> "Plan":
        return formats.read_or_default(stored, cls)

    def encoded(self, format: int) -> bytes:
        """As stored, in the format that `Registry.format()` gives."""
        return formats.encode(self, format)


class AnsweredBy(enum.StrEnum):
    """Who has answered an outbound call: Twilio's values of `AnsweredBy`. Stored under
    `answered_by:{call sid}`."""

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
        await registry.put(
            f"answered_by:{call_sid}", self.encode(), ANSWERED_BY_SECONDS
        )

    @classmethod
    async def of(cls, registry: Registry, call_sid: str) -> "AnsweredBy | None":
        """None until Twilio has reported it."""
        stored = await registry.get(f"answered_by:{call_sid}")
        try:
            return None if stored is None else cls(stored.decode())
        except ValueError:
            log.error("stored_value_unreadable", kind=cls.__name__)
            return None
