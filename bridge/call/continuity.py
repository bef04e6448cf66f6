"""What the registry holds of a running call, so that any instance can continue it.

Three things: the call's entry, which says who has the call; a snapshot of it, written
again and again (checkpoint.py); and, when the leg has ended, the next step of the call.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bridge.agent.live import BadRequest, LiveCall, Message, Transfer
from bridge.app.routes import Route
from bridge.app.services import Services
from bridge.call.checkpoint import Checkpoint
from bridge.core.capabilities import Capabilities
from bridge.core.commands import End
from bridge.core.conversation import Conversation
from bridge.fleet import ONE_MOMENT, CallEntry, NextStep, Then
from bridge.fleet.plan import PLAN_SECONDS, Plan
from bridge.fleet.snapshot import CallSnapshot, SavedMessage, moment
from bridge.websocket.text_socket import StartTask

RETURN_SECONDS = 1200.0
"""How long the snapshot is kept during a transfer, in seconds. The other phone may ring
for 600 s at most."""

MAX_TRANSFERS = 5
"""Limit per call, over all its streams: it stops an agent that transfers in a
circle."""

ONE_MOMENT_SECONDS = 10.0
"""Twilio asks as soon as the stream has ended."""

TAKEN_OVER = "taken_over"

MOVED_AWAY = frozenset({TAKEN_OVER, "handed_over"})
"""Reasons of an end after which another instance continues the call."""

RESUMABLE_ENDS = frozenset({("bridge", "handed_over"), ("caller", "connection_lost")})
"""(side, reason) of ends of the stream after which the call may continue."""

NO_APOLOGY_ENDS = frozenset({"silent", "longest", "cost", "machine"})
"""Reasons of the bridge's own ends that need no apology: the agent was asked to say
goodbye, or no caller is there."""


@dataclass(frozen=True, slots=True)
class Joined(Transfer):
    """A warm transfer that the person has accepted: the caller joins the conference in
    which the person waits."""

    transfer_id: str = ""


class Continuity:
    """The call's part of the registry. It is made when the call's SID is known."""

    def __init__(
        self,
        services: Services,
        live: LiveCall,
        route: Route,
        conversation: Conversation,
        capabilities: Capabilities,
        connected_at: float,
        ending: Callable[[], End],
        start_task: StartTask,
    ) -> None:
        """`conversation` is only read. `ending`: how the call ended, once it has."""
        self._services = services
        self._registry = services.registry
        self._live = live
        self._route = route
        self._conversation = conversation
        self._capabilities = capabilities
        self._connected_at = connected_at
        self._ending = ending
        self._start_task = start_task
        facts = live.facts
        # Without a stream, the call's SID stands in for the stream's.
        stream_sid = facts.stream_sid or facts.call_sid
        self._entry = CallEntry(facts.call_sid, stream_sid, time.time())
        self._registration: asyncio.Task[None] | None = None
        """Writes the call's entry into the registry. It must be done before the entry
        is closed."""
        self._checkpoint: Checkpoint | None = None
        self.snapshot = CallSnapshot()
        """The call's state at the end of its last stream, as it was read."""
        self._transfers = 0
        """Transfers of this call until now, those in earlier streams included."""
        self.is_registering = False
        """The entry is being written: a newer stream that the registry reports now is
        this instance's own."""

    # --- the beginning of a stream ---

    def register(self) -> None:
        """Writes the call's entry."""
        self._registration = self._start_task(self._register(self._entry), "entry")

    def register_stream(self, stream_sid: str) -> None:
        """The call continues on this newer stream."""
        self._entry = replace(self._entry, stream_sid=stream_sid)
        self.register()

    async def _register(self, entry: CallEntry) -> None:
        self.is_registering = True
        await self._registry.opened(entry)
        self.is_registering = False

    async def restore(self) -> Plan:
        """Reads the call's plan, and restores the state of its earlier streams, of this
        instance or another."""
        plan = Plan()
        if self._capabilities.next_step:
            sid, registry = self._live.call_sid, self._registry
            # Concurrently: each read may wait for a registry that is going down.
            stored, talk = await asyncio.gather(
                registry.get(f"plan:{sid}"), registry.get(f"snapshot:{sid}")
            )
            plan, snapshot = Plan.read(stored), CallSnapshot.read(talk)
            if snapshot.stream_count:
                ended = await registry.get(f"stream_ended:{sid}")
                snapshot = snapshot.as_of(moment(ended))
                self._restore(snapshot)
            self.snapshot = snapshot
            self._transfers = snapshot.transfer_count
        return plan

    def keep_plan(self, plan: Plan) -> None:
        """Stores the plan again: it has changed during the call."""
        self._start_task(self._put_plan(plan), "plan")

    async def _put_plan(self, plan: Plan) -> None:
        name, stored = (
            f"plan:{self._live.call_sid}",
            plan.encoded(self._registry.format()),
        )
        await self._registry.put(name, stored, PLAN_SECONDS)

    def _restore(self, snapshot: CallSnapshot) -> None:
        live = self._live
        live.began -= snapshot.call_seconds
        live.cost = snapshot.cost
        live.input_tokens = snapshot.input_tokens
        live.output_tokens = snapshot.output_tokens
        live.notes.update(snapshot.notes)
        live.failed_transfers += snapshot.failed_transfers
        live.messages += [
            Message(it.text, it.name, it.call_back) for it in snapshot.messages
        ]

    # --- while the call runs ---

    def start_checkpoint(self) -> None:
        """Begins to store snapshots; after `restore`, because a new snapshot must
        contain the one that was read."""
        if not self._capabilities.next_step:
            return
        self._checkpoint = Checkpoint(
            self._registry,
            self._live.call_sid,
            self._version,
            self._take_snapshot,
            self._route.redact,
        )
        if self._registry.shared:
            self._start_task(self._checkpoint.run(), "checkpoint")

    def check_transfer(self) -> None:
        """BadRequest if the call was transferred too often."""
        if self._transfers >= MAX_TRANSFERS:
            raise BadRequest(f"a call can be transferred {MAX_TRANSFERS} times at most")

    def count_transfer(self) -> None:
        self._transfers += 1

    async def plan_sentence(self) -> None:
        """The stream is about to be left: makes Twilio say a sentence before the next
        one."""
        name = f"{ONE_MOMENT}:{self._live.call_sid}"
        await self._registry.put(name, b"1", ONE_MOMENT_SECONDS)

    def stream_lost(self) -> None:
        """Stores a snapshot at once: Twilio asks for the next step now, and any
        instance may have to answer."""
        if self._checkpoint:
            self._start_task(_keep(self._checkpoint), "checkpoint")

    def _version(self) -> object:
        live = self._live
        return self._conversation.version, live.agent_name, len(live.messages)

    def _take_snapshot(self) -> CallSnapshot:
        """The call's state until now, for the instance that resumes it."""
        live, earlier, now = self._live, self.snapshot, time.monotonic()
        handed_over = self._ending().why == "handed_over"
        return CallSnapshot(
            history=tuple(self._conversation.history.items),
            playing=tuple(self._conversation.playing(now)),
            taken_at=time.time(),
            stream_count=earlier.stream_count + 1,
            handed_over=handed_over,
            unnoticed=self._conversation.ended_quietly and handed_over,
            agent_name=live.agent_name or earlier.agent_name,
            parameters=dict(live.facts.parameters),
            call_seconds=earlier.call_seconds + now - self._connected_at,
            cost=live.cost,
            input_tokens=live.input_tokens,
            output_tokens=live.output_tokens,
            transfer_count=self._transfers,
            failed_transfers=tuple(live.failed_transfers),
            messages=tuple(
                SavedMessage(it.text, it.name, it.call_back) for it in live.messages
            ),
            notes=live.notes,
        )

    # --- the end of a stream ---

    async def store_next_step(self, target: Transfer | None) -> None:
        """Stores what Twilio must do next, and what an instance needs that resumes the
        call; removes the call's entry."""
        ending = self._ending()
        step = self.next_step(target)
        if self._registration:
            # Not awaited itself: it may have been cancelled with the call's tasks.
            await asyncio.wait([self._registration])
        if self._checkpoint:
            if ending.why == TAKEN_OVER:
                self._checkpoint.leave()
            elif step and step.then is Then.TRANSFER:
                if not step.warm:
                    self.count_transfer()
                await self._checkpoint.keep_last(RETURN_SECONDS)
            elif step and step.then is Then.RESUME:
                await self._checkpoint.keep_last()
            else:
                await self._checkpoint.drop()
        await self._registry.closed(self._entry, step)

    def next_step(self, target: Transfer | None) -> NextStep | None:
        """The answer to Twilio's request for the next step of a call that has ended;
        None if Twilio will not ask. `target`: where a call goes that ended as
        `transferred`."""
        by, why = self._ending().by, self._ending().why
        if not self._capabilities.next_step:
            return None
        if (by, why) in (("caller", "hung_up"), ("bridge", TAKEN_OVER)):
            return None
        if (by, why) in RESUMABLE_ENDS:
            return NextStep(Then.RESUME)
        route, language = self._route, self._route.language or ""
        if target and (by, why) == ("agent", "transferred"):
            return NextStep(
                Then.TRANSFER,
                target.number,
                target.caller_id,
                target.ring_seconds,
                language,
                digits=target.digits,
                whisper=target.whisper,
                accept=target.accept,
                warm=target.transfer_id if isinstance(target, Joined) else "",
            )
        if by == "agent" or why in NO_APOLOGY_ENDS:
            return NextStep(Then.HANG_UP)
        # The caller did not end the call and may still be there: the caller hears an
        # apology, not silence.
        number = self._services.fallback_of(route)
        return NextStep(Then.SORRY, number, language=language, text=route.sorry or "")

    @property
    def may_go_on(self) -> bool:
        """The call has ended here, and may go on with a later stream."""
        by, why = self._ending().by, self._ending().why
        return self.has_moved or (by, why) in RESUMABLE_ENDS

    @property
    def has_moved(self) -> bool:
        """The call has ended here, and another instance continues it."""
        return self._ending().why in MOVED_AWAY


async def _keep(checkpoint: Checkpoint) -> None:
    await checkpoint.keep()
