"""Which calls there are and what follows each: the Registry contract.

One contract, one implementation per place where calls are kept: memory.py (this
instance alone). Twilio may ask any instance what follows, so nothing else may know.
"""

import enum
from dataclasses import dataclass
from typing import Protocol


class NextStep(enum.Enum):
    """What `/voice/next` answers when Twilio asks how the call goes on."""

    HANG_UP = "hang_up"  # all was said
    SORRY = "sorry"  # we failed the caller: say so, dial the fallback number


@dataclass(frozen=True, slots=True)
class CallEntry:
    """One running call, as the fleet knows it."""

    call_sid: str
    stream_sid: str
    started_at: float
    """Seconds since the epoch."""


class Registry(Protocol):
    """Entries appear with the stream and go with it; a next step is taken once."""

    async def opened(self, entry: CallEntry) -> None:
        """A stream has started for this call."""

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        """The stream has ended; None: the call itself is over, nobody will ask."""

    async def take_next(self, call_sid: str) -> NextStep | None:
        """What was left for this call, once; None where nothing was left."""

    async def calls(self) -> list[CallEntry]:
        """The running calls, oldest first."""
