"""The types of the values in a routes file: the text that each type accepts, its error.

They know neither the keys of a route nor the file. routes.py uses them.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    PlainValidator,
    Tag,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, core_schema

import twiml
from bridge.agent.live import RING_SECONDS
from bridge.app import recordings, values
from bridge.app.recordings import Sound
from bridge.app.yaml_lines import Unquoted
from bridge.privacy import redaction

_OFF = frozenset({"off", "no", "false", "none"})
_ON = frozenset({"on", "yes", "true"})
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DECIMAL = r"[0-9]{1,9}(\.[0-9]{1,9})?"

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")


def mistake(text: str) -> PydanticCustomError:
    # The text is in the context, not in the template: it may contain braces.
    return PydanticCustomError("mistake", "{text}", {"text": text})


def shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def is_off(value: object) -> bool:
    return isinstance(value, str) and value.lower() in _OFF


def _parsed_by(parse: Callable[[str], object], text: str) -> AfterValidator:
    """`parse` raises ValueError; `text` may contain {shown} and {error}."""

    def parsed(value: str) -> object:
        try:
            return parse(value)
        except ValueError as error:
            raise mistake(text.format(shown=shown(value), error=error)) from None

    return AfterValidator(parsed)


def number(
    least: float, most: float, unit: str = "seconds", form: str = _DECIMAL
) -> BeforeValidator:
    """`form` is stricter than pydantic, which also takes `1e1`, `nan` and `1_0`."""

    def parsed(value: object) -> object:
        if not isinstance(value, str):
            return value
        if re.fullmatch(form, value) and least <= float(value) <= most:
            return value
        fix = f"write {unit} from {least:g} to {most:g}"
        raise mistake(f"is {shown(value)}: {fix}")

    return BeforeValidator(parsed)


def _on_or_off(value: object) -> object:
    if is_off(value):
        return False
    if isinstance(value, str) and value.lower() in _ON:
        return True
    raise mistake(f"is {shown(value)}: write on or off")


OnOff = Annotated[bool, BeforeValidator(_on_or_off)]


def whole_number(least: int, most: int) -> BeforeValidator:
    return number(least, most, "a whole number", "[0-9]{1,9}")


def keys_for(
    make: Callable[..., object], required: Collection[str] = (), **types: Any
) -> GetPydanticSchema:
    """A mapping with these keys; `make` turns it into the value."""

    def refuse(_: object) -> None:
        raise PydanticCustomError("unknown_key", "Unknown key", {"known": list(types)})

    def schema(_: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        known = {
            key: core_schema.typed_dict_field(
                handler.generate_schema(kind), required=key in required
            )
            for key, kind in types.items()
        }
        unknown = core_schema.no_info_plain_validator_function(refuse)
        form = core_schema.typed_dict_schema(
            known, extras_schema=unknown, extra_behavior="allow"
        )
        return core_schema.no_info_after_validator_function(
            lambda given: make(**given), form
        )

    return GetPydanticSchema(schema)


def short_for(key: str) -> BeforeValidator:
    """Accepts `text` as a short form of `{key: text}`."""
    return BeforeValidator(
        lambda it: {key: it} if it is None or isinstance(it, str) else it
    )


def as_list(is_empty: Callable[[object], bool], fix: str) -> BeforeValidator:
    """Accepts an entry without a list as a list of one entry, and a text for which
    `is_empty` is true as an empty list. A written empty list is a mistake."""

    def entries(value: object) -> object:
        if value == []:
            raise mistake(f"is an empty list: {fix}")
        if isinstance(value, list):
            return value
        return [] if is_empty(value) else [value]

    return BeforeValidator(entries)


@dataclass(frozen=True, slots=True)
class Notice:
    """A recording that every call begins with, and that cannot be interrupted."""

    file: str
    words: str


@dataclass(frozen=True, slots=True)
class RouteGreeting:
    """A greeting with more than an instruction for the agent."""

    text: str = ""
    """The instruction; empty: a recording is the greeting."""
    file: str = ""
    words: str = ""
    interruptible: bool = True


def _route_greeting(**given: Any) -> RouteGreeting:
    if ("text" in given) == ("file" in given):
        raise mistake("is not one greeting: write text, or file and words")
    if ("file" in given) != ("words" in given):
        raise mistake("has a file or words alone: write both, so the agent knows both")
    return RouteGreeting(**given)


def _wav_file(path: str) -> str:
    try:
        recordings.recording(path)
    except ValueError as error:
        raise mistake(f"is {shown(path)}, which {error}") from None
    return path


def _greeting(value: object) -> object:
    if isinstance(value, Unquoted) and is_off(value):
        raise mistake('is off: write "" to let the caller speak first')
    return value


def _https_url(text: str) -> str:
    # urlsplit raises ValueError for a broken IPv6 address, and `port` raises it if the
    # port is not a number.
    parts = urlsplit(text)
    is_complete = bool(parts.hostname) and parts.port != 0
    is_safe = parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in _LOOPBACK
    )
    if not (is_complete and is_safe and text.isprintable()) or " " in text:
        raise ValueError
    return text


def _waiting_sound(value: object) -> Sound:
    if not isinstance(value, str):
        raise mistake("is not a text: write tone, off, or the path of a WAV file")
    try:
        return recordings.waiting_sound(value)
    except ValueError as error:
        raise mistake(f"is {shown(value)}, which {error}, or tone, or off") from None


MAX_SENTENCE_CHARS = 80
"""Of a sentence between two streams: the call waits 10 s for the second one."""


def _short(text: str) -> str:
    if len(text) > MAX_SENTENCE_CHARS:
        raise mistake(f"is too long: write at most {MAX_SENTENCE_CHARS} characters")
    return text


FIXES: dict[str, str] = {}
"""Pattern -> the fix for a text that does not match."""


def _pattern(pattern: str, fix: str) -> Any:
    FIXES[pattern] = fix
    return Field(pattern=pattern)


NAME = "^[A-Za-z0-9_-]{1,64}$"
_LANGUAGE = "^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"  # the part of BCP 47 that is in use
_A_PHONE_NUMBER = "is not a phone number: write it like +14155550100"
_A_TARGET = "is not a phone number: write it like +14155550100 or sip:user@host"
_DIAL_DIGITS = "is {shown}: write up to 32 of 0-9 # * w W"
_A_CODE_NAME = "is {shown}: write package.module:name or path/to/file.py:name"
# Without {shown}: the URL may contain a key.
_A_URL = "is not a complete https URL: write https://host/path"

Name = Annotated[str, _pattern(NAME, "write letters, digits, - and _")]
Keys = Annotated[str, _pattern("^[0-9*#A-D]{1,64}$", "write 0-9 * #, in quotes")]
ParameterName = Annotated[str, _pattern(r"^\S(.*\S)?$", "write a parameter's name")]
Language = Annotated[str, _pattern(_LANGUAGE, "write a language such as en-US")]
Text = Annotated[str, _pattern(r"\S", "write a text, or leave the key out")]
Yes = Annotated[
    str,
    _pattern("^(?i:true|yes|on)$", "write true, or leave the key out"),
    AfterValidator(lambda _: True),
]
PhoneNumber = Annotated[str, _parsed_by(twiml.phone_number, _A_PHONE_NUMBER)]
DialTarget = Annotated[str, _parsed_by(twiml.dial_target, _A_TARGET)]
"""A phone number, or a SIP URI."""
DialDigits = Annotated[str, _parsed_by(twiml.dial_digits, _DIAL_DIGITS)]
CodeName = Annotated[str, _parsed_by(values.agent, _A_CODE_NAME)]
HttpsUrl = Annotated[str, _parsed_by(_https_url, _A_URL)]
Spoken = Annotated[
    str, _parsed_by(lambda it: twiml.busy(it) and it, "cannot be said: {error}")
]
ShortSentenceOrOff = Annotated[
    Annotated[Spoken, AfterValidator(_short)],
    WrapValidator(lambda it, read: "" if is_off(it) else read(it)),
]
"""Empty: off."""
Expression = Annotated[str, _parsed_by(redaction.pattern, "{error}")]
WaitingSound = Annotated[Sound, PlainValidator(_waiting_sound)]
_GreetingText = Annotated[str, BeforeValidator(_greeting)]
WavFile = Annotated[str, AfterValidator(_wav_file)]
Greeting = Annotated[
    Annotated[_GreetingText, Tag("<text>")]
    | Annotated[
        RouteGreeting,
        keys_for(
            _route_greeting,
            text=_GreetingText,
            file=WavFile,
            words=Text,
            interruptible=OnOff,
        ),
        Tag("<mapping>"),
    ],
    Discriminator(lambda it: "<mapping>" if isinstance(it, dict) else "<text>"),
]
RouteNotice = Annotated[
    Notice, keys_for(Notice, ["file", "words"], file=WavFile, words=Text)
]
Seconds = Annotated[float, number(1, 3600)]
SecondsOrOff = Annotated[
    Seconds, WrapValidator(lambda it, read: 0.0 if is_off(it) else read(it))
]
"""0: off."""
RingSeconds = Annotated[int, whole_number(RING_SECONDS[0], RING_SECONDS[-1])]
Price = Annotated[float, number(0, 100_000, "a price per million tokens")]
CostLimit = Annotated[float, number(0.001, 100_000, "a number")]

Given = Annotated[T | None, GetPydanticSchema(lambda of, make: make(of)["schema"])]
"""None only where the file does not have the key: a key needs a value."""
Frozen = Annotated[Mapping[K, V], AfterValidator(MappingProxyType)]
