"""Everything that interrupts the agent: the caller's speech and keys, guardrails, user
code. PURE."""

from bridge.core.call_state import CallState
from bridge.core.commands import Command, Note, Pressed, ToCaller
from bridge.core.history import HistoryItem

MAX_GUARDRAIL_STOPS = 5
"""Responses that a guardrail may stop after the caller spoke; one more ends the call.
The agent may rephrase, but an agent whose every response is stopped would try for ever,
and the caller would hear nothing."""


class Interruptions:
    """The interruptions of one call, and the caller's turns."""

    def __init__(self, call: CallState) -> None:
        self._call = call
        self._guardrail_stops = 0
        """Responses stopped by a guardrail since the caller last spoke."""

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
        self._call.caller.speaking = True
        self._call.model.awaiting_audio_since = None
        self._call.responses.unanswered = self._call.model.server_responds
        self._call.endings.limits.caller_is_there()
        self._guardrail_stops = 0
        commands: list[Command] = [Note("speech_started")]
        if self._call.model.interruptible:
            commands = self.stop_agent("caller", now) + commands
        return commands

    def speech_stopped(self, now: float) -> list[Command]:
        self._call.caller.speaking = False
        self._call.turn_over_at = now
        self._call.caller.turn_open = True
        self._call.responses.turn_ended()
        self._call.model.awaiting_audio_since = now
        return [Note("speech_stopped")]

    def turn_committed(self, item_id: str, now: float) -> None:
        self._call.caller.speaking = False  # speech_stopped may not have come
        self._call.turn_over_at = now
        self._call.caller.turn_ended(item_id)
        if item_id:
            # Added now: the item's own event may be lost with the session.
            at = self._call.seconds_into_call(now)
            self._call.history.add(HistoryItem(id=item_id, kind="user", at=at))

    # --- keys ---

    def key_pressed(self, key: str, now: float) -> list[Command]:
        self._call.endings.limits.caller_is_there()
        commands: list[Command] = [Note("key_pressed", {}, {"digit": key})]
        entered = self._call.keys.press(key, now)
        if entered is not None:
            commands += self._keys_entered(entered, now)
        return commands

    def _keys_entered(self, keys: str, now: float) -> list[Command]:
        """A complete input of keys: an action of the route, or a message to the
        agent."""
        if keys in self._call.rules.key_actions:
            return [Pressed(keys)]
        # Keys interrupt the agent, as speech does.
        stop = self.stop_agent("keys", now)
        text = f"(The caller pressed these keys on the phone: {keys})"
        return [*stop, *self._call.model.tell("user", text, True, now)]

    def keys_due(self, now: float) -> list[Command]:
        keys_at = self._call.keys.due_at
        if keys_at is None or now < keys_at:
            return []
        return self._keys_entered(self._call.keys.take(), now)
