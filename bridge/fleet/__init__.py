"""Which calls there are, what follows each, and what another instance may have to know.

One contract, one implementation per place where it is kept: memory.py (this instance
alone), redis.py (all that share it). Twilio may ask any instance, so nothing of a call
that outlives its stream is kept anywhere else.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Then(enum.Enum):
    """How a call goes on when its stream has ended."""

    HANG_UP = "hang_up"  # all was said
    TRANSFER = "transfer"  # a number is dialled; who is not answered comes back
    RESUME = "resume"  # a new stream, on whichever instance; the talk goes on there
    SORRY = "sorry"  # we failed the caller: say so, dial the fallback number


@dataclass(frozen=True, slots=True)
class NextStep:
    """What `/voice/next` answers when Twilio asks how the call goes on."""

    then: Then
    number: str = ""
    """Who is dialled; of a transfer always, of a sorry where there is a fallback."""
    caller_id: str = ""
    """Whom the dialled one sees; empty: the caller."""
    ring_seconds: int = 20
    language: str = ""
    """Of the sentence that Twilio says."""
    text: str = ""
    """That sentence; empty: the bridge's own."""


@dataclass(frozen=True, slots=True)
class CallEntry:
    """One running call, as the fleet knows it."""

    call_sid: str
    stream_sid: str
    started_at: float
    """Seconds since the epoch."""
    instance: str = ""
    """Which has it; set by the registry."""


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """What an instance tells the others of itself."""

    limit: int
    calls: int
    draining: bool = False

    @property
    def free(self) -> bool:
        return not self.draining and self.calls < self.limit


TAKEN = b"taken"
"""The word to whoever had a call that a newer stream of it has begun elsewhere."""

Subscriber = Callable[[str, bytes], None]
"""(call sid, word): told of a call; does not wait, does not raise. Where the newer
stream is on the same instance, TAKEN is told before its `opened` returns."""


class Registry(Protocol):
    """Entries appear with the stream and go with it, next steps with the next one.
    `shared`: others may lead a call on, so what they must know is kept up to date.

    `put`, `get`, `take` and `first` are the shelf: bytes under a name for some time,
    for whoever is asked next. `count`, `let_in` and `let_out` say how much there was,
    and how many there are; no name has a person's number in it. Nothing here raises
    because the place where it is kept is away: an instance goes on with what it knows
    itself. Who counts, or lets in, does not wait for it to be back.
    """

    shared: bool

    async def opened(self, entry: CallEntry) -> None:
        """A stream has started for this call. The newest of a call has it: an instance
        that had an older one is told TAKEN."""

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        """The stream has ended; None: the call itself is over, nobody will ask. A
        stream that a newer one took over from leaves nothing."""

    async def next_step(self, call_sid: str) -> NextStep | None:
        """What was left for this call; None where nothing was. Kept for some time, for
        Twilio asks again when an answer is lost, but not past a new stream."""

    async def calls(self) -> list[CallEntry]:
        """The running calls, oldest first."""

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        """Kept for so long; what was there before is replaced."""

    async def get(self, name: str) -> bytes | None:
        """None: never there, taken, or its time is over."""

    async def pop(self, name: str) -> bytes | None:
        """As `get`, and it is gone: only one of several askers gets it."""

    async def set_if_absent(self, name: str, seconds: float) -> bool:
        """True for the first who asks within so long: a message that came twice."""

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        """Adds to a counter, which lives so long from its first addition; the new
        total. 0 only reads. May add twice where an answer was lost; never too little,
        but for an instance that has died."""

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        """`who` is one of those in `name` for so long from now, however often they
        were let in before. False: `most` others are in it already (None: no limit)."""

    async def release(self, name: str, member: str) -> None:
        """Before that time is over."""

    async def publish(self, call_sid: str, message: bytes) -> None:
        """A word for the instance that has this call, this one included. Told once, to
        whoever is there: no answer, nothing is kept."""

    def subscribe(self, subscriber: Subscriber) -> None:
        """`ear` gets the words for calls, those of other instances' calls, too."""

    async def room(self) -> bool:
        """Some instance, this one or another, takes calls."""

    async def others(self) -> bool:
        """Some other instance takes calls."""

    async def reachable(self) -> bool:
        """An instance that starts later can read what this one puts now."""

    def format(self) -> int:
        """The format in which stored values are to be written (formats.py): the newest
        one that all live instances read. It changes while calls run, when an instance
        of another version joins or leaves: ask again for each value."""
