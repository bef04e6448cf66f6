"""The Registry: running calls, their next steps, and values that instances share.

One contract and one implementation per backend: memory.py (a single instance) and
redis.py (a fleet). Twilio may ask any instance, so all data of a call that outlive its
stream are in the registry and nowhere else.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

NEXT_STEP_SECONDS = 60.0
"""Twilio asks right after the stream has ended; if it does not, the call is over and
its next step is dropped."""


class Then(enum.Enum):
    """How a call goes on when its stream has ended."""

    HANG_UP = "hang_up"  # the conversation is complete
    TRANSFER = "transfer"  # dial a number; without an answer the caller comes back
    RESUME = "resume"  # a new stream on any instance continues the conversation
    SORRY = "sorry"  # the bridge failed: apologise, dial the fallback number


@dataclass(frozen=True, slots=True)
class NextStep:
    """What `/voice/next` answers when Twilio asks how the call goes on."""

    then: Then
    number: str = ""
    """The number to dial. TRANSFER: required; SORRY: empty without a fallback."""
    caller_id: str = ""
    """The number that the dialled person sees; empty: the caller's."""
    ring_seconds: int = 20
    language: str = ""
    """Language of the sentence that Twilio says."""
    text: str = ""
    """The sentence that Twilio says; empty: the bridge's own (RESUME: none)."""
    digits: str = ""
    whisper: str = ""
    accept: bool = False
    """Of a TRANSFER: see bridge.agent.live.Transfer."""
    warm: str = ""
    """Of a TRANSFER: id of the warm transfer whose conference the caller joins; empty:
    `number` is dialled. An instance of version 0.5 or older dials it."""

    @property
    def seconds(self) -> float:
        """How long the step is stored. Twilio asks again about a TRANSFER when somebody
        answers it, after up to `ring_seconds`: for the whisper."""
        rings = self.ring_seconds if self.then is Then.TRANSFER else 0
        return NEXT_STEP_SECONDS + rings


@dataclass(frozen=True, slots=True)
class CallEntry:
    """One running call, as the fleet knows it."""

    call_sid: str
    stream_sid: str
    started_at: float
    """Seconds since the epoch."""
    instance: str = ""
    """Id of the instance that has the call; set by the registry."""


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """The load that an instance announces to the fleet."""

    limit: int
    """Calls that it may have at once."""
    calls: int
    draining: bool = False

    @property
    def free(self) -> bool:
        return not self.draining and self.calls < self.limit


ONE_MOMENT = "one_moment"
"""Begins the name of a value, before the call's SID: Twilio is to say a sentence before
the call's next stream."""

TAKEN = b"taken"
"""Message to the instance that had a call: a newer stream of the call has begun."""

MAX_MEMBERS = 100
"""Most members that `members` answers."""

CLAIM_BYTES = 8
"""Length of what `set_if_absent` stores if it is given no value."""

MAX_DIRECT_BYTES = 2**20
"""Largest message that `send` takes."""

Receiver = Callable[[bytes], None]
"""Called with a message that was sent to this instance; must not block or raise."""

Subscriber = Callable[[str, bytes], None]
"""Called with (call sid, message); must not block or raise. If the newer stream is on
the same instance, TAKEN arrives before `opened` of the newer stream returns."""


class Registry(Protocol):
    """A call has an entry while it has a stream, and a next step until its next stream.
    `shared`: other instances may continue a call, so snapshots must be kept up to date.

    `put`, `get`, `pop` and `set_if_absent` store bytes under a name for some time.
    `count` keeps totals; `acquire` and `release` keep sets of members. No name contains
    a phone number. No method raises because Redis cannot be reached: the instance goes
    on with its own data. `count` and `acquire` do not wait for Redis to come back.
    """

    shared: bool
    id: str
    """Of this instance; `CallEntry.instance` of its calls."""

    async def opened(self, entry: CallEntry) -> None:
        """A stream of this call has started. The newest stream has the call: the
        instance with an older one gets TAKEN. So does this instance, after `opened` has
        returned, if a newer stream of another instance was registered first."""

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        """The stream has ended. None: the call has ended, and Twilio will not ask. The
        next step of a stream that a newer one has replaced is ignored."""

    async def next_step(self, call_sid: str) -> NextStep | None:
        """The step that the last stream of this call has left, or None. It is kept for
        some time, because Twilio repeats a request whose answer was lost, but not
        beyond the start of a new stream."""

    async def calls(self) -> list[CallEntry]:
        """The running calls, oldest first."""

    async def owner(self, call_sid: str) -> CallEntry | None:
        """The entry of one running call: its instance. None: no instance has it (also
        for a moment between two streams), or Redis is away."""

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        """Stores the value for so many seconds and replaces an earlier one. Of two
        calls of one instance that overlap, or of which one was cancelled, the later
        call counts."""

    async def delete(self, name: str) -> None:
        """Deletes the value, whoever wrote it, also one that a `put` of this instance
        is still writing.
        Does not wait for a Redis that is away: the value is deleted when it is back."""

    async def get(self, name: str) -> bytes | None:
        """None: there is no value, or it was popped or has expired."""

    async def pop(self, name: str) -> bytes | None:
        """As `get`, and deletes the value: of several callers only one gets it."""

    async def set_if_absent(
        self, name: str, seconds: float, value: bytes | None = None
    ) -> bool:
        """True for the first call with this name within so many seconds, False for
        later ones: a ticket or a message that came twice. Of calls at once, on whatever
        instances, one is the first; `get` gives its value. None: CLAIM_BYTES bytes, or
        an empty value."""

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        """Adds to a counter, which lives so many seconds from its first addition;
        returns the total. Amount 0 adds nothing. May add twice if an answer was lost;
        never too little, except for an instance that has crashed: an amount that could
        not be written, also because the caller was cancelled, is written with the next
        `count` of this counter."""

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        """Adds `member` to the set `name` for so many seconds from now; a member that
        is in the set stays and is renewed. False: the set has `limit` other members
        (None: no limit)."""

    async def release(self, name: str, member: str) -> None:
        """Removes the member before its time is over. Does not wait for a Redis that is
        away: the member is removed when it is back."""

    async def members(self, name: str) -> list[str]:
        """Members of the set `name`, those that expire first at the beginning: at most
        MAX_MEMBERS; without Redis those of this instance."""

    async def publish(self, call_sid: str, message: bytes) -> None:
        """Sends a message about this call to all instances, including this one. Sent
        once, to the instances that are connected: no answer, nothing is stored."""

    def subscribe(self, subscriber: Subscriber) -> None:
        """`subscriber` gets the messages for all calls, also of other instances."""

    async def send(self, instance: str, message: bytes) -> bool | None:
        """Sends a message to one instance alone, which gets it once. False: no such
        instance is connected, and nobody gets it. None: Redis is away, and it is not
        known. Anybody who can write to Redis can send a message, too: sign it."""

    def receive(self, receiver: Receiver) -> None:
        """`receiver` gets what is sent to this instance."""

    async def instances(self) -> list[str]:
        """Ids of the other live instances, by their last beats."""

    async def room(self) -> bool:
        """Some instance, this one or another, takes calls."""

    async def others(self) -> bool:
        """Some other instance takes calls."""

    async def reachable(self) -> bool:
        """An instance that starts later can read the values that this one puts now."""

    def clock(self) -> float:
        """Seconds since the epoch, by the clock that ends the time of stored values:
        the same clock for all instances that reach Redis."""

    def format(self) -> int:
        """The format in which stored values are to be written (formats.py): the newest
        one that all live instances read. It changes while calls run, when an instance
        of another version joins or leaves: ask again for each value."""
