"""The caller's audio on its way to the model: held until it is ready, holes filled.

What a lost session may not have understood is kept, and given again to the next one.
Payloads pass as they came; only silence is made here.
"""

from collections import deque

from bridge.audio import g711
from bridge.core import realtime_events
from bridge.core.bounds import Bounds
from bridge.core.commands import Command, Note, ToModel, limit_hit, protocol_error

RESEND_MS = 15_000
"""Audio since the caller's last turn, kept in case that the session is lost: a model
that hangs is noticed after some seconds, and nothing since was heard by it ..."""

RESEND_SPEECH_MS = 45_000
"""... and so much while the caller speaks: a turn is given again from its beginning."""

UNTRANSCRIBED_BYTES = 60 * 8000
"""Of turns whose words nobody has written down (yet): a minute in all ..."""

MAX_UNTRANSCRIBED = 256
"""... and so many of them: a server may make turns of nothing."""

MIN_FRAME_MS = 5.0
"""A shorter frame takes up as much as one of these where frames are kept: Twilio's have
20 ms, and one of a single sample costs as much memory."""

FRAMES_AT_ONCE = 25
"""Of what was held, in one event: half a second."""

GAP_MS = 20
"""A hole of a frame or more in the timestamps is audio that Twilio did not send."""

MAX_GAP_MS = 10_000
"""No hole is filled with more silence than this, whatever the timestamps say."""

AHEAD_MS = 30_000
"""So much more audio may come than time has passed: a network that stalled delivers
seconds at once. More is no speech, and would be paid for by the token."""

AHEAD_RESET_MS = 20_000
"""Who was too far ahead is told of again after being no further than this."""

STALL_SECONDS = 0.75
"""When frames stop while the caller speaks (some calls send none in silence), the
model would wait for ever for the end of the turn: silence is sent in their place."""


class CallerAudio:
    """Frames in, commands out. `ready` once, when the model takes audio."""

    def __init__(self, now: float, bounds: Bounds) -> None:
        self.speaking = False
        """The model hears the caller speak."""
        self.turn_open = False
        """They have ended, and the server has made no item of it yet."""
        self.held_ms = 0.0
        self.muted = False
        """The model is to hear silence in the caller's place."""
        self._ready = False
        self._held: deque[tuple[str, float]] = deque()
        self._held_limit_ms = 1000 * bounds.audio_held_seconds
        """Kept for a model that is not ready: as long as a caller waits for it
        (redial.py), so that no first word is lost."""
        self._held_limit_now_ms = self._held_limit_ms
        self._held_audio_dropped = False
        """More was held than may be, since the model was last there."""
        self._began = now
        self._received_ms = 0.0
        """Audio since then, with the silence of holes; that of stalls takes its own
        time, and the frames may come after all."""
        self._too_fast = False
        self._end_ms: float | None = None
        """Where on the media clock the audio ends that the model was given."""
        self._last_frame_at = now
        self._stalled_ms = 0
        """Silence made since the last frame came."""
        self._turn: deque[tuple[str, float]] = deque()
        """Given to the model since the caller's last turn ended."""
        self._turn_ms = 0.0
        self._resent_ms = 0.0
        """So much was given to a second session, and may have to go to a third."""
        self._untranscribed: dict[str, bytes] = {}
        """Item id -> mu-law of turns without words."""

    def frame(
        self, payload: str, timestamp_ms: int, duration_ms: float, now: float
    ) -> list[Command]:
        """One frame, with the silence that is missing before it."""
        commands = self._fill_gap(timestamp_ms, duration_ms, now)
        self._last_frame_at = now
        self._stalled_ms = 0
        max_ms = self._max_received_ms(now)
        if self._received_ms + duration_ms > max_ms:
            return commands + self._refuse()
        if self._too_fast and self._received_ms < max_ms - AHEAD_MS + AHEAD_RESET_MS:
            self._too_fast = False
        self._received_ms += duration_ms
        if self.muted:
            payload = g711.silence(max(round(duration_ms), 1))
        return commands + self._give(payload, duration_ms)

    def ready(self) -> list[Command]:
        """The model takes audio from now on: what was held, in order."""
        self._ready = True
        held, self._held, self.held_ms = list(self._held), deque(), 0.0
        self._held_limit_now_ms, self._held_audio_dropped = self._held_limit_ms, False
        self._resent_ms = min(sum(ms for _, ms in held), RESEND_SPEECH_MS)
        for payload, duration_ms in held:
            self._remember(payload, duration_ms)
        # Not frame by frame: a minute of them would choke the way to the model.
        payloads = [payload for payload, _ in held]
        parts = (
            payloads[at : at + FRAMES_AT_ONCE]
            for at in range(0, len(payloads), FRAMES_AT_ONCE)
        )
        return [ToModel(realtime_events.append(g711.joined(part))) for part in parts]

    # --- what a session may have lost ---

    def turn_ended(self, item_id: str) -> None:
        """What was given until now is an item of the server's, without words yet."""
        audio_bytes = g711.sound(payload for payload, _ in self._turn)
        self._forget_turn()
        self._untranscribed[item_id] = audio_bytes[-UNTRANSCRIBED_BYTES:]
        while (
            len(self._untranscribed) > MAX_UNTRANSCRIBED
            or sum(map(len, self._untranscribed.values())) > UNTRANSCRIBED_BYTES
        ):
            del self._untranscribed[next(iter(self._untranscribed))]

    def turn_dropped(self) -> None:
        """The server has thrown away what was given since the last turn."""
        self._forget_turn()

    def turn_transcribed(self, item_id: str) -> None:
        """There are words of that turn, or it is gone."""
        self._untranscribed.pop(item_id, None)

    @property
    def has_untranscribed(self) -> bool:
        """There is a turn without words."""
        return bool(self._untranscribed)

    def turn_audio(self, item_id: str) -> bytes:
        """Mu-law of a turn that nobody has the words of."""
        return self._untranscribed.get(item_id, b"")

    def model_lost(self) -> None:
        """Nobody takes audio: it is held, behind what the model may not have heard."""
        self._ready = False
        self.speaking = False
        self._held.extendleft(reversed(self._turn))
        self.held_ms += self._turn_ms
        self._held_limit_now_ms = self._held_limit_ms + self._turn_ms
        self._forget_turn()

    def new_stream(self, now: float) -> None:
        """Frames come from another stream, whose clock begins anew."""
        self._end_ms = None
        self._last_frame_at = now
        self._stalled_ms = 0

    def _forget_turn(self) -> None:
        self._turn.clear()
        self._turn_ms = self._resent_ms = 0.0
        self.turn_open = False

    @property
    def stalls_at(self) -> float | None:
        """When the caller's silence must be made, if no frame comes before."""
        if not self.speaking or self._stalled_ms >= MAX_GAP_MS:
            return None
        return self._last_frame_at + STALL_SECONDS

    def fill_stall(self, now: float) -> list[Command]:
        """No frame came in the middle of the caller's speech: silence instead."""
        ms = int(STALL_SECONDS * 1000)
        self._stalled_ms += ms
        self._last_frame_at = now
        self._end_ms = (self._end_ms or 0.0) + ms
        return [Note("stall_filled", {"ms": ms}), *self._silence(ms)]

    def _max_received_ms(self, now: float) -> float:
        return 1000 * (now - self._began) + AHEAD_MS

    def _refuse(self) -> list[Command]:
        """The caller's audio comes faster than anybody speaks."""
        if self._too_fast:
            return []
        self._too_fast = True
        return [limit_hit("audio_rate")]

    def _fill_gap(
        self, timestamp_ms: int, duration_ms: float, now: float
    ) -> list[Command]:
        end = timestamp_ms + duration_ms
        if self._end_ms is None:
            self._end_ms = end
            return []
        gap = timestamp_ms - self._end_ms
        if gap < -MAX_GAP_MS:
            self._end_ms = end
            return [protocol_error("caller", "timestamp went back")]
        # A small step back: frames that come after all, behind a stall that was filled.
        self._end_ms = max(self._end_ms, end)
        if gap < GAP_MS:
            return []
        room_ms = self._max_received_ms(now) - self._received_ms
        ms = min(int(gap), MAX_GAP_MS, max(int(room_ms), 0))
        if not ms:
            return self._refuse()
        self._received_ms += ms
        return [Note("gap_filled", {"ms": ms}), *self._silence(ms)]

    def _silence(self, ms: int) -> list[Command]:
        # A second at a time: payloads of silence are cached by their length.
        commands: list[Command] = []
        while ms > 0:
            part = min(ms, 1000)
            commands += self._give(g711.silence(part), part)
            ms -= part
        return commands

    def _give(self, payload: str, duration_ms: float) -> list[Command]:
        if self._ready:
            self._remember(payload, duration_ms)
            return [ToModel(realtime_events.append(payload))]
        self._held.append((payload, duration_ms))
        self.held_ms += duration_ms
        lost = 0.0
        while self._held and (
            self.held_ms > self._held_limit_now_ms
            or len(self._held) * MIN_FRAME_MS > self._held_limit_now_ms
        ):
            _, oldest_ms = self._held.popleft()
            self.held_ms -= oldest_ms
            lost += oldest_ms
        if not lost:
            return []
        first, self._held_audio_dropped = not self._held_audio_dropped, True
        note = Note("held_audio_lost", {"ms": lost})
        return [limit_hit("audio_held"), note] if first else [note]

    def _remember(self, payload: str, duration_ms: float) -> None:
        """For another session, should this one be lost."""
        self._turn.append((payload, duration_ms))
        self._turn_ms += duration_ms
        max_ms = RESEND_SPEECH_MS if self.speaking else max(RESEND_MS, self._resent_ms)
        while self._turn_ms > max_ms or len(self._turn) * MIN_FRAME_MS > max_ms:
            self._turn_ms -= self._turn.popleft()[1]
