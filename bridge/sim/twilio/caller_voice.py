"""The caller's speech, cut into frames by the media clock.

Speech runs in real time even when no stream carries it: audio between two streams of a
call is lost, not delayed.
"""

import asyncio

from bridge.sim.twilio.playout import FRAME_BYTES, SILENCE
from bridge.sim.twilio.record import CallerSpeech, CallRecord

BYTES_PER_SECOND = 8000
EARLY = 1e-6  # s, less than a byte: tolerance, because frame times are sums of floats


class CallerVoice:
    def __init__(self, record: CallRecord) -> None:
        self._record = record
        self._audio = b""
        self._not_before = 0.0
        self._said: asyncio.Future[None] | None = None
        # stream sid, media clock, monotonic time
        self._begun: tuple[str, float, float] | None = None

    async def say(self, audio: bytes, now: float) -> None:
        """Speak from the first frame that begins after `now`; returns when all is
        spoken."""
        assert self._said is None, "the caller can speak only one sound at a time"
        self._audio, self._not_before = audio, now
        self._said = asyncio.get_running_loop().create_future()
        try:
            if audio:
                await self._said
        finally:
            self._said = None

    def frame(self, stream_sid: str, clock: float, at: float) -> bytes | None:
        """The audio of the frame that begins at `at`; None: silence."""
        if self._said is None or self._said.done() or at < self._not_before - EARLY:
            return None
        if self._begun is None:
            self._begun = (stream_sid, clock, at)
        first = round((at - self._begun[2]) * BYTES_PER_SECOND)
        piece = self._audio[first : first + FRAME_BYTES]
        if first + FRAME_BYTES >= len(self._audio):
            self._finish(len(self._audio))
        return piece.ljust(FRAME_BYTES, bytes([SILENCE])) if piece else None

    def stop(self, at: float) -> None:
        """The call is over: record what was spoken until then."""
        if self._begun is not None:
            said = round((at - self._begun[2]) * BYTES_PER_SECOND)
            self._finish(min(len(self._audio), max(0, said)))

    def _finish(self, said: int) -> None:
        assert self._begun is not None
        stream_sid, clock, at = self._begun
        seconds = said / BYTES_PER_SECOND
        self._record.spoken.append(
            CallerSpeech(
                stream_sid=stream_sid,
                start=clock,
                end=clock + seconds,
                started_at=at,
                ended_at=at + seconds,
                audio=self._audio[:said],
            )
        )
        self._begun = None
        if self._said is not None and not self._said.done():
            self._said.set_result(None)
