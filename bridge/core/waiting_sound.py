"""The sound that tells a waiting caller that the line works. PURE."""

from bridge.audio import g711
from bridge.core.agent_speech import AgentSpeech
from bridge.core.caller_audio import CallerAudio
from bridge.core.commands import Command, Note
from bridge.core.silent_wait import SilentWait

WAIT_SECONDS = 3.0
"""Silence before the sound begins. A server needs up to half a second to notice that
the caller has stopped, so the caller hears a sound within 4 s."""

TONE_EVERY_SECONDS = 4.0
"""From the beginning of one tone to the next."""

AHEAD_SECONDS = 0.5
"""A file goes on this long before the part that was sent ends."""

PART_BYTES = 11_999 // 3 * 3
"""Size of that part, 1.5 s: at most this much must be cleared when the answer comes.
Base64 is cut at a multiple of 3."""

LOUD_SECONDS = 0.5
"""Between two checks whether the caller still speaks, while no model listens."""


class WaitingSound:
    """Plays the sound of the route while the caller waits for the agent in silence.

    The sound begins only when no other audio is queued; the agent's audio, key tones
    and the caller's speech stop it (AgentSpeech.stop_waiting_sound). It belongs to no
    item, so the model is never told of it, and no wait for the agent's audio includes
    it.
    """

    def __init__(
        self, wait: SilentWait, speech: AgentSpeech | None, caller: CallerAudio
    ) -> None:
        """Without `speech` the model's server plays the audio: there is no sound."""
        self._wait = wait
        self._speech = speech
        self._caller = caller
        self.sound: str | None = ""
        """As Rules.waiting_sound."""
        self.due_at: float | None = None
        """When the next part is due; None: the caller does not wait. Kept, because it
        is read for every frame."""
        self._next_at = 0.0
        """What `due_at` is while the caller waits."""
        self._waited_since: float | None = None
        """The wait to which `_next_at` belongs (SilentWait.since)."""
        self._rest = ""
        """What is left of the file, before it begins again."""
        self._plays = False
        """The sound has begun in this silence."""

    def watch(self, now: float) -> None:
        """Runs after every input, behind SilentWait.watch."""
        since = self._wait.since
        if since is None or self.sound is None or self._speech is None:
            self.due_at = None
            return
        if since != self._waited_since:
            self._waited_since, self._plays = since, False
            self._next_at = max(now, self._speech.queue_ends) + WAIT_SECONDS
        self.due_at = self._next_at

    def play_if_due(self, now: float) -> list[Command]:
        """Plays the next part of the sound."""
        speech = self._speech
        if speech is None or self.due_at is None or now < self.due_at:
            return []
        silent_since = self._wait.silent_since
        commands: list[Command] = []
        if now < silent_since + WAIT_SECONDS:  # the caller has heard something
            self._plays, self._next_at = False, silent_since + WAIT_SECONDS
        elif self._caller.held_is_loud:
            self._plays, self._next_at = False, now + LOUD_SECONDS
        else:
            if not self._plays:
                self._plays, self._rest = True, ""
                commands = [Note("waiting_sound", {"seconds": now - silent_since})]
            commands += self._part(speech, now)
        self.due_at = self._next_at
        return commands

    def play_once(self, now: float) -> list[Command]:
        """A tone in a turn of the caller that the server does not end."""
        speech = self._speech
        if speech is None or self.sound is None or speech.queued:
            return []
        return speech.play_waiting_sound(g711.comfort_tone(), now)

    def _part(self, speech: AgentSpeech, now: float) -> list[Command]:
        if not self.sound:
            self._next_at = now + TONE_EVERY_SECONDS
            return speech.play_waiting_sound(g711.comfort_tone(), now)
        part, self._rest = g711.cut_payload(self._rest or self.sound, PART_BYTES)
        commands = speech.play_waiting_sound(part, now)
        self._next_at = speech.playback.queue_ends - AHEAD_SECONDS
        return commands
