"""The routes file: which agent takes which call, and the rules of that call.

YAML -> one frozen `Routes`, or all mistakes at once, each with its line. No message
contains a value that may be secret. Nothing here loads an agent or dials a number.

The classes are plain dataclasses, so that other code can create them without
validation; pydantic validates a file by their annotations.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    PlainValidator,
    Tag,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    with_config,
)
from pydantic_core import ErrorDetails

from bridge.agent.approvals import ApprovalRule
from bridge.agent.live import CallFacts, Transfer
from bridge.app import yaml_lines
from bridge.app.route_types import (
    FIXES,
    NAME,
    CodeName,
    CostLimit,
    DialDigits,
    DialTarget,
    Expression,
    Frozen,
    Given,
    Greeting,
    HttpsUrl,
    Keys,
    Language,
    Name,
    OnOff,
    ParameterName,
    PhoneNumber,
    Price,
    RingSeconds,
    RouteNotice,
    Seconds,
    SecondsOrOff,
    ShortSentenceOrOff,
    Spoken,
    Text,
    WaitingSound,
    Yes,
    as_list,
    is_off,
    keys_for,
    mistake,
    number,
    short_for,
    shown,
    whole_number,
)
from bridge.app.yaml_lines import Loc, NotYaml, Unquoted, YamlFile, YamlMistake
from bridge.audio import g711
from bridge.core.rules import SILENT, Prices
from bridge.model.session_settings import SessionSettings, SettingsMistakes
from bridge.privacy.redaction import Redaction

LONGEST_SECONDS = 4 * 60 * 60
"""Twilio ends longer calls: https://www.twilio.com/docs/voice/api/call-resource"""

_JSON = re.compile(
    r"true|false|-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17}([eE][-+]?[0-9]{1,2})?)?"
)
_NO_MAPPING = "is not a mapping: write `key: value` lines below it"


class RoutesError(ValueError):
    """The file has mistakes. The message has one line for each mistake."""

    def __init__(
        self,
        mistakes: Iterable[str],
        rest: "Routes | None" = None,
        incomplete: Iterable[str] = ("",),
    ) -> None:
        self.mistakes = tuple(mistakes)
        self.rest = rest or Routes()
        """The file without the keys that have mistakes, to find further ones in it."""
        self.incomplete = frozenset(incomplete)
        """Names of routes that lack such a key in `rest`."""
        super().__init__("\n".join(self.mistakes))


# --------------------------------------------------------------------------- the values


@dataclass(frozen=True, slots=True)
class HangUpAction:
    """Ends the call after the caller has heard all of the agent's audio."""


@dataclass(frozen=True, slots=True)
class TellAction:
    """Gives the agent a text."""

    text: str


KeyAction: TypeAlias = Transfer | HangUpAction | TellAction


@dataclass(frozen=True, slots=True)
class Silence:
    """When the caller is silent for `seconds`, the agent asks; `ask` times in all."""

    seconds: Seconds = 15.0
    ask: Annotated[int, whole_number(0, 20)] = 2
    tell: Text = SILENT
    """The text that the agent receives when it must ask."""


@dataclass(frozen=True, slots=True)
class Cost:
    prices: Prices
    limit: float | None = None
    """The call ends when its cost reaches this, in the unit of the prices."""


@dataclass(frozen=True, slots=True)
class ReportTarget:
    """The report of a call goes to a function, to a URL, or to both."""

    to: Given[CodeName] = None
    url: Given[HttpsUrl] = field(default=None, repr=False)
    """May contain a key."""

    def __post_init__(self) -> None:
        if self.to is None and self.url is None:
            raise mistake("has no target: write to, url or both below it")


@dataclass(frozen=True, slots=True)
class WhenFull:
    """The answer to a caller when no instance has capacity."""

    answer: Literal["busy", "queue", "fallback"]
    say: Given[Spoken] = None
    """Spoken for `queue`, and for `fallback` before the number is dialled. None: the
    bridge's own text. The text for `busy` is `Route.busy`."""

    def __post_init__(self) -> None:
        if self.answer == "busy" and self.say is not None:
            raise mistake("has say for busy: write it as busy, a key of the route")


def _cost(limit: float | None = None, **prices: float) -> Cost:
    return Cost(Prices(**prices), limit)


def _one_action(**actions: KeyAction) -> KeyAction:
    if len(actions) != 1:
        raise mistake("is not one action: write transfer, hang_up or tell")
    return next(iter(actions.values()))


def _redaction(redacted: tuple[str | re.Pattern[str], ...]) -> Redaction:
    words = {it: True for it in redacted if isinstance(it, str)}
    patterns = tuple(it for it in redacted if isinstance(it, re.Pattern))
    return Redaction(**words, patterns=patterns)


def _transfer(**given: Any) -> Transfer:
    transfer = Transfer(**given)
    if transfer.digits and not transfer.number.startswith("+"):
        raise mistake("has digits for a SIP URI: they can be pressed at phones only")
    return transfer


_PRICES = Prices.__struct_fields__
# All prices are required: a missing price would count as 0 and make the limit wrong.
_Cost: TypeAlias = Annotated[
    Cost, keys_for(_cost, _PRICES, **dict.fromkeys(_PRICES, Price), limit=CostLimit)
]
_Transfer: TypeAlias = Annotated[
    Transfer,
    keys_for(
        _transfer,
        ["number"],
        number=DialTarget,
        caller_id=PhoneNumber,
        ring_seconds=RingSeconds,
        description=Text,
        digits=DialDigits,
        whisper=Spoken,
        accept=Yes,
        warm=Yes,
    ),
    short_for("number"),
]
_Decision = Literal["approve", "reject"]
_Approval: TypeAlias = Annotated[
    ApprovalRule,
    keys_for(ApprovalRule, seconds=Seconds, default=_Decision, message=Text),
]
_HangUp = Annotated[Yes, AfterValidator(lambda _: HangUpAction())]
_Tell = Annotated[Text, AfterValidator(TellAction)]
_KeyAction: TypeAlias = Annotated[
    KeyAction, keys_for(_one_action, transfer=_Transfer, hang_up=_HangUp, tell=_Tell)
]
_Pattern = keys_for(lambda pattern: pattern, ["pattern"], pattern=Expression)
_Redacted: TypeAlias = Annotated[
    Annotated[Literal["cards", "keys", "digits"], Tag("<word>")]
    | Annotated[Any, _Pattern, Tag("<mapping>")],
    Discriminator(lambda it: "<mapping>" if isinstance(it, (dict, list)) else "<word>"),
]
_Redactions: TypeAlias = Annotated[
    tuple[_Redacted, ...],
    AfterValidator(_redaction),
    as_list(is_off, "name what to remove, or write off"),
]


def _session(value: object) -> SessionSettings:
    if not isinstance(value, dict):
        raise mistake(_NO_MAPPING)
    given = dict(value)
    if "extra" in given:
        given["extra"] = _as_json(given["extra"])
    tracing = given.get("tracing")
    if isinstance(tracing, dict) and "metadata" in tracing:
        given["tracing"] = {**tracing, "metadata": _as_json(tracing["metadata"])}
    return SessionSettings.read(given)


def _as_json(value: Any) -> Any:
    """For fields of unknown type: an unquoted scalar is read as JSON if possible."""
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    if isinstance(value, Unquoted) and _JSON.fullmatch(value):
        return json.loads(value)
    return value


def _nothing() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RouteDefaults:
    """The rules of a call. None: the setting of the deployment applies."""

    agent: Given[CodeName] = None
    greeting: Given[Greeting] = None
    """Empty: the caller speaks first."""
    notice: Given[RouteNotice] = None
    """Played before the greeting."""
    language: Given[Language] = None
    """BCP 47 language of the sentences that Twilio speaks."""
    session: Annotated[SessionSettings, PlainValidator(_session)] = field(
        default_factory=SessionSettings
    )
    fallback: Given[PhoneNumber] = None
    """Number that Twilio dials when the agent fails."""
    busy: Given[Spoken] = None
    when_full: Annotated[Given[WhenFull], short_for("answer")] = None
    sorry: Given[Spoken] = None
    keys: Frozen[Keys, _KeyAction] = field(default_factory=_nothing)
    """Keys pressed one after another -> the action."""
    key_pause_seconds: Annotated[float, number(0.2, 30)] = 2.0
    tone_ms: Annotated[int, whole_number(40, 1000)] = g711.KEY_MS
    """Length of the tones with which the agent presses keys."""
    tone_gap_ms: Annotated[int, whole_number(40, 1000)] = g711.KEY_GAP_MS
    key_stops_agent: OnOff = True
    """The agent stops at the first key; off: when the input is complete."""
    silence: Annotated[
        Given[Silence],
        WrapValidator(lambda it, read: None if is_off(it) else read(it)),
    ] = field(default_factory=Silence)
    """None: the agent does not ask a silent caller."""
    resume_after_noise: OnOff = True
    """After an interruption without words the agent goes on."""
    waiting_sound: Given[WaitingSound] = None
    """Played while the caller waits for the agent in silence."""
    one_moment: Given[ShortSentenceOrOff] = None
    """What Twilio says to a caller whose answer fails again and again; empty: off."""
    slow_tool_seconds: Given[SecondsOrOff] = None
    """After this much silence while a tool runs the agent says that it is not done."""
    longest_seconds: Annotated[float, number(10, LONGEST_SECONDS)] = float(
        LONGEST_SECONDS
    )
    cost: Given[_Cost] = None
    approval: _Approval = field(default_factory=ApprovalRule)
    tool_seconds: Seconds = 60.0
    transfers: Frozen[Name, _Transfer] = field(default_factory=_nothing)
    """Name -> a target to which the agent may transfer the call."""
    on_call: Given[CodeName] = None
    """A function that is called when the call begins."""
    report: Given[ReportTarget] = None
    redact: Annotated[
        Redaction, GetPydanticSchema(lambda _, make: make.generate_schema(_Redactions))
    ] = field(default_factory=Redaction)
    """The text to remove from all parts of the call that are stored or handed out."""


@dataclass(frozen=True, slots=True)
class Route(RouteDefaults):
    """One kind of call: which calls match, and their rules."""

    name: Name = ""
    """Empty: the defaults, for a call that matches no route."""
    numbers: Annotated[
        tuple[PhoneNumber, ...],
        Field(alias="number"),
        as_list(lambda it: it == "any", "write a number in it, or any instead"),
    ] = ()
    """The deployment's own numbers; empty: every number."""
    direction: Given[Literal["inbound", "outbound"]] = None
    """None: both."""
    when: Frozen[ParameterName, str] = field(default_factory=_nothing)
    """Parameters that the call must have, with these values."""

    def matches(self, facts: CallFacts) -> bool:
        return (
            (not self.numbers or facts.ours in self.numbers)
            and self.direction in (None, facts.direction)
            and all(facts.parameters.get(key) == it for key, it in self.when.items())
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """The content of one file. `load` makes it."""

    file: str = ""
    routes: tuple[Route, ...] = ()
    defaults: Route = field(default_factory=Route)
    warnings: tuple[str, ...] = ()
    """Values that will stop working, each as `FILE:LINE: key, reason and fix`."""
    lines: Mapping[tuple[str, str], int] = field(default_factory=_nothing, repr=False)
    """(route, key) -> line. Without a key: of the route. Without a route: of the
    defaults."""

    @classmethod
    def none(cls) -> "Routes":
        """No file: the settings of the deployment apply to every call."""
        return cls()

    def pick(self, facts: CallFacts) -> Route:
        """The first route that matches the call, else the defaults."""
        matching = (route for route in self.routes if route.matches(facts))
        return next(matching, self.defaults)

    def named(self, name: str) -> Route | None:
        return next((route for route in self.routes if route.name == name), None)

    def agents(self) -> dict[str, list[Route]]:
        """Each agent's name -> the routes and defaults that name it."""
        found: dict[str, list[Route]] = {}
        for route in (*self.routes, self.defaults):
            if route.agent is not None:
                found.setdefault(route.agent, []).append(route)
        return found

    def functions(self) -> dict[str, list[tuple[Route, str]]]:
        """Each function's name -> the routes and defaults that name it, each with the
        key: `on_call` or `report`."""
        found: dict[str, list[tuple[Route, str]]] = {}
        for route in (*self.routes, self.defaults):
            report = route.report.to if route.report is not None else None
            for key, name in (("on_call", route.on_call), ("report", report)):
                if name is not None:
                    found.setdefault(name, []).append((route, key))
        return found

    def where(self, route: Route, key: str = "") -> str:
        """`FILE:LINE` of the route's key, which may be in the defaults. If the file
        does not have the key: of the route itself."""
        places = ((route.name, key), ("", key), (route.name, ""), ("", ""))
        line = next((self.lines[it] for it in places if it in self.lines), 1)
        return f"{self.file}:{line}"


# --------------------------------------------------------------------- reading the file


# pydantic applies this configuration to the nested dataclasses too.
@with_config(ConfigDict(extra="forbid", defer_build=True))
@dataclass(frozen=True)
class _File:
    defaults: RouteDefaults = field(default_factory=RouteDefaults)
    routes: tuple[Route, ...] = ()


_READER = TypeAdapter(_File)


def load(path: str | Path) -> Routes:
    """Raises RoutesError with all mistakes of the file."""
    try:
        file = yaml_lines.read(Path(path))
        if not file.lines:
            raise NotYaml(1, "the file is empty: write `routes:` and a route below it")
    except NotYaml as error:
        raise RoutesError(_formatted(path, [error.mistake])) from None
    mistakes = [*file.mistakes, *_repeated_names(file)]
    try:
        content = _READER.validate_python(file.value)
    except ValidationError as error:
        mistakes += _mistakes(file, error.errors(include_url=False))
    if mistakes:
        rest, incomplete = _rest(str(path), file, [it.loc for it in mistakes])
        raise RoutesError(_formatted(path, mistakes), rest, incomplete)
    return _routes(str(path), file, content)


def _rest(name: str, file: YamlFile, wrong: list[Loc]) -> tuple[Routes, set[str]]:
    """The routes without the keys that have a mistake (`wrong`), and the names of those
    that lack one."""
    given = file.value if isinstance(file.value, dict) else {}
    listed = given.get("routes")
    value = {
        "defaults": _without(given.get("defaults"), ("defaults",), wrong),
        "routes": [
            _without(route, ("routes", position), wrong)
            for position, route in enumerate(listed if isinstance(listed, list) else [])
        ],
    }
    try:
        content = _READER.validate_python(value)
    except ValidationError:  # the mistake is not in the key that it is reported at
        return Routes(name), {""}
    rest = _routes(name, replace(file, value=value), content)
    named = enumerate(rest.routes)
    own = {it.name for at, it in named if any(("routes", at) == w[:2] for w in wrong)}
    if not any(it[:1] == ("defaults",) for it in wrong):
        return rest, own
    return rest, {it.name for it in (*rest.routes, rest.defaults)}


def _without(value: object, loc: Loc, wrong: list[Loc]) -> dict[str, Any]:
    """The mapping at `loc` without its keys that have a mistake."""
    keys = {it[len(loc)] for it in wrong if it[: len(loc)] == loc != it}
    mapping = value if isinstance(value, dict) else {}
    return {key: it for key, it in mapping.items() if key not in keys}


def _routes(name: str, file: YamlFile, content: _File) -> Routes:
    of_defaults = file.value.get("defaults", {})
    lines = {("", key): file.lines["defaults", key].key for key in of_defaults}
    warnings = [*_warnings(file, content.defaults, "defaults")]
    routes = []
    for position, route in enumerate(content.routes):
        warnings += _warnings(file, route, "routes", position)
        own = file.value["routes"][position]
        inherited = [key for key in of_defaults if key not in own]
        route = _merged(route, content.defaults, inherited)
        routes.append(replace(route, name=route.name or _unnamed(position)))
        lines[routes[-1].name, ""] = file.lines["routes", position].value
        for key in own:
            lines[routes[-1].name, key] = file.lines["routes", position, key].key
    return Routes(
        name,
        tuple(routes),
        _merged(Route(), content.defaults, of_defaults),
        tuple(_formatted(name, warnings)),
        MappingProxyType(lines),
    )


def _unnamed(position: int) -> str:
    return f"route-{position + 1}"


def _merged(route: Route, defaults: RouteDefaults, inherited: Iterable[str]) -> Route:
    route = replace(route, **{key: getattr(defaults, key) for key in inherited})
    session = route.session.over(defaults.session)
    return replace(route, session=_with_language(session, route.language))


def _with_language(session: SessionSettings, language: str | None) -> SessionSettings:
    """The transcription gets the route's language, unless the session has its own.

    A three-letter code is not passed on: OpenAI does not know all that Twilio speaks.
    """
    primary = (language or "").partition("-")[0].lower()
    heard = session.transcription
    if len(primary) != 2 or (heard is not None and (heard.language or heard.languages)):
        return session
    return session.over(SessionSettings.read({"transcription": {"language": primary}}))


# ------------------------------------------------------------------------- the mistakes


def _formatted(path: str | Path, found: Iterable[YamlMistake]) -> list[str]:
    messages = [(it.line, f"{_dotted(it.loc)} {it.text}".lstrip()) for it in found]
    return [f"{path}:{line}: {text}" for line, text in sorted(messages)]


def _dotted(loc: Loc) -> str:
    """Positions count from 1; inside a session they count from 0, as in the API."""
    steps = [step + 1 if isinstance(step, int) else step for step in loc]
    if "session" in loc:
        inside = loc.index("session")
        steps[inside:] = loc[inside:]
    return ".".join(map(str, steps))


def _repeated_names(file: YamlFile) -> Iterator[YamlMistake]:
    routes = file.value.get("routes") if isinstance(file.value, dict) else None
    first: dict[str, int] = {}
    for position, route in enumerate(routes if isinstance(routes, list) else []):
        if not isinstance(route, dict):
            continue
        loc: Loc = ("routes", position, *(["name"] if "name" in route else []))
        name, line = route.get("name", _unnamed(position)), file.lines[loc].value
        if not isinstance(name, str) or not re.search(NAME, name):
            continue
        if name in first:
            text = f"repeats the name {name} of line {first[name]}: change one of them"
            yield YamlMistake(line, loc, text)
        first.setdefault(name, line)


def _warnings(
    file: YamlFile, of: RouteDefaults, *loc: str | int
) -> Iterator[YamlMistake]:
    for path, text in of.session.warnings().items():
        yield file.at_key((*loc, "session", *path), text)


def _mistakes(file: YamlFile, errors: list[ErrorDetails]) -> Iterator[YamlMistake]:
    """The errors of pydantic, each with its line and with a text for the operator."""
    places = {it["loc"] for it in errors if it["loc"] not in file.lines}
    bad_keys = {loc[:-1] for loc in places if loc[-1] == "[key]"}
    lacking: dict[Loc, list[str]] = {}
    for error in errors:
        loc, context = error["loc"], error.get("ctx", {})
        place, cause = file.nearest(loc), context.get("error")
        if loc[-1:] == ("[key]",) and loc[:-1] in bad_keys:
            text = f"has {shown(loc[-2])} as a key: {FIXES[context['pattern']]}"
            yield YamlMistake(file.lines[place].key, place[:-1], text)
        elif not bad_keys.isdisjoint(loc[:end] for end in range(len(loc) + 1)):
            continue
        elif error["type"] in ("unexpected_keyword_argument", "unknown_key"):
            yield file.at_key(place, _unknown(loc, context.get("known")))
        elif error["type"] == "missing":
            lacking.setdefault(place, []).append(str(loc[-1]))
        elif isinstance(cause, SettingsMistakes):
            for path, text in cause.mistakes:
                yield file.at_key((*place, *path), text)
        else:
            yield YamlMistake(file.lines[place].value, place, _message(error, context))
    for place, keys in lacking.items():
        text = f"lacks {', '.join(keys)}: write it"
        yield YamlMistake(file.lines[place].value, place, text)


_CLASSES = {
    "defaults": RouteDefaults,
    "silence": Silence,
    "when_full": WhenFull,
    "report": ReportTarget,
}


def _unknown(loc: Loc, known: list[str] | None) -> str:
    """`known`: the keys allowed next to `loc`; None: the fields of its dataclass."""
    if known is None:
        above = _CLASSES.get(str(loc[-2]), Route) if len(loc) > 1 else _File
        known = ["number" if it.name == "numbers" else it.name for it in fields(above)]
    near = difflib.get_close_matches(str(loc[-1]).lower(), known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
    return f"is not a known key: {fix}"


def _message(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    given = error["input"]
    match error["type"]:
        case "mistake":
            return str(context["text"])
        case "dataclass_type" | "dict_type":
            return _NO_MAPPING
        case "tuple_type":
            return "is not a list: begin each route with `- name: ...`"
    if given is None:
        return "has no value: write one, or leave the key out"
    if not isinstance(given, str):
        return "is not a text: write one"
    if error["type"] == "literal_error":
        fix = f"write {context['expected'].replace(chr(39), '')}"
    else:
        fix = FIXES[context["pattern"]]
    return f"is {shown(given) if given.strip() else 'empty'}: {fix}"
