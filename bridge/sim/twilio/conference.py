"""The conferences of one account: calls that are in a room hear each other.

A conference starts when two calls are in it and one of them starts it on entering.
Before that, and while nobody else is there, a call hears nothing. Audio passes in
frames of 20 ms, on the clock of the conference.
"""

import asyncio
import audioop
from dataclasses import dataclass, field
from time import monotonic

from bridge.sim.twilio.caller_voice import CallerVoice
from bridge.sim.twilio.markup import TwimlConference
from bridge.sim.twilio.playout import FRAME_BYTES, FRAME_US, SILENCE
from bridge.sim.twilio.record import ConferenceVisit

FRAME_SECONDS = FRAME_US / 1e6


@dataclass(eq=False, slots=True)
class Seat:
    """One call in a conference."""

    call_sid: str
    noun: TwimlConference
    voice: CallerVoice
    visit: ConferenceVisit
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the conference has ended, or the call has left it."""


class Conferences:
    """By name; a name belongs to the account."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    @property
    def names(self) -> list[str]:
        """The conferences in which a call is now."""
        return list(self._rooms)

    def enter(self, seat: Seat) -> None:
        room = self._rooms.get(seat.noun.name)
        if room is None:
            room = self._rooms[seat.noun.name] = _Room()
        room.enter(seat)

    def leave(self, seat: Seat) -> None:
        """Safe to call twice."""
        room = self._rooms.get(seat.noun.name)
        if room is None or seat not in room.seats:
            return
        room.leave(seat)
        if not room.seats:
            room.close()
            del self._rooms[seat.noun.name]


class _Room:
    def __init__(self) -> None:
        self.seats: list[Seat] = []
        self._started = False
        self._began = monotonic()
        self._frames = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(FRAME_SECONDS, self._mix)

    def enter(self, seat: Seat) -> None:
        self.seats.append(seat)
        starts = any(it.noun.starts for it in self.seats)
        self._started = self._started or (starts and len(self.seats) > 1)
        if self._started:
            for it in self.seats:
                others = [other.call_sid for other in self.seats if other is not it]
                it.visit.met = others

    def leave(self, seat: Seat) -> None:
        self.seats.remove(seat)
        seat.over.set()
        if seat.noun.ends:
            for other in list(self.seats):
                self.seats.remove(other)
                other.over.set()

    def close(self) -> None:
        self._timer.cancel()

    def _mix(self) -> None:
        self._timer = self._loop.call_later(FRAME_SECONDS, self._mix)
        while self._began + (self._frames + 1) * FRAME_SECONDS <= monotonic():
            self._frame()

    def _frame(self) -> None:
        clock = self._frames * FRAME_SECONDS
        self._frames += 1
        spoken = {
            it.call_sid: it.voice.frame(it.noun.name, clock, self._began + clock)
            for it in self.seats
        }
        if not self._started:
            return
        for seat in self.seats:
            heard = bytes([SILENCE]) * FRAME_BYTES
            for sid, frame in spoken.items():
                if sid != seat.call_sid and frame is not None:
                    heard = _added(heard, frame)
            seat.visit.heard += heard


def _added(one: bytes, other: bytes) -> bytes:
    linear = audioop.add(audioop.ulaw2lin(one, 2), audioop.ulaw2lin(other, 2), 2)
    return audioop.lin2ulaw(linear, 2)
