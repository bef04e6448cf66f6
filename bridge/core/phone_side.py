"""The phone's side of a call on Twilio's media streams, one after the other. PURE.

Messages of the stream in; what the loss and the return of a stream mean.
"""

import hashlib

from bridge.core import twilio_messages
from bridge.core.agent_speech import AgentSpeech
from bridge.core.call_state import CallState
from bridge.core.commands import Command, Note, Started, limit_hit, protocol_error
from bridge.core.interruptions import Interruptions
from bridge.core.limits import Bounds, MessageRate
from bridge.core.playback import Playback
from bridge.core.rules import BACK, CUT_OFF


class PhoneSide:
    """The streams of one call. A caller's stream that floods the bridge ends the
    call."""

    def __init__(
        self,
        call: CallState,
        speech: AgentSpeech,
        interruptions: Interruptions,
        bounds: Bounds,
    ) -> None:
        self._call = call
        self._speech = speech
        self._interruptions = interruptions
        self._stream_sid = ""
        self._message_rate = MessageRate(bounds.messages_per_second)
        """Rate limiter for the caller's messages, unreadable ones included."""

    def play(self, payload: str, now: float) -> list[Command]:
        """Carries out the input `Play`."""
        if not self._call.started or self._call.stream.is_lost:
            return []
        return self._speech.play(payload, now)

    def probe(self, now: float) -> list[Command]:
        """Asks a stream that sends nothing whether it is there."""
        self._call.stream.probed(now)
        return [Note("stream_probed"), *self._speech.probe(now)]

    @property
    def version(self) -> int:
        """Changes whenever audio was sent to Twilio."""
        return self._speech.playback.sent

    def handle(self, message: twilio_messages.Inbound, now: float) -> list[Command]:
        """A message of Twilio's stream."""
        self._call.stream.last_message_at = now
        if self._call.ended:
            return []
        if not self._message_rate.add(1.0, now):
            return self._flooded(now)
        # First, because it is sent 50 times a second.
        if (
            isinstance(message, twilio_messages.Media)
            and (message.stream_sid == self._stream_sid or not message.stream_sid)
            and self._call.started
        ):
            return self._caller_audio(message.media, now)
        if isinstance(message, twilio_messages.Connected):
            return []
        if isinstance(message, twilio_messages.Start):
            return self._start(message, now) + self._call.changed(now)
        if not self._call.started:
            return [protocol_error("caller", "message before start")]
        # Only `stop` is accepted without a stream SID: ending a call must not depend on
        # a detail.
        if message.stream_sid != self._stream_sid and message.stream_sid:
            return [protocol_error("caller", "message of another stream")]
        match message:
            case twilio_messages.Mark(mark=mark):
                commands = self._speech.mark_echoed(mark.name, now)
                if commands is None:
                    return [protocol_error("caller", "unknown mark")]
                if self.still_plays(commands):
                    return commands
                return commands + self._call.changed(now)
            case twilio_messages.Dtmf(dtmf=dtmf):
                return self._interruptions.key_pressed(
                    dtmf.digit, now
                ) + self._call.changed(now)
            case _:  # Stop
                return self._call.end("caller", "hung_up", now)

    def still_plays(self, commands: list[Command]) -> bool:
        """A mark has led to these commands. True: it was a mark within the agent's
        speech, after which nothing is heard, or owed, that was not before."""
        return not commands and self._speech.queued

    def misread(self, reason: str) -> list[Command]:
        """A message of the caller is unreadable."""
        # Counted at the time of the last readable message: a stream that sends nothing
        # readable is not Twilio's, and reaches the limit however slowly it sends.
        at = self._call.stream.last_message_at
        if not self._message_rate.add(1.0, at):
            return self._flooded(at)
        return [protocol_error("caller", reason)]

    def _flooded(self, now: float) -> list[Command]:
        """The caller's stream sends more messages than any phone: ends the call."""
        return [limit_hit("message_rate"), *self._call.end("caller", "flood", now)]

    def _caller_audio(
        self, media: twilio_messages.MediaDetails, now: float
    ) -> list[Command]:
        if media.track != "inbound":
            return [protocol_error("caller", "media of another track")]
        duration_ms = media.duration_ms
        self._speech.playback.clock.frame(media.timestamp, duration_ms, now)
        return self._call.caller.frame(media.payload, media.timestamp, duration_ms, now)

    # --- the stream begins, is lost, is back ---

    def _start(self, message: twilio_messages.Start, now: float) -> list[Command]:
        if self._call.started and not self._call.stream.is_lost:
            return [protocol_error("caller", "second start")]
        media = message.start.media_format
        if (media.encoding, media.sample_rate) != ("audio/x-mulaw", 8000):
            return self._call.end("caller", "unsupported_media_format", now)
        self._stream_sid = message.stream_sid
        out = twilio_messages.OutboundMessages(message.stream_sid)
        if self._call.started:
            back = self._stream_back(out, now)
            return [Started(message, again=True), *back]
        self._call.begin(now)
        self._speech.new_stream(out, Playback(now), now)
        self._call.outbox.owned_by(message.stream_sid)
        digest = hashlib.sha256(message.stream_sid.encode(errors="replace")).digest()
        self._call.responses.spread = digest[0] / 255
        return [Started(message)]

    def stream_lost(self, now: float) -> list[Command]:
        """Keeps the session for ABSENT_SECONDS: Twilio requests the next TwiML, and the
        caller may return on another stream (a second `start`)."""
        if not self._call.started:
            return self._call.end("caller", "connection_lost", now)
        if self._call.stream.is_lost:
            return []
        self._call.stream.lost(now)
        self._call.endings.stream_lost()
        self._call.opening.stream_lost()
        lost = [
            Note("stream_lost"),
            *self._speech.stream_lost(now),
            *self._call.changed(now),
        ]
        # As after a barge-in: the caller has not heard everything, so every stoppable
        # wait and every wait for tones fails.
        return lost + self._call.endings.waits.stop(tones=True)

    def _stream_back(
        self, out: twilio_messages.OutboundMessages, now: float
    ) -> list[Command]:
        """The caller is back on another stream; the audio queued on the old one is
        lost."""
        seconds = self._call.stream.back(now)
        self._speech.new_stream(out, Playback(now), now)
        self._call.caller.new_stream(now)
        left = self._call.one_moment.stream_back(now)
        back: list[Command] = [Note("stream_back", {"seconds": seconds})]
        if not self._call.sessions.had_session:
            return back  # the greeting follows, once there is a session
        saying_goodbye = self._call.endings.stream_back(now)
        if saying_goodbye and not self._speech.broken_off:
            # The agent says only the goodbye; it is owed if it had not begun.
            return back + self._speech.request_if_free(now)
        if left and not (saying_goodbye or self._speech.broken_off):
            return back + self._speech.request_if_free(now)  # when its time comes
        text = CUT_OFF if self._speech.broken_off else BACK
        self._speech.broken_off = False
        if not saying_goodbye:
            return back + self._call.model.tell("system", text, True, now)
        back += self._call.model.tell("system", text, False, now)
        return back + self._speech.request_response(now)
