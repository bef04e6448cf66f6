"""What a call's leg (the caller's end of the call) can do. PURE.

The core and bridge/call/ ask this value; neither asks which leg it is.
"""

import msgspec


class Capabilities(msgspec.Struct, frozen=True):
    """The defaults are those of Twilio's media streams. Stored in traces."""

    has_audio: bool = True
    """The call's audio passes here: the bridge counts what the caller heard, holds the
    caller's audio, and can play its own audio, such as key tones. False: the model's
    server plays the agent's speech and reports when it has played."""
    replaces_sessions: bool = True
    """A lost or old model session is replaced by another one. False: the call ends with
    its session."""
    next_step: bool = True
    """The next step of the call is asked for when the leg has ended. So the call can be
    resumed by any instance, can come back from a transfer, and can end with an
    apology."""


MEDIA_STREAM = Capabilities()
SIP = Capabilities(has_audio=False, replaces_sessions=False, next_step=False)
