"""The routes file: which agent takes which call, and how that call is led.

YAML -> one frozen `Routes`, or all mistakes at once, each with its line. A value that
may be secret is never part of a message. Loads no agent, dials nobody.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

import twiml
from bridge.agent.approvals import ApprovalRule
from bridge.agent.live import RING_SECONDS, CallFacts, Transfer
from bridge.app import values
from bridge.app.yaml_lines import (
    Node,
    Read,
    Said,
    Told,
    Wrong,
    YamlFile,
    entries,
    fields,
    is_list,
    is_off,
    is_plain,
    is_text,
    line_at,
    line_of,
    number,
    plain,
    root_of,
    shown,
    some_text,
    text,
    whole_number,
    word_of,
)
from bridge.core.rules import SILENT, Prices
from bridge.model.session_settings import SessionSettings, SettingsMistakes
from bridge.privacy import redaction
from bridge.privacy.redaction import Redaction

LONGEST_SECONDS = 4 * 60 * 60
"""Twilio ends a call then, by itself: https://www.twilio.com/docs/voice/api/call-resource"""

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_KEYS = re.compile("[0-9*#A-D]{1,64}")
_PARAMETER = re.compile(r"\S(.*\S)?")
_LANGUAGE = re.compile("[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")  # of BCP 47 what is in use
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_REDACTED = ("cards", "keys", "digits")
_AS_JSON = frozenset({("extra",), ("tracing", "metadata")})


class RoutesError(ValueError):
    """The file describes no routes; the message has a line a mistake."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


# --------------------------------------------------------------------------- the values


@dataclass(frozen=True, slots=True)
class HangUp:
    """Ends the call once what was said has been heard."""


@dataclass(frozen=True, slots=True)
class Tell:
    """A word to the agent."""

    text: str


KeyAction = Transfer | HangUp | Tell


@dataclass(frozen=True, slots=True)
class Silence:
    """A caller who says nothing for `seconds` is asked, `ask` times in all."""

    seconds: float = 15.0
    ask: int = 2
    tell: str = SILENT
    """What the agent is told then."""


@dataclass(frozen=True, slots=True)
class Cost:
    prices: Prices
    limit: float | None = None
    """The call ends when it has cost so much, in the unit of the prices."""


@dataclass(frozen=True, slots=True)
class Report:
    """Where the report of a call goes: to a function, to a url, to both."""

    to: str | None = None
    """As an agent is named: `module:function`."""
    url: str | None = field(default=None, repr=False)
    """May well hold a key."""


@dataclass(frozen=True, slots=True)
class WhenFull:
    """How a caller is answered when no instance has a line."""

    answer: Literal["busy", "queue", "fallback"]
    say: str | None = None
    """While they wait, or before the fallback is dialled; None: the bridge's own. (What
    `busy` says has a key of its own.)"""


def _nothing() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of call. None: the file does not say, so the deployment's own counts."""

    name: str = ""
    """Empty: the defaults, for a call that fits no route."""
    numbers: tuple[str, ...] = ()
    """Our own, in E.164; none: every number."""
    direction: Literal["inbound", "outbound"] | None = None
    """None: both."""
    when: Mapping[str, str] = field(default_factory=_nothing)
    """Parameters of the call that must be equal."""
    agent: str | None = None
    greeting: str | None = None
    """Empty: the caller speaks first."""
    language: str | None = None
    """BCP 47, of the sentences that Twilio says."""
    session: SessionSettings = field(default_factory=SessionSettings)
    fallback: str | None = None
    """E.164; plan B dials it."""
    busy: str | None = None
    when_full: WhenFull | None = None
    sorry: str | None = None
    keys: Mapping[str, KeyAction] = field(default_factory=_nothing)
    """Keys pressed one after the other -> what they do."""
    key_pause_seconds: float = 2.0
    silence: Silence | None = field(default_factory=Silence)
    """None: a silent caller is left alone."""
    longest_seconds: float = float(LONGEST_SECONDS)
    cost: Cost | None = None
    approval: ApprovalRule = field(default_factory=ApprovalRule)
    tool_seconds: float = 60.0
    transfers: Mapping[str, Transfer] = field(default_factory=_nothing)
    """Whom the agent may put callers through to, by name."""
    on_call: str | None = None
    """Called with each call when it begins: `module:function`."""
    report: Report | None = None
    redact: Redaction = field(default_factory=Redaction)
    """What is taken out of all that is kept of the call, or handed out."""

    def matches(self, facts: CallFacts) -> bool:
        return (
            (not self.numbers or facts.ours in self.numbers)
            and self.direction in (None, facts.direction)
            and all(facts.parameters.get(key) == it for key, it in self.when.items())
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """What one file says. Made by `load`."""

    file: str = ""
    routes: tuple[Route, ...] = ()
    defaults: Route = field(default_factory=Route)
    warnings: tuple[str, ...] = ()
    """What works today but not for long, as `FILE:LINE: what, and what instead`."""
    lines: Mapping[tuple[str, str], int] = field(default_factory=_nothing, repr=False)
    """(route, key) -> line; the key is empty for the route itself."""

    @classmethod
    def none(cls) -> "Routes":
        """Without a file: every call is led as the deployment's settings say."""
        return cls()

    def pick(self, facts: CallFacts) -> Route:
        """The first route that fits the call, else the defaults."""
        fitting = (route for route in self.routes if route.matches(facts))
        return next(fitting, self.defaults)

    def named(self, name: str) -> Route | None:
        return next((route for route in self.routes if route.name == name), None)

    def agents(self) -> dict[str, list[Route]]:
        """Every agent that is named -> the routes it answers, the defaults among them
        where they name it."""
        found: dict[str, list[Route]] = {}
        for route in (*self.routes, self.defaults):
            if route.agent is not None:
                found.setdefault(route.agent, []).append(route)
        return found

    def functions(self) -> dict[str, list[tuple[Route, str]]]:
        """Every function that is named -> the routes, each with the key that names it:
        `on_call` or `report`."""
        found: dict[str, list[tuple[Route, str]]] = {}
        for route in (*self.routes, self.defaults):
            report = route.report.to if route.report is not None else None
            for key, name in (("on_call", route.on_call), ("report", report)):
                if name is not None:
                    found.setdefault(name, []).append((route, key))
        return found

    def where(self, route: Route, key: str = "") -> str:
        """`FILE:LINE` of what holds for this route, be it in the defaults; of the route
        itself where the file does not say it."""
        places = ((route.name, key), ("", key), (route.name, ""), ("", ""))
        line = next((self.lines[it] for it in places if it in self.lines), 1)
        return f"{self.file}:{line}"


def load(path: str | Path) -> Routes:
    """The routes of a file. RoutesError tells all that is wrong with it."""
    file = YamlFile(str(path))
    try:
        return _routes(file, root_of(Path(path)))
    except (Wrong, Told) as error:
        file.keep(error)
        raise RoutesError(file.mistakes) from None


# -------------------------------------------------------------------- one key's value


def _greeting(file: YamlFile, node: Node) -> str:
    if is_plain(node) and is_off(node):
        raise Wrong(node, 'is off: write "" if the caller is to speak first')
    return text(file, node)


def _spoken(file: YamlFile, node: Node) -> str:
    written = text(file, node)
    try:
        twiml.busy(written)
    except ValueError as error:
        raise Wrong(node, f"cannot be said: {error}") from None
    return written


def _when_full(file: YamlFile, node: Node) -> WhenFull:
    answer = word_of("busy", "queue", "fallback")
    if is_text(node):
        return WhenFull(answer(file, node))
    readers = {"answer": answer, "say": _spoken}
    said = fields(file, node, readers, required=("answer",)).values
    if said["answer"] == "busy" and "say" in said:
        raise Wrong(node, "has say beside busy: write it as busy, a key of the route")
    return WhenFull(**said)


def _phone(file: YamlFile, node: Node) -> str:
    try:
        return twiml.phone_number(text(file, node))
    except ValueError:
        raise Wrong(node, "is no phone number: write one as +14155550100") from None


def _numbers(file: YamlFile, node: Node) -> tuple[str, ...]:
    if not is_list(node):
        return () if text(file, node) == "any" else (_phone(file, node),)
    if not node.value:
        raise Wrong(node, "is an empty list: write a number in it, or any instead")
    found = []
    with file.whole():
        for position, each in enumerate(node.value, 1):
            with file.at(str(position)):
                found.append(_phone(file, each))
    return tuple(found)


def _code(file: YamlFile, node: Node) -> str:
    """Names an agent or a function."""
    written = text(file, node)
    try:
        return values.agent(written)
    except PydanticCustomError:
        form = "write package.module:name or path/to/file.py:name"
        raise Wrong(node, f"is {shown(written)}: {form}") from None


def _language(file: YamlFile, node: Node) -> str:
    written = text(file, node)
    if not _LANGUAGE.fullmatch(written):
        what = f"is {shown(written)}, no language: write one such as en-US"
        raise Wrong(node, what)
    return written


def _when(file: YamlFile, node: Node) -> Mapping[str, str]:
    return entries(file, node, _PARAMETER, "a parameter's name", text)


def _url(file: YamlFile, node: Node) -> str:
    """Its text is in no message: it may hold a key."""
    written = text(file, node)
    try:
        parts = urlsplit(written)
        complete = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        complete = False
    if not complete or not written.isprintable() or " " in written:
        raise Wrong(node, "is no complete url: write https://host/path")
    if parts.scheme != "https" and not (
        parts.scheme == "http" and parts.hostname in _LOOPBACK
    ):
        raise Wrong(node, "is not https: write https://host/path")
    return written


def _report(file: YamlFile, node: Node) -> Report:
    said = fields(file, node, {"to": _code, "url": _url}).values
    if not said:
        raise Wrong(node, "goes nowhere: write to, url or both below it")
    return Report(**said)


def _redact(file: YamlFile, node: Node) -> Redaction:
    if is_off(node):
        return Redaction()
    if not is_list(node):
        return _redaction(_redacted(file, node))
    if not node.value:
        raise Wrong(node, "is an empty list: write what is to go, or off")
    found = []
    with file.whole():
        for position, each in enumerate(node.value, 1):
            with file.at(str(position)):
                found.append(_redacted(file, each))
    return _redaction(*found)


def _redacted(file: YamlFile, node: Node) -> str | re.Pattern[str]:
    named: str | re.Pattern[str]
    if is_text(node):
        named = word_of(*_REDACTED)(file, node)
    else:
        said = fields(file, node, {"pattern": _pattern}, required=("pattern",))
        named = said.values["pattern"]
    return named


def _redaction(*named: str | re.Pattern[str]) -> Redaction:
    return Redaction(
        **{name: True for name in _REDACTED if name in named},
        patterns=tuple(it for it in named if isinstance(it, re.Pattern)),
    )


def _pattern(file: YamlFile, node: Node) -> re.Pattern[str]:
    try:
        return redaction.pattern(some_text(file, node))
    except ValueError as error:
        raise Wrong(node, str(error)) from None


def _silence(file: YamlFile, node: Node) -> Silence | None:
    if is_off(node):
        return None
    readers = {
        "seconds": _seconds(1, 3600),
        "ask": whole_number(0, 20),
        "tell": some_text,
    }
    return Silence(**fields(file, node, readers).values)


def _seconds(least: float, most: float) -> Read:
    return number(least, most, "seconds")


def _approval(file: YamlFile, node: Node) -> ApprovalRule:
    readers = {
        "seconds": _seconds(1, 3600),
        "default": word_of("approve", "reject"),
        "message": some_text,
    }
    return ApprovalRule(**fields(file, node, readers).values)


def _cost(file: YamlFile, node: Node) -> Cost:
    """All prices: one that is missing would be one of 0, and the limit a wrong one."""
    price = number(0, 100_000, "a price per million tokens")
    prices = Prices.__struct_fields__
    readers = {"limit": number(0.001, 100_000), **dict.fromkeys(prices, price)}
    said = fields(file, node, readers, required=prices).values
    limit = said.pop("limit", None)
    return Cost(Prices(**said), limit)


def _transfers(file: YamlFile, node: Node) -> Mapping[str, Transfer]:
    return entries(file, node, _NAME, "letters, digits, - and _", _transfer)


def _transfer(file: YamlFile, node: Node) -> Transfer:
    if is_text(node):
        return Transfer(_phone(file, node))
    readers = {
        "number": _phone,
        "caller_id": _phone,
        "ring_seconds": whole_number(RING_SECONDS[0], RING_SECONDS[-1]),
        "description": some_text,
    }
    said = fields(file, node, readers, required=("number",))
    return Transfer(**said.values)


def _keys(file: YamlFile, node: Node) -> Mapping[str, KeyAction]:
    return entries(file, node, _KEYS, "keys of 0-9 * #, in quotes", _action)


def _action(file: YamlFile, node: Node) -> KeyAction:
    readers = {"transfer": _transfer, "hang_up": _hang_up, "tell": _tell}
    actions: list[KeyAction] = list(fields(file, node, readers).values.values())
    if len(actions) != 1:
        raise Wrong(node, "is not one action: write transfer, hang_up or tell")
    return actions[0]


def _hang_up(file: YamlFile, node: Node) -> HangUp:
    if text(file, node).lower() not in ("true", "yes", "on"):
        raise Wrong(node, "is not true: write true, or leave the key out")
    return HangUp()


def _tell(file: YamlFile, node: Node) -> Tell:
    return Tell(some_text(file, node))


# -------------------------------------------------------------------------- the session


def _session(file: YamlFile, node: Node) -> SessionSettings:
    with file.whole():
        given = plain(file, node, _AS_JSON)
        if not isinstance(given, dict):
            raise Wrong(node, "is no mapping: write `key: value` lines below it")
        try:
            settings = SessionSettings.read(given)
        except SettingsMistakes as error:
            for path, what in error.mistakes:
                file.wrong(line_at(node, path), what, *path)
            raise Told from None
    for path, what in settings.warnings().items():
        file.warn(line_at(node, path), what, *path)
    return settings


# --------------------------------------------------------------------------- the routes

_DEFAULTS: dict[str, Read] = {
    "agent": _code,
    "greeting": _greeting,
    "language": _language,
    "session": _session,
    "fallback": _phone,
    "busy": _spoken,
    "when_full": _when_full,
    "sorry": _spoken,
    "keys": _keys,
    "key_pause_seconds": _seconds(0.2, 30),
    "silence": _silence,
    "longest_seconds": _seconds(10, LONGEST_SECONDS),
    "cost": _cost,
    "approval": _approval,
    "tool_seconds": _seconds(1, 3600),
    "transfers": _transfers,
    "on_call": _code,
    "report": _report,
    "redact": _redact,
}
_ROUTE: dict[str, Read] = {
    "number": _numbers,
    "direction": word_of("inbound", "outbound"),
    "when": _when,
    **_DEFAULTS,
}


def _defaults(file: YamlFile, node: Node) -> Said:
    return fields(file, node, _DEFAULTS)


def _list(file: YamlFile, node: Node) -> list[tuple[int, Said]]:
    """The routes, each with its line."""
    if not is_list(node):
        raise Wrong(node, "is no list: begin each route with `- name: ...`")
    found: list[tuple[int, Said]] = []
    named: dict[str, int] = {}
    readers = {"name": _name_unlike(named), **_ROUTE}
    with file.whole():
        for position, each in enumerate(node.value, 1):
            with file.at(str(position)):
                said = fields(file, each, readers)
                if "name" not in said.values:
                    said.values["name"] = _own_name(named, f"route-{position}", each)
                found.append((line_of(each), said))
    return found


def _name_unlike(others: dict[str, int]) -> Read:
    def read(file: YamlFile, node: Node) -> str:
        written = text(file, node)
        if not _NAME.fullmatch(written):
            raise Wrong(node, f"is {shown(written)}: write letters, digits, - and _")
        return _own_name(others, written, node)

    return read


def _own_name(others: dict[str, int], name: str, node: Node) -> str:
    line = line_of(node)
    if others.setdefault(name, line) != line:
        raise Wrong(line, f"{name} is the name in line {others[name]}, too: change one")
    return name


def _routes(file: YamlFile, root: Node | None) -> Routes:
    if root is None:
        raise Wrong(1, "the file is empty: write `routes:` and a route below it")
    said = fields(file, root, {"defaults": _defaults, "routes": _list}).values
    defaults: Said = said.get("defaults", Said({}, {}))
    lines = {("", key): line for key, line in defaults.lines.items()}
    made = []
    for line, route in said.get("routes", []):
        made.append(_route(route.values, defaults.values))
        lines[made[-1].name, ""] = line
        lines |= {(made[-1].name, key): at for key, at in route.lines.items()}
    return Routes(
        file.name,
        tuple(made),
        _route({}, defaults.values),
        file.warnings,
        MappingProxyType(lines),
    )


def _route(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> Route:
    said = {**defaults, **own}
    session: SessionSettings = own.get("session", SessionSettings()).over(
        defaults.get("session", SessionSettings())
    )
    said["session"] = _heard_in(session, said.get("language"))
    said["numbers"] = said.pop("number", ())
    return Route(**said)


def _heard_in(session: SessionSettings, language: str | None) -> SessionSettings:
    """What the caller says is taken to be in the route's language, too, unless the
    session says of itself in which.

    Three-letter codes are left out: Twilio speaks some that OpenAI does not know.
    """
    primary = (language or "").partition("-")[0].lower()
    heard = session.transcription
    if len(primary) != 2 or (heard is not None and (heard.language or heard.languages)):
        return session
    return session.over(SessionSettings.read({"transcription": {"language": primary}}))
