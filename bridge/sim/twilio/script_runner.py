"""Runs the caller's script. A step that listens hears only what Twilio has played."""

import asyncio
from time import monotonic

from bridge.sim.twilio.caller_voice import CallerVoice
from bridge.sim.twilio.conference import Seat
from bridge.sim.twilio.record import CallRecord
from bridge.sim.twilio.steps import (
    DropStep,
    GapStep,
    HangUpStep,
    HearStep,
    ListenStep,
    PressStep,
    SayStep,
    Script,
    SendStep,
    Step,
    WaitStep,
)
from bridge.sim.twilio.stream import MediaStream
from bridge.sim.twilio.wakeup import Wakeup

BYTES_PER_SECOND = 8000


class ScriptRunner:
    """Starts with the first stream or conference; a step that needs a stream waits for
    one."""

    def __init__(self, record: CallRecord) -> None:
        self.voice = CallerVoice(record)
        self.changed = Wakeup()  # a stream opened, audio began or was cut
        self.hung_up = asyncio.Event()
        self._record = record
        self._stream: MediaStream | None = None
        self._seat: Seat | None = None

    @property
    def stream(self) -> MediaStream | None:
        """The open stream; None between two streams."""
        if self._stream is not None and self._stream.end is None:
            return self._stream
        return None

    def opened(self, stream: MediaStream) -> None:
        self._stream = stream
        self.changed.wake()

    def entered(self, seat: Seat) -> None:
        self._seat = seat
        self.changed.wake()

    async def run(self, script: Script) -> None:
        """Run the steps in order; HangUpStep ends the script."""
        await self._listener()
        for step in script:
            await self._run_step(step)
            if self.hung_up.is_set():
                return

    async def _run_step(self, step: Step) -> None:
        match step:
            case SayStep(audio):
                await self._listener()
                await self.voice.say(audio, monotonic())
            case WaitStep(seconds):
                await asyncio.sleep(seconds)
            case ListenStep(quiet_seconds, timeout):
                await self._listen(quiet_seconds, timeout)
            case HearStep(ms, timeout):
                await self._hear(ms, timeout)
            case PressStep(digits, gap_seconds):
                await self._press(digits, gap_seconds)
            case HangUpStep():
                self.hung_up.set()
            case DropStep(how):
                (await self._open_stream()).drop(how)
            case SendStep(text):
                (await self._open_stream()).send_raw(text)
            case GapStep(ms, mode):
                (await self._open_stream()).gap(ms, mode)
                if mode == "dtx":
                    await asyncio.sleep(ms / 1000)

    async def _press(self, digits: str, gap_seconds: float) -> None:
        for digit in digits:
            (await self._open_stream()).press(digit)
            self._record.pressed.append((monotonic(), digit))
            await asyncio.sleep(gap_seconds)

    async def _listen(self, quiet_seconds: float, timeout: float) -> None:
        deadline = monotonic() + timeout
        before = self._heard(monotonic())
        while (now := monotonic()) < deadline:
            heard, over_at = self._heard(now), self._over_at()
            wake_at = deadline
            if heard > before or over_at > now:
                if now >= over_at + quiet_seconds:
                    return
                wake_at = min(deadline, over_at + quiet_seconds)
            await self.changed.sleep_until(wake_at)
        self._record.timed_out.append(f"Listen: {timeout:g} s")

    async def _hear(self, ms: float, timeout: float) -> None:
        deadline = monotonic() + timeout
        wanted = self._heard(monotonic()) + round(ms * 8)
        while (now := monotonic()) < deadline:
            missing = wanted - self._heard(now)
            if missing <= 0:
                return
            over_at = self._over_at()
            enough_at = now + missing / BYTES_PER_SECOND
            # If the known audio ends before enough was heard, check again at its end:
            # more audio may have arrived.
            wake_at = min(enough_at, over_at) if over_at > now else deadline
            await self.changed.sleep_until(min(wake_at, deadline))
        self._record.timed_out.append(f"Hear: {timeout:g} s")

    def _heard(self, now: float) -> int:
        """Bytes heard in the whole call."""
        if self.stream is not None:
            self.stream.advance(now)
        return sum(stream.playout.played(now) for stream in self._record.streams)

    def _over_at(self) -> float:
        """Time at which the last known audio ends or ended, on any stream."""
        streams, ends = self._record.streams, self._record.stream_ends
        overs = [stream.playout.over_at or 0.0 for stream in streams]
        # Audio still queued when its stream ended was never played.
        for number, end in enumerate(ends[: len(overs)]):
            overs[number] = min(overs[number], end.at)
        return max(overs, default=0.0)

    async def _listener(self) -> None:
        """Returns when a stream or a conference takes what is said."""
        while self.stream is None and (self._seat is None or self._seat.over.is_set()):
            await self.changed.sleep_until(None)

    async def _open_stream(self) -> MediaStream:
        while (stream := self.stream) is None:
            await self.changed.sleep_until(None)
        return stream
