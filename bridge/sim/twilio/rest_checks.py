"""The checks of requests to the fake REST API; errors and codes are Twilio's."""

import math
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from aiohttp import web

from bridge.sim.twilio.markup import Method

EVENTS = ("initiated", "ringing", "answered", "completed")
METHODS: dict[str, Method] = {"GET": "GET", "POST": "POST"}
TWIML_LIMIT = 4000  # characters, error 32018
# https://www.twilio.com/docs/voice/api/call-resource: SendDigits
KEYS = re.compile(r"[0-9A-Da-d*#wW]{1,32}")
# https://www.twilio.com/docs/voice/answering-machine-detection: parameter -> range
DETECTION_RANGES = {
    "MachineDetectionTimeout": (3, 59),
    "MachineDetectionSpeechThreshold": (1000, 6000),
    "MachineDetectionSpeechEndThreshold": (500, 5000),
    "MachineDetectionSilenceTimeout": (2000, 10000),
}


class RefusedError(Exception):
    """The request is answered with this Twilio error."""

    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.answer = {
            "code": code,
            "message": text,
            "more_info": f"https://www.twilio.com/docs/errors/{code}",
            "status": status,
        }
        self.status = status


def check_instructions(asked: Mapping[str, str]) -> None:
    """Check the call's Url or Twiml parameter."""
    if "Url" in asked:
        check_url(asked["Url"], 21205, "Url")
    elif "Twiml" not in asked:
        raise RefusedError(400, 21205, "Url parameter is required.")
    elif len(asked["Twiml"]) > TWIML_LIMIT:
        raise RefusedError(400, 32018, "Twiml is longer than 4000 characters")
    method(asked, "Method")


def check_callbacks(asked: Mapping[str, str], events: Sequence[str]) -> None:
    for name in ("StatusCallback", "AsyncAmdStatusCallback"):
        if name in asked:
            # The error code of a bad callback URL is undocumented; 21205 is the Url's.
            check_url(asked[name], 21205, name)
        method(asked, f"{name}Method")
    # A list in one parameter ("initiated ringing") is not a valid event.
    if wrong := [event for event in events if event not in EVENTS]:
        raise RefusedError(400, 21626, f"Invalid 'StatusCallbackEvent' {wrong[0]!r}")


def check_detection(asked: Mapping[str, str]) -> None:
    mode, is_async = asked.get("MachineDetection"), asked.get("AsyncAmd", "false")
    if mode not in (None, "Enable", "DetectMessageEnd") or (
        is_async not in ("true", "false")
    ):
        raise RefusedError(400, 21234, "Invalid Machine Detection configuration value")
    for name, limits in DETECTION_RANGES.items():
        check_number(asked, name, limits, 21234)
    if is_async == "true" and "AsyncAmdStatusCallback" not in asked:
        # A live account only gets a warning in the debugger, and the result never
        # comes.
        raise RefusedError(400, 21262, "No AMD status callback URL provided")


def check_url(url: str, code: int, name: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedError(400, code, f"{name} is not a valid URL: {url}")


def check_number(
    asked: Mapping[str, str], name: str, limits: tuple[int, int], code: int
) -> None:
    text = asked.get(name)
    if text is None:
        return
    value = int(text) if text.isdecimal() else math.nan
    if not limits[0] <= value <= limits[1]:
        raise RefusedError(400, code, f"Invalid {name}: {text}")


def method(asked: Mapping[str, str], name: str) -> Method:
    method = METHODS.get(asked.get(name, "POST"))
    if method is None:
        raise RefusedError(400, 21200, f"{name} is neither GET nor POST")
    return method


def not_found(request: web.Request) -> RefusedError:
    text = f"The requested resource {request.path} was not found"
    return RefusedError(404, 20404, text)


def check_digits(asked: Mapping[str, str]) -> None:
    # The error code of bad SendDigits is undocumented; 21200 is the resource's own.
    if "SendDigits" in asked and not KEYS.fullmatch(asked["SendDigits"]):
        raise RefusedError(400, 21200, "SendDigits has a character that is no key")
