"""Everything that interrupts the agent: the caller's speech and keys, guardrails, user
code. PURE."""

from bridge.core.call_state import CallState
from bridge.core.commands import Command, Note, Pressed, ToCaller, limit_hit
from bridge.core.history import HistoryItem
from bridge.core.limits import MessageRate
from bridge.core.rules import RESUME

MAX_GUARDRAIL_STOPS = 5
"""Responses that a guardrail may stop after the caller spoke; one more ends the call.
The agent may rephrase, but an agent whose every response is stopped would try for ever,
and the caller would hear nothing."""

MAX_RESUMES = 5
"""Times in a row that the agent goes on after noise. On a line that is noisy all the
time it would begin again for ever, and each time is paid for."""

KEYS_PER_SECOND = 2.0
KEYS_BURST_SECONDS = 32.0
"""Most keys, averaged over this time: 64 at once, which a machine may dial, and then
two a second. Others are dropped: each input stops the agent and requests an answer,
which is paid for."""


class Interruptions:
    """The interruptions of one call, and the caller's turns."""

    def __init__(self, call: CallState) -> None:
        self._call = call
        self._guardrail_stops = 0
        """Responses stopped by a guardrail since the caller last spoke."""
        self._turn_item = ""
        """Id of the item of the caller's last turn."""
        self.turn_is_wordless = False
        """The transcript of that turn is empty."""
        self.cut_off = False
        """The caller's speech has stopped the agent, and no response has begun
        since."""
        self._resumes = 0
        """Times that the agent went on after noise since the caller last spoke."""
        self._key_rate = MessageRate(KEYS_PER_SECOND, KEYS_BURST_SECONDS)
        self._drops_keys = False
        """The last key was dropped: there are too many."""

    def stop_agent(self, by: str, now: float, only: str | None = None) -> list[Command]:
        """Clears audio, cancels responses (`only`: of that response), ends waits."""
        tones = self._call.speech.plays_bridge_audio
        commands = self._call.speech.interrupt(
            by,
            now,
            cancels=by == "caller" and self._call.model.server_cancels,
            answers=by == "caller" and self._call.model.server_responds,
            only=only,
        )
        flushed = tones and any(isinstance(it, ToCaller) for it in commands)
        return [*commands, *self._call.endings.waits.stop(tones=flushed)]

    def interrupt(self, by: str, response_id: str | None, now: float) -> list[Command]:
        """Carries out the input `Interrupt`."""
        if response_id is not None:
            if not self._call.speech.is_live(response_id):
                return []
            self._guardrail_stops += 1
            if self._guardrail_stops > MAX_GUARDRAIL_STOPS:
                return self._call.end("bridge", "guardrail", now)
        return self.stop_agent(by, now, only=response_id)

    # --- turns ---

    def speech_started(self, now: float) -> list[Command]:
        self._call.caller.speech_started(now)
        self._turn_item, self.turn_is_wordless = "", False
        self._call.model.awaiting_audio_since = None
        self._call.responses.unanswered = self._call.model.server_responds
        self._call.responses.expect_no_second()
        self._call.endings.limits.caller_is_there()
        self._guardrail_stops = 0
        commands: list[Command] = [Note("speech_started")]
        if self._call.model.interruptible:
            commands = self.stop_agent("caller", now) + commands
            notes = [it.name for it in commands if isinstance(it, Note)]
            self.cut_off = self.cut_off or "interrupted" in notes
        else:
            commands += self._call.speech.stop_waiting_sound(now)
        return commands

    def speech_stopped(self, now: float) -> list[Command]:
        if self._call.caller.speech_stopped():
            self._call.responses.unanswered = self._call.model.server_responds
            self._call.responses.expect_no_second()
        return self._turn_over(now)

    def _turn_over(self, now: float) -> list[Command]:
        self._call.turn_over_at = now
        self._call.responses.turn_ended()
        self._call.model.awaiting_audio_since = now
        stopped: list[Command] = [Note("speech_stopped")]
        if self._call.model.server_responds:
            stopped += self._call.speech.tell_heard()  # it is about to respond
        return stopped

    def turn_committed(self, item_id: str, now: float) -> None:
        self._call.turn_over_at, self._turn_item = now, item_id
        self._call.caller.turn_ended(item_id)
        if item_id:
            # Added now: the item's own event may be lost with the session.
            at = self._call.seconds_into_call(now)
            self._call.history.add(HistoryItem(id=item_id, kind="user", at=at))

    def end_stuck_turn(self, now: float) -> list[Command]:
        """Ends the caller's turn, and asks for the response, if the server does not end
        it though the caller is quiet."""
        model, caller = self._call.model, self._call.caller
        if not caller.is_stuck(model.quiet_seconds, now):
            return []
        again = not caller.speaking
        caller.turn_was_stuck(now)
        commands = [Note("turn_stuck"), *self._turn_over(now), *model.commit()]
        if model.server_responds:
            # Not to a turn that the client ends. The server's own may come late.
            self._call.responses.answer_turn(now, again=again)
        return commands + self._call.speech.request_if_free(now)

    def turn_transcribed(self, item_id: str, transcript: str) -> None:
        if item_id == self._turn_item:
            self.turn_is_wordless = not transcript.strip()
            if not self.turn_is_wordless:
                self._resumes = 0

    def response_created(self) -> None:
        """The server has begun a response."""
        self.cut_off = False
        if self._call.responses.unanswered:
            self._resumes = 0  # it answers the caller, who has said something

    def turn_dropped(self, now: float) -> list[Command]:
        dropped = self._call.model.turn_dropped(now)
        return dropped + self.turn_was_wordless(now)

    def turn_was_wordless(self, now: float) -> list[Command]:
        """The caller said nothing, and the server does not respond: an agent that was
        interrupted goes on from the position that was heard."""
        self._call.responses.unanswered = False
        model, cut_off, self.cut_off = self._call.model, self.cut_off, False
        resumes = self._call.rules.resumes_after_noise and model.server_responds
        if not (cut_off and resumes) or self._resumes >= MAX_RESUMES:
            return self._call.speech.request_if_free(now)
        self._resumes += 1
        commands = [Note("resumed"), *model.tell("system", RESUME, False, now)]
        # The server's own response may come late, all the same.
        self._call.responses.answer_turn(now)
        return commands + self._call.speech.request_if_free(now)

    # --- keys ---

    def key_pressed(self, key: str, now: float) -> list[Command]:
        if not self._key_rate.take(1.0, now):
            first, self._drops_keys = not self._drops_keys, True
            return [limit_hit("key_rate")] if first else []
        self._drops_keys = False
        self._call.endings.limits.caller_is_there()
        commands: list[Command] = [Note("key_pressed", {}, {"digit": key})]
        if self._call.rules.key_stops_agent:
            # At each key: a response may have begun since the last one. It costs
            # nothing if the agent is silent.
            commands += self._stop_by_keys(now)
        entered = self._call.keys.press(key, now)
        if entered is not None:
            commands += self._keys_entered(entered, now)
        return commands

    def _keys_entered(self, keys: str, now: float) -> list[Command]:
        """A complete input of keys: an action of the route, or a message to the
        agent."""
        if keys in self._call.rules.key_actions:
            return [Pressed(keys)]
        # The agent may still be speaking, or again.
        stop = self._stop_by_keys(now)
        text = f"(The caller pressed these keys on the phone: {keys})"
        return [*stop, *self._call.model.tell("user", text, True, now)]

    def _stop_by_keys(self, now: float) -> list[Command]:
        """Keys interrupt the agent, as speech does, but not a greeting that must be
        heard."""
        if self._call.caller.held_back:
            return []
        return self.stop_agent("keys", now)

    def keys_due(self, now: float) -> list[Command]:
        keys_at = self._call.keys.due_at
        if keys_at is None or now < keys_at:
            return []
        return self._keys_entered(self._call.keys.take(), now)
