"""The TwiML documents that the bridge answers with; each is a pure function that
returns the text.

Mistakes that would otherwise appear only in a live call raise ValueError here: a query
string in a stream's URL, a parameter that is too long, a character that XML cannot
contain. Nothing is fetched, no setting is read, and every spoken sentence can be passed
in.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from twilio.twiml.voice_response import VoiceResponse  # type: ignore[import-untyped]

from twiml.phone_numbers import PhoneNumber
from twiml.spoken_texts import (
    BUSY,
    BUSY_CONNECTING,
    PRESS_1,
    SORRY,
    SORRY_CONNECTING,
)

# "The total of the name and value of each parameter must be under 500 characters."
# https://www.twilio.com/docs/voice/twiml/stream
PARAMETER_LIMIT = 500
# https://www.twilio.com/docs/voice/twiml/say: at most 4 KB of text.
SPOKEN_LIMIT = 4096
# https://www.twilio.com/docs/voice/twiml/dial: 5 to 600 s, else it is refused.
RING_SECONDS = range(5, 601)
RINGING_SECONDS = 20
"""Default time of ringing, in seconds."""
ACCEPT_SECONDS = 10
"""Time to press a key for a person who answers a transfer."""
PAUSE_SECONDS = range(1, 61)
"""Seconds of silence while a caller waits. After more silence the line seems dead."""

_NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})
_SIP_URI = re.compile(r"(?i:sips?):[\w.+~%-]+@[\w.:\[\]-]+(;[\w.=;-]+)?", re.ASCII)
SIP_URI_CHARS = 255
_DIAL_DIGITS = re.compile(r"[0-9#*wW]{1,32}")
# Characters that XML 1.0 (2.2) cannot contain, escaped or not. Twilio would refuse the
# document.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def connect(
    stream_url: str,
    *,
    action_url: str | None,
    status_callback_url: str | None = None,
    parameters: Mapping[str, str] = _NO_PARAMETERS,
    text: str = "",
    language: str | None = None,
) -> str:
    """Streams the call to `stream_url`, behind the text, if there is one. When the
    stream ends, Twilio requests `action_url`.

    The parameters arrive in the stream's `start` message; only text can be sent, and
    empty ones are left out. No verb follows the <Connect>: after a trailing <Pause>,
    for example, the caller would hear silence on an open line once the agent has left.
    """
    options = {}
    if action_url is not None:
        options = {"action": _webhook_url("action", action_url), "method": "POST"}
    callback: dict[str, str] = {}
    if status_callback_url is not None:
        callback["status_callback"] = _absolute_url(
            "status callback", status_callback_url
        )
        callback["status_callback_method"] = "POST"
    document = VoiceResponse()
    if text:
        document.say(_spoken(text), language=language)
    stream = document.connect(**options).stream(url=_stream_url(stream_url), **callback)
    for name, value in parameters.items():
        if value:
            _check_parameter(name, value)
            stream.parameter(name=name, value=value)
    return str(document)


def bin_document(stream_url: str, action_url: str | None = None) -> str:
    """The document for a TwiML Bin, which needs no webhook: Twilio fills in From and
    To."""
    return connect(
        stream_url,
        action_url=action_url,
        parameters={"From": "{{From}}", "To": "{{To}}"},
    )


def redirect(url: str) -> str:
    """Makes Twilio request `url`, by POST."""
    document = VoiceResponse()
    document.redirect(_webhook_url("redirect", url), method="POST")
    return str(document)


def hang_up() -> str:
    """Ends the call at once."""
    document = VoiceResponse()
    document.hangup()
    return str(document)


def reject() -> str:
    """Refuses a call that was not answered yet: the caller hears a busy line, and the
    call costs nothing."""
    document = VoiceResponse()
    document.reject(reason="busy")
    return str(document)


def transfer(
    number: str,
    *,
    caller_id: str | None = None,
    action_url: str | None = None,
    timeout_seconds: int = RINGING_SECONDS,
    digits: str = "",
    screen_url: str | None = None,
) -> str:
    """Transfers the caller to a phone number or a SIP URI. The caller hears it ring
    until it is answered.

    `caller_id` must be a number of the account or the caller's own; Twilio refuses the
    leg otherwise. Without `action_url` the call ends when the transfer ends. `digits`:
    pressed once the number has answered, such as an extension. `screen_url`: what the
    person who answers hears first (`whisper`), while the caller still hears ringing.
    """
    document = VoiceResponse()
    _dial(document, number, caller_id, action_url, timeout_seconds, digits, screen_url)
    return str(document)


def whisper(
    text: str, *, accept_url: str | None = None, language: str | None = None
) -> str:
    """For the person who has answered a transfer, and is not connected yet: a text.
    With `accept_url`, Twilio asks there when a key was pressed; without a key within
    ten seconds the person is hung up on, and the caller goes on ringing out."""
    document = VoiceResponse()
    if accept_url is None:
        document.say(_spoken(text), language=language)
        return str(document)
    gather = document.gather(
        action=_webhook_url("action", accept_url),
        method="POST",
        num_digits=1,
        timeout=ACCEPT_SECONDS,
    )
    gather.say(_spoken(text or PRESS_1), language=language)
    document.hangup()
    return str(document)


def tell(text: str, *, then_url: str, language: str | None = None) -> str:
    """For the person who has answered a warm transfer: a text (empty: none), then
    Twilio requests `then_url`."""
    document = VoiceResponse()
    if text:
        document.say(_spoken(text), language=language)
    document.redirect(_webhook_url("redirect", then_url), method="POST")
    return str(document)


def conference(name: str, *, action_url: str | None = None) -> str:
    """The call joins the conference, which ends when the first of its two parties
    leaves; then Twilio requests `action_url`, or ends the call without one.

    Who is there first hears silence: both come within seconds.
    """
    document = VoiceResponse()
    options = {}
    if action_url is not None:
        options = {"action": _webhook_url("action", action_url), "method": "POST"}
    document.dial(**options).conference(
        name,
        start_conference_on_enter=True,
        end_conference_on_exit=True,
        beep=False,
        wait_url="",  # not Twilio's music
        max_participants=2,
    )
    return str(document)


def put_through() -> str:
    """For the person who has answered a transfer: the caller is connected."""
    return str(VoiceResponse())


def busy(
    text: str | None = None,
    fallback_number: str | None = None,
    *,
    caller_id: str | None = None,
    language: str | None = None,
) -> str:
    """For a call that no instance can take: a sentence that says so, then the fallback
    number if there is one, then the end of the call. `text` None: the default sentence,
    with or without a fallback."""
    if text is None:
        text = BUSY_CONNECTING if fallback_number else BUSY
    return _say_and_hang_up(text, fallback_number, caller_id, RINGING_SECONDS, language)


def hold(
    text: str | None,
    *,
    ask_url: str,
    pause_seconds: int,
    language: str | None = None,
) -> str:
    """Makes the caller wait: a sentence (None: none), silence, then Twilio requests
    `ask_url` for the next step."""
    if pause_seconds not in PAUSE_SECONDS:
        raise ValueError(
            f"{pause_seconds} seconds of silence: "
            f"{PAUSE_SECONDS[0]} to {PAUSE_SECONDS[-1]} are allowed"
        )
    document = VoiceResponse()
    if text is not None:
        document.say(_spoken(text), language=language)
    document.pause(length=pause_seconds)
    document.redirect(_webhook_url("redirect", ask_url), method="POST")
    return str(document)


def sorry(
    text: str | None = None,
    fallback_number: str | None = None,
    *,
    caller_id: str | None = None,
    timeout_seconds: int = RINGING_SECONDS,
    language: str | None = None,
) -> str:
    """The apology when the agent fails: a sentence, then the fallback number if there
    is one, then the end of the call.

    `text` None: the default sentence, with or without a fallback.
    """
    if text is None:
        text = SORRY_CONNECTING if fallback_number else SORRY
    return _say_and_hang_up(text, fallback_number, caller_id, timeout_seconds, language)


def phone_number(text: str) -> str:
    """The number in E.164 without punctuation. ValueError if it is not a phone
    number."""
    return PhoneNumber.read(text)


def dial_target(text: str) -> str:
    """A phone number as `phone_number` gives it, or a SIP URI as it is. ValueError if
    it is neither."""
    if text[:5].lower().startswith(("sip:", "sips:")):
        if not _SIP_URI.fullmatch(text) or len(text) > SIP_URI_CHARS:
            raise ValueError(f"{text!r} is not of the form sip:user@host")
        return text
    return phone_number(text)


def dial_digits(text: str) -> str:
    """Digits of a transfer. ValueError if Twilio would refuse them."""
    if text and not _DIAL_DIGITS.fullmatch(text):
        raise ValueError("digits are up to 32 of 0-9 # * w W")
    return text


def _say_and_hang_up(
    text: str,
    number: str | None,
    caller_id: str | None,
    timeout_seconds: int,
    language: str | None,
) -> str:
    document = VoiceResponse()
    document.say(_spoken(text), language=language)
    if number:
        _dial(document, number, caller_id, None, timeout_seconds)
    # No other verb: Twilio also runs those after a <Dial> that was answered.
    document.hangup()
    return str(document)


def _dial(
    document: VoiceResponse,
    number: str,
    caller_id: str | None,
    action_url: str | None,
    timeout_seconds: int,
    digits: str = "",
    screen_url: str | None = None,
) -> None:
    if timeout_seconds not in RING_SECONDS:
        raise ValueError(
            f"{timeout_seconds} seconds of ringing: Twilio takes "
            f"{RING_SECONDS[0]} to {RING_SECONDS[-1]}"
        )
    options: dict[str, str] = {}
    if caller_id is not None:
        options["caller_id"] = phone_number(caller_id)
    if action_url is not None:
        options["action"] = _webhook_url("action", action_url)
        options["method"] = "POST"
    # answerOnBridge: the caller hears ringing instead of silence until the call is
    # answered.
    dial = document.dial(answer_on_bridge=True, timeout=timeout_seconds, **options)
    target = dial_target(number)
    leg: dict[str, str] = {}
    if screen_url is not None:
        leg = {"url": _webhook_url("screen", screen_url), "method": "POST"}
    if not target.startswith("+"):
        if digits:
            raise ValueError("digits can be pressed at phone numbers only")
        dial.sip(target, **leg)
        return
    if digits:
        leg["send_digits"] = dial_digits(digits)
    dial.number(target, **leg)


def _check_parameter(name: str, value: str) -> None:
    if not name:
        raise ValueError("a stream parameter has no name")
    _require_xml(f"the name of the stream parameter {name!r}", name)
    _require_xml(f"the value of the stream parameter {name!r}", value)
    length = len(name) + len(value)
    if length >= PARAMETER_LIMIT:
        raise ValueError(
            f"the stream parameter {name!r} has {length} characters with its name; "
            f"Twilio takes fewer than {PARAMETER_LIMIT}"
        )


def _spoken(text: str) -> str:
    if not text.strip():
        raise ValueError("the text to say is empty")
    if len(text) > SPOKEN_LIMIT:
        raise ValueError(
            f"a text of {len(text)} characters: Twilio says at most {SPOKEN_LIMIT}"
        )
    return _require_xml("the text to say", text)


def _stream_url(text: str) -> str:
    parts = _split("stream", text)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"the stream url {text!r} is not of the form wss://host/path")
    # Twilio drops a query string, so its content would never arrive.
    if "?" in text or "#" in text:
        raise ValueError(
            f"the stream url {text!r} has a query string or a fragment, which Twilio "
            "does not send; use the path or stream parameters"
        )
    return text


def _absolute_url(what: str, text: str) -> str:
    parts = _split(what, text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"the {what} url {text!r} is not of the form https://host/path"
        )
    return text


def _webhook_url(what: str, text: str) -> str:
    """An absolute URL, or a path relative to the document's own URL."""
    if text.startswith("/") and not text.startswith("//"):
        _split(what, text)
        return text
    return _absolute_url(what, text)


def _split(what: str, text: str) -> SplitResult:
    if any(character <= " " for character in text):
        raise ValueError(f"the {what} url {text!r} has a space or control character")
    _require_xml(f"the {what} url", text)
    return urlsplit(text)


def _require_xml(what: str, text: str) -> str:
    if found := _NOT_XML.search(text):
        raise ValueError(f"{what} has {found.group()!r}, which XML cannot carry")
    return text
