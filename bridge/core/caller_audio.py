"""The caller's audio on its way to the model: held until the model is ready, with gaps
filled.

Audio that a lost session may not have understood is kept and sent to the next one.
Payloads (base64) pass unchanged; this module only adds silence.
"""

from collections import deque

from bridge.audio import g711
from bridge.core import realtime_requests
from bridge.core.commands import Command, Note, ToModel, limit_hit, protocol_error
from bridge.core.kept_audio import KeptAudio, decoded
from bridge.core.limits import Bounds
from bridge.core.sessions import Sessions
from bridge.core.turn_watch import QUIET_LEVEL, TurnWatch

RESEND_MS = 15_000
"""Audio since the caller's last turn that is kept for another session. A model that
hangs is noticed only after some seconds, whose audio it did not process."""

RESEND_SPEECH_MS = 45_000
"""The same while the caller speaks: a turn must be sent again from its beginning."""

UNTRANSCRIBED_CHARS = 60 * 50 * 216
"""Audio kept of all turns without a transcript (yet), as base64: one minute. A frame of
20 ms has 216 characters."""

MAX_UNTRANSCRIBED = 256
"""Most turns kept without a transcript: a server may report empty turns."""

MIN_FRAME_MS = 5.0
"""Least duration at which a kept frame is counted. Twilio's frames have 20 ms; a frame
of a single sample takes as much memory."""

FRAMES_AT_ONCE = 25
"""Held frames sent in one event: half a second."""

GAP_MS = 20
"""A gap of one frame or more in the timestamps is audio that Twilio did not send."""

MAX_GAP_MS = 10_000
"""Most silence that fills one gap, whatever the timestamps say."""

AHEAD_MS = 30_000
"""How far the audio may be ahead of real time: a network that stalled delivers seconds
of audio at once. More is not speech, and each second costs tokens."""

AHEAD_RESET_MS = 20_000
"""The limit is reported again only after the audio was less far ahead than this."""

STALL_SECONDS = 0.75
"""If no frame arrives for this long while the caller speaks, silence is sent instead:
some calls send no frames in silence, and the model would wait for the end of the turn
for ever."""

LOUD_MS = 1000.0
"""A caller who was louder than the line's noise within this time may be speaking."""


class CallerAudio:
    """Frames of the caller in, events for the model out.

    Invariants: the model gets the audio in order, with silence in place of audio that
    Twilio did not send. While there is no session (Sessions), audio is held; beyond the
    bound the oldest is dropped. Audio of the current turn, and of turns that
    have no transcript, is kept for another session; both are bounded.
    """

    def __init__(
        self,
        now: float,
        bounds: Bounds,
        sessions: Sessions,
        *,
        passes_here: bool = True,
    ) -> None:
        """`passes_here`: the caller's frames come to the bridge."""
        self._passes_here = passes_here
        self.speaking = False
        """The model hears the caller speak."""
        self.turn_open = False
        """The caller has stopped speaking, and the server has not made an item of the
        turn yet."""
        self.held_ms = 0.0
        self.held_back = False
        """The greeting may not be interrupted: audio is held, as without a session."""
        self.muted = False
        """The model gets silence in place of the caller's audio."""
        self._sessions = sessions
        self._held: deque[tuple[str, float]] = deque()
        self._held_limit_ms = 1000 * bounds.audio_held_seconds
        """Limit of `held_ms`: as long as a caller waits for a model (redial.py), so
        that no first word is lost."""
        self._held_limit_now_ms = self._held_limit_ms
        self._held_audio_dropped = False
        """Held audio was dropped since the model was last ready."""
        self._began = now
        self._received_ms = 0.0
        """Audio received since `_began`, filled gaps included. Silence for stalls is
        not counted: it takes its own time, and the frames may still arrive."""
        self._too_fast = False
        self._end_ms: float | None = None
        """End of the audio so far, in ms of Twilio's media clock."""
        self._last_frame_at = now
        self.stalled_ms = 0
        """Silence made since the last frame arrived."""
        self._turn = KeptAudio()
        """Audio given to the model since the caller's last turn ended."""
        self.watch = TurnWatch(self._turn, now)
        self._resent_ms = 0.0
        """Audio of this turn that was sent to a second session; a third one may need
        it, too."""
        self._untranscribed: dict[str, str] = {}
        """Item id -> payloads of turns without a transcript."""
        self._awaited: set[str] = set()
        """Turns of which the session in use may still send the transcript."""
        self.server_transcribes = False
        """The server has sent a transcript of the caller's speech."""

    def start(self, now: float) -> None:
        """The call's first stream begins."""
        self._began = self._last_frame_at = now

    def frame(
        self, payload: str, timestamp_ms: int, duration_ms: float, now: float
    ) -> list[Command]:
        """One frame, with silence for the gap before it."""
        commands = self._fill_gap(timestamp_ms, duration_ms, now)
        self._last_frame_at = now
        self.stalled_ms = 0
        ahead_ms = self._received_ms - 1000 * (now - self._began)
        if ahead_ms + duration_ms > AHEAD_MS:
            return commands + self._refuse()
        if self._too_fast and ahead_ms < AHEAD_RESET_MS:
            self._too_fast = False
        self._received_ms += duration_ms
        if self.muted:
            payload = g711.silence(max(round(duration_ms), 1))
        given = self._give(payload, duration_ms)
        return commands + given if commands else given

    def ready(self) -> list[Command]:
        """A session is in use from now on: returns what was held, in order."""
        if self.held_back:
            return []
        held, self._held, self.held_ms = list(self._held), deque(), 0.0
        self._held_limit_now_ms, self._held_audio_dropped = self._held_limit_ms, False
        self._resent_ms = min(sum(ms for _, ms in held), RESEND_SPEECH_MS)
        for payload, _ in held:
            if self._turn.add(payload):
                self._turn.limit(self._resend_ms)
        # Several frames in one event: a minute of single frames would block the
        # connection.
        payloads = [payload for payload, _ in held]
        parts = (
            payloads[at : at + FRAMES_AT_ONCE]
            for at in range(0, len(payloads), FRAMES_AT_ONCE)
        )
        return [ToModel(realtime_requests.append(g711.joined(part))) for part in parts]

    def release(self) -> list[Command]:
        """The audio is not held back any more."""
        self.held_back = False
        return self.ready() if self._sessions.has_session else []

    # --- what a lost session may not have understood ---

    def turn_ended(self, item_id: str) -> None:
        """The server has made an item of the audio since the last turn; no transcript
        yet."""
        if self.speaking:  # speech_stopped has not come
            self.speaking = False
            self.watch.ended()
        payloads = self._turn.take_text()
        self._forget_turn()
        if not item_id:
            return  # no event can name it
        self._untranscribed[item_id] = payloads
        self._awaited = (self._awaited | {item_id}) & self._untranscribed.keys()
        while (
            len(self._untranscribed) > MAX_UNTRANSCRIBED
            or sum(map(len, self._untranscribed.values())) > UNTRANSCRIBED_CHARS
        ):
            del self._untranscribed[next(iter(self._untranscribed))]

    def turn_dropped(self) -> None:
        """The server has dropped the audio since the last turn."""
        self.speaking = False
        self.watch.ended()
        self._forget_turn()

    def turn_transcribed(self, item_id: str) -> None:
        """The turn has a transcript, or was deleted."""
        self._untranscribed.pop(item_id, None)

    def transcription_failed(self, item_id: str) -> None:
        """The turn gets no transcript; its audio is kept for another session."""
        self._awaited.discard(item_id)

    @property
    def awaits_transcript(self) -> bool:
        """The transcript of some turn may still come."""
        return not self._awaited.isdisjoint(self._untranscribed)

    def turn_audio(self, item_id: str) -> bytes:
        """Mu-law of a turn without a transcript; empty if there is none."""
        return decoded(self._untranscribed.get(item_id, ""))

    def model_lost(self) -> None:
        """There is no session from now on: the audio that is held follows the audio
        that the model may not have understood."""
        frames = g711.frames(self._turn.take(self._resend_ms))
        self.speaking = False
        self.watch.ended()
        self._awaited.clear()  # the next session transcribes only what it hears itself
        self._held.extendleft(reversed(frames))
        turn_ms = sum(ms for _, ms in frames)
        self.held_ms += turn_ms
        self._held_limit_now_ms = self._held_limit_ms + turn_ms
        self._forget_turn()

    def end(self) -> None:
        """The call is over. Its objects refer to each other, so they stay in memory for
        a minute or two; the audio, which is half of them, does not."""
        self._held.clear()
        self._untranscribed.clear()
        self._forget_turn()

    def new_stream(self, now: float) -> None:
        """Frames come from another stream, whose clock starts again at 0."""
        self._end_ms = None
        self._last_frame_at = now
        self.stalled_ms = 0

    def _forget_turn(self) -> None:
        self._turn.clear()
        self._resent_ms = 0.0
        self.turn_open = False

    # --- a turn that the server does not end ---

    def speech_started(self, now: float) -> None:
        self.speaking = True
        if self._passes_here:
            self.watch.began(now)

    def speech_stopped(self) -> bool:
        """The server has ended the turn. True: it is more of a turn that the bridge had
        ended, so it needs a response of its own."""
        more = self.watch.is_more(committed=not self.turn_open)
        self.watch.ended()
        self.speaking, self.turn_open = False, True
        return more

    def turn_was_stuck(self, now: float) -> None:
        """The bridge ends the turn."""
        self.watch.was_stuck(now)
        self.speaking, self.turn_open = False, True

    def is_stuck(self, quiet_seconds: float, now: float) -> bool:
        """The server does not end the caller's turn, or what the caller says after the
        bridge has ended it."""
        committed = not self.turn_open
        return self.watch.is_stuck(quiet_seconds, now, committed=committed)

    @property
    def talks(self) -> bool:
        """The caller speaks, for all that is known."""
        return self.speaking or self.watch.goes_on

    @property
    def held_is_loud(self) -> bool:
        """The newest audio that is held may be speech: without a session, no event says
        whether the caller speaks."""
        newest = [self._held[-1 - n][0] for n in range(min(len(self._held), 10))]
        return g711.loudness(g711.sound(newest)) >= QUIET_LEVEL

    @property
    def is_loud(self) -> bool:
        """Of the last second of the turn, some may be speech."""
        return not self.watch.is_quiet(LOUD_MS)

    @property
    def due_at(self) -> float | None:
        """When a stall must be filled, or it must be checked whether the turn is
        stuck."""
        check_at = self.watch.check_at
        if check_at is None or not self.speaking:
            return check_at  # as a rule None: it is read for every frame
        stalls_at = self.stalls_at
        return check_at if stalls_at is None else min(stalls_at, check_at)

    @property
    def stalls_at(self) -> float | None:
        """When silence must be sent, if no frame arrives before."""
        stalls = self.speaking and self._passes_here and self.stalled_ms < MAX_GAP_MS
        return self._last_frame_at + STALL_SECONDS if stalls else None

    def fill_stall_if_due(self, now: float) -> list[Command]:
        """If no frame arrived while the caller speaks: sends silence."""
        stalls_at = self.stalls_at
        if stalls_at is None or now < stalls_at:
            return []
        ms = int(STALL_SECONDS * 1000)
        self.stalled_ms += ms
        self._last_frame_at = now
        self._end_ms = (self._end_ms or 0.0) + ms
        return [Note("stall_filled", {"ms": ms}), *self._silence(ms)]

    def _max_received_ms(self, now: float) -> float:
        return 1000 * (now - self._began) + AHEAD_MS

    def _refuse(self) -> list[Command]:
        """The caller's audio arrives faster than real time; it is dropped."""
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
        # A small step back: frames that arrive late, after their stall was filled.
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
        # One second at a time: payloads of silence are cached by their length.
        commands: list[Command] = []
        while ms > 0:
            part = min(ms, 1000)
            commands += self._give(g711.silence(part), part)
            ms -= part
        return commands

    def _give(self, payload: str, duration_ms: float) -> list[Command]:
        if self._sessions.has_session and not self.held_back:
            if self._turn.add(payload):
                self._turn.limit(self._resend_ms)
            return [ToModel(realtime_requests.append(payload))]
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

    @property
    def _resend_ms(self) -> float:
        """How much of the audio since the last turn is kept."""
        if self.speaking or self.turn_open:
            return RESEND_SPEECH_MS
        return max(RESEND_MS, self._resent_ms)
