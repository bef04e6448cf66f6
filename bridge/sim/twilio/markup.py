"""Parses TwiML as Twilio does: a document -> its verbs, in order.

Supports the verbs that a bridge answers with. Any other verb is an error, so none is
skipped unnoticed. Verb and attribute names are case-sensitive, as with Twilio.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

Method = Literal["GET", "POST"]
DOCUMENT_LIMIT = 64 * 1024  # bytes, error 11750
PARAMETER_LIMIT = 500  # characters of name and value together
RING_LIMITS = (5.0, 600.0)  # s, <Dial timeout>


class TwimlError(Exception):
    """Twilio cannot execute the document; `code` is the error code of Twilio's
    debugger."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


@dataclass(frozen=True, slots=True)
class TwimlStream:
    url: str
    name: str | None
    track: str | None
    status_callback: str | None
    status_method: Method
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class TwimlConnect:
    stream: TwimlStream
    action: str | None
    method: Method


@dataclass(frozen=True, slots=True)
class TwimlSay:
    text: str


@dataclass(frozen=True, slots=True)
class TwimlGather:
    """`texts` are said; then one key is waited for, and `action` is requested."""

    texts: tuple[str, ...]
    action: str
    method: Method
    timeout: float = 5.0
    """Seconds after the last text; then the next verb follows."""


@dataclass(frozen=True, slots=True)
class TwimlDial:
    """`timeout` in seconds. `caller_id` None: the called party sees the caller's
    number."""

    number: str
    action: str | None
    method: Method
    timeout: float
    caller_id: str | None
    digits: str = ""
    screen_url: str | None = None
    """What the called party hears before it is connected."""


@dataclass(frozen=True, slots=True)
class TwimlConference:
    """<Dial><Conference>. `starts`, `ends`: on entering and on leaving."""

    name: str
    action: str | None
    method: Method
    starts: bool
    ends: bool
    beep: str
    wait_url: str | None
    """What a call hears before the start; empty: nothing. None: Twilio's music."""


@dataclass(frozen=True, slots=True)
class TwimlRedirect:
    url: str
    method: Method


@dataclass(frozen=True, slots=True)
class TwimlPause:
    seconds: float


@dataclass(frozen=True, slots=True)
class TwimlReject:
    reason: str


@dataclass(frozen=True, slots=True)
class TwimlHangup:
    pass


Verb = (
    TwimlConnect
    | TwimlSay
    | TwimlDial
    | TwimlConference
    | TwimlGather
    | TwimlRedirect
    | TwimlPause
    | TwimlReject
    | TwimlHangup
)


def verbs(document: str) -> list[Verb]:
    """The document's verbs. Raises TwimlError if Twilio could not execute it."""
    if len(document.encode()) > DOCUMENT_LIMIT:
        raise TwimlError(11750, "the TwiML document is larger than 64 kB")
    try:
        root = ET.fromstring(document)
    except ET.ParseError as error:
        raise TwimlError(12100, f"the document is not XML: {error}") from error
    if root.tag != "Response":
        raise TwimlError(12100, f"the root is <{root.tag}>, not <Response>")
    return [_verb(element) for element in root]


def _verb(element: ET.Element) -> Verb:
    text = "".join(element.itertext()).strip()
    match element.tag:
        case "Connect":
            stream = _stream(element)
            return TwimlConnect(
                stream, element.get("action"), _method(element, "method")
            )
        case "Say":
            return TwimlSay(text)
        case "Dial" if [child.tag for child in element] == ["Conference"]:
            return _conference(element)
        case "Dial":
            return _dial(element)
        case "Gather":
            if {child.tag for child in element} - {"Say"}:
                raise TwimlError(12200, "<Gather> holds something other than <Say>")
            said = tuple("".join(child.itertext()).strip() for child in element)
            method = _method(element, "method")
            timeout = _seconds(element, "timeout", "5")
            return TwimlGather(said, element.get("action", ""), method, timeout)
        case "Redirect":
            return TwimlRedirect(text, _method(element, "method"))
        case "Pause":
            return TwimlPause(_seconds(element, "length", "1"))
        case "Reject":
            return TwimlReject(element.get("reason", "rejected"))
        case "Hangup":
            return TwimlHangup()
        case other:
            raise TwimlError(12200, f"this fake does not support <{other}>")


def _dial(element: ET.Element) -> TwimlDial:
    if [child.tag for child in element] not in ([], ["Number"], ["Sip"]):
        text = "<Dial> holds something other than one <Number> or <Sip>"
        raise TwimlError(12200, text)
    leg = element[0] if len(element) else element
    timeout = _seconds(element, "timeout", "30")
    if not RING_LIMITS[0] <= timeout <= RING_LIMITS[1]:
        raise TwimlError(13212, f"<Dial timeout> of {timeout:g} seconds")
    return TwimlDial(
        number="".join(element.itertext()).strip(),
        action=element.get("action"),
        method=_method(element, "method"),
        timeout=timeout,
        caller_id=element.get("callerId"),
        digits=leg.get("sendDigits", ""),
        screen_url=leg.get("url"),
    )


def _conference(dial: ET.Element) -> TwimlConference:
    noun = dial[0]
    name = (noun.text or "").strip()
    if not name:
        raise TwimlError(13221, "the <Conference> has no name")
    wait_url = noun.get("waitUrl")
    if wait_url and not wait_url.startswith(("/", "http://", "https://")):
        raise TwimlError(13233, "waitUrl is neither a URL nor empty")
    return TwimlConference(
        name=name,
        action=dial.get("action"),
        method=_method(dial, "method"),
        starts=_flag(noun, "startConferenceOnEnter", "true"),
        ends=_flag(noun, "endConferenceOnExit", "false"),
        beep=noun.get("beep", "true"),
        wait_url=wait_url,
    )


def _flag(element: ET.Element, attribute: str, default: str) -> bool:
    text = element.get(attribute, default)
    if text not in ("true", "false"):
        raise TwimlError(12200, f"{attribute}={text} is neither true nor false")
    return text == "true"


def _stream(connect: ET.Element) -> TwimlStream:
    if [child.tag for child in connect] != ["Stream"]:
        raise TwimlError(12200, "<Connect> holds something other than one <Stream>")
    element = connect[0]
    parameters = {}
    for child in element:
        name, value = child.get("name"), child.get("value")
        if child.tag != "Parameter" or name is None or value is None:
            raise TwimlError(12200, "<Stream> holds something other than <Parameter>")
        if len(name) + len(value) >= PARAMETER_LIMIT:
            raise TwimlError(12200, f"<Parameter> {name} is longer than 500 characters")
        parameters[name] = value
    return TwimlStream(
        url=element.get("url", ""),
        name=element.get("name"),
        track=element.get("track"),
        status_callback=element.get("statusCallback"),
        status_method=_method(element, "statusCallbackMethod"),
        parameters=parameters,
    )


def _method(element: ET.Element, attribute: str) -> Method:
    match element.get(attribute, "POST"):
        case "POST":
            return "POST"
        case "GET":
            return "GET"
        case other:
            raise TwimlError(12200, f"{attribute}={other} is neither GET nor POST")


def _seconds(element: ET.Element, attribute: str, default: str) -> float:
    try:
        return float(element.get(attribute, default))
    except ValueError:
        text = f"<{element.tag} {attribute}> is not a number"
        raise TwimlError(12200, text) from None
