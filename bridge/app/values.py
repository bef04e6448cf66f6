"""The types of the settings: the text that each type accepts, its value, its errors.

Numbers and choices have pydantic's constraints; settings.py writes the messages for
their errors. The other types raise `wrong`. A message never repeats a value that may be
secret.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

import twiml
from bridge.app import recordings
from bridge.app.recordings import Sound
from bridge.core.rules import Prices
from bridge.picture.files import RECORD_PARTS, RecordPart
from bridge.records import standard_webhooks

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOCAL_MODEL = "local"
MAX_TOKENS = 2
"""Auth tokens of one account: two are valid while a token is rotated."""
MAX_FILE_BYTES = 64 * 1024
"""Size of a file that contains a secret."""
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]*)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: token
_REDIS_OPTIONS = {
    "db": "[0-9]+",
    "ssl_ca_certs": ".+",
    "ssl_certfile": ".+",
    "ssl_keyfile": ".+",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "true|false|True|False",
}


WRONG = "setting"
"""The type of the errors that `wrong` makes."""
OF_A_FILE = "NAME_FILE"
"""In a fix: stands for the variable that names the file of the setting."""


class Fault(NamedTuple):
    """What is wrong with a value, or with a part of it."""

    text: str
    fix: str
    line: int = 0
    """Of the part, from 1, if the value has several lines."""
    number: int = 0
    """Of the part, from 1."""


def wrong(text: str, fix: str) -> PydanticCustomError:
    return wrong_parts([Fault(text, fix)])


def wrong_parts(faults: list[Fault]) -> PydanticCustomError:
    """All faults of one value."""
    faults = sorted(faults, key=lambda it: it.number)
    told = "; ".join(f"{it.text}: {it.fix}" for it in faults)
    # The text is in the context, not in the template: a value may contain braces.
    return PydanticCustomError(WRONG, "{told}", {"told": told, "faults": faults})


def faults_of(error: PydanticCustomError) -> list[Fault]:
    """The faults of an error that `wrong` has made."""
    return list((error.context or {})["faults"])


def stripped(value: object) -> str:
    return str(value).strip()


def _form(pattern: str, text: str, fix: str) -> AfterValidator:
    """The whole value must match `pattern`. `{!r}` in `text` stands for the value."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise wrong(text.format(value), fix)
        return value

    return AfterValidator(check)


# --- numbers and choices ---


def _whole(value: object) -> int:
    # int() also accepts "1_0" and the digits of other scripts.
    if not re.fullmatch("-?[0-9]{1,9}", stripped(value)):
        raise PydanticKnownError("int_parsing")
    return int(stripped(value))


def _decimal(value: object) -> float:
    if not _AMOUNT.fullmatch(stripped(value)):
        raise PydanticKnownError("float_parsing")
    return float(stripped(value))


def _switch(value: object) -> bool:
    text = stripped(value).lower()
    if text not in _YES + _NO:
        raise wrong(f"is {text!r}, which is neither yes nor no", "set 1 or 0")
    return text in _YES


Whole = Annotated[int, BeforeValidator(_whole), Field(title="a whole number")]
Count = Annotated[Whole, Field(ge=1)]
Limit = Annotated[Whole, Field(ge=0)]
"""0: no limit."""
Bytes = Annotated[Whole, Field(ge=4096, le=16 << 20)]
Amount = Annotated[float, BeforeValidator(_decimal), Field(ge=0, title="an amount")]
Seconds = Annotated[Amount, Field(title="a number of seconds")]
PositiveSeconds = Annotated[Seconds, Field(ge=0.1)]
"""For a limit that would refuse every caller if it were 0."""
Switch = Annotated[bool, BeforeValidator(_switch)]
Lower = BeforeValidator(lambda value: stripped(value).lower())
"""Goes before a Literal, to ignore case and surrounding blanks."""

# --- text and secrets ---


def _word(value: object) -> str:
    text = stripped(value)
    if not text or not text.isprintable():
        raise wrong("is empty or has control characters", "set a plain name")
    return text


def agent(value: object) -> str:
    text = _word(value)
    if not re.fullmatch(r"\S.*:[A-Za-z_][A-Za-z0-9_.]*", text):
        raise wrong(f"is {text!r}", "set package.module:name or path/to/file.py:name")
    return text


def _secret(value: object) -> object:
    if isinstance(value, SecretStr):
        return value
    text = stripped(value)
    # A secret is sent in a header or is a key: a blank in it is always a paste mistake.
    if not text.isascii() or not text.isprintable() or " " in text:
        fault = "has a blank or a character that no key has"
        raise wrong(fault, "copy it again, without quotes")
    if is_path(text):
        fix = f"set {OF_A_FILE} to the path, or set the secret itself"
        raise wrong("is the path of a file, not a secret", fix)
    return text


# A secret may begin with a slash: base64 has slashes. It does not begin with one of
# these folders by chance.
_FOLDERS = (
    "app|config|data|dev|etc|home|mnt|opt|private|proc|root|run|secrets?|srv|tmp|usr|"
    "var|vault|Users|Volumes"
)
_PATH = re.compile(rf"(~|\.{{1,2}})/.+|file:/.+|/({_FOLDERS})/.+")


def is_path(text: str) -> bool:
    """Whether a text in the place of a secret is the path of a file."""
    return bool(_PATH.fullmatch(text)) or (text.startswith("/") and _exists(text))


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a path, or in a folder that may not be read
        return False


def _signing_secret(value: SecretStr) -> SecretStr:
    try:
        standard_webhooks.signing_key(value.get_secret_value())
    except ValueError:
        raise wrong(
            "is not a signing secret", f"set {standard_webhooks.FORM}"
        ) from None
    return value


def _phone_number(value: object) -> str:
    try:
        return twiml.phone_number(str(value))
    except ValueError:
        raise wrong("is not a phone number", _PHONE_FIX) from None


Text = Annotated[str, BeforeValidator(stripped)]
Word = Annotated[str, BeforeValidator(_word)]
Agent = Annotated[str, BeforeValidator(agent)]
_HOST_FIX = "set an address such as 0.0.0.0 or 127.0.0.1"
Host = Annotated[Word, _form("[^/ ]+", "is {!r}, which is not an address", _HOST_FIX)]
_PHONE_FIX = "set a number in E.164, such as +14155550100"
PhoneNumber = Annotated[str, BeforeValidator(_phone_number)]
_ACCOUNT_SID = "AC[0-9a-zA-Z]{32}"
_SID_FIX = "copy it from the Twilio console: AC and 32 characters"
AccountSid = Annotated[Text, _form(_ACCOUNT_SID, "is not an account SID", _SID_FIX)]
_REGION_FIX = "copy it from Twilio's documentation, such as ie1 and dublin"
Region = Annotated[
    Text, _form("[a-z0-9-]{2,32}", "is {!r}, which is no part of a host", _REGION_FIX)
]
"""A region or an edge of Twilio's."""
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
SigningSecret = Annotated[Secret, AfterValidator(_signing_secret)]


def content_of(path: str) -> str:
    """The text of a file that contains a secret, without blanks and line breaks behind
    it. A message shows the path, and never the content."""
    # The secret may stand in the place of the path; then it must not be shown.
    if not re.match(r"(~|\.{1,2})?/", path):
        fix = "set the path of a file, such as /run/secrets/name"
        raise wrong("does not begin with /, ./, ../ or ~/", fix)
    content = _bytes_of(path)
    if len(content) > MAX_FILE_BYTES:
        fix = f"a secret has at most {MAX_FILE_BYTES} bytes"
        raise wrong(f"names {path}, which is too large", fix)
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise wrong(f"names {path}, which is not UTF-8", "save it as UTF-8") from None
    if not text:
        fix = "write the secret into it, or unset the variable"
        raise wrong(f"names {path}, which is empty", fix)
    if text.lstrip()[0] in "\"'":
        fix = "remove the quotation marks from the file"
        raise wrong(f"names {path}, which begins with a quotation mark", fix)
    return text


def _bytes_of(path: str) -> bytes:
    """The beginning of the file, long enough to see whether the file is too large."""
    try:
        file = Path(path).expanduser()
        # A pipe would block the start, and could be read only once.
        if not file.exists() or file.is_file():
            with file.open("rb") as opened:
                return opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        fix = "create the file, or mount it into the container"
        raise wrong(f"names {path}, which does not exist", fix) from None
    except (OSError, ValueError, RuntimeError):  # RuntimeError: ~ without a home
        fix = "let the user of the bridge read it"
        raise wrong(f"names {path}, which cannot be read", fix) from None
    raise wrong(f"names {path}, which is not a file", "set the path of a file")


# --- URLs ---


def _split(url: str) -> SplitResult:
    """The parts of `url`; only the scheme if the URL is malformed."""
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and not any(character <= " " for character in url)
    except ValueError:  # a port that is not a number, a broken IPv6 address
        usable = False
    return parts if usable else urlsplit(url.partition(":")[0] + ":")


def _url(url: str, example: str, schemes: tuple[str, ...], fault: str) -> str:
    fix, parts = f"set a URL such as {example}", _split(url)
    if not parts.hostname:
        raise wrong("is not a complete URL", fix)
    if parts.username is not None or parts.password is not None:
        raise wrong("has a user or password in it", fix)
    if schemes and (parts.scheme not in schemes or parts.fragment):
        raise wrong(fault, f"{fix} (without a #)")
    return url


def _http_url(url: str) -> str:
    fault = "is not an http or https URL"
    return _url(url, "https://example.com/calls", ("http", "https"), fault)


def _model_url(url: str) -> str:
    example = "wss://host/v1/realtime, or `local` for the bundled fake"
    fault = "is neither a WebSocket URL nor `local`"
    return url if url == LOCAL_MODEL else _url(url, example, ("ws", "wss"), fault)


_URL_PATH = re.compile("(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")
"""A path without `.` and `..`, which proxies and clients remove."""


def _public_url(url: str) -> str:
    example = "https://bridge.example.com"
    parts = urlsplit(_url(url, example, (), ""))
    local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if parts.scheme != "https" and not local:
        fix = f"set the https origin that Twilio calls, such as {example}"
        raise wrong(f"begins with {parts.scheme}://, but Twilio needs TLS", fix)
    if not _URL_PATH.fullmatch(parts.path) or "?" in url or "#" in url:
        fault = "has a query, or a path that is more than names and slashes"
        raise wrong(fault, f"set the origin, such as {example}, and the proxy's path")
    if parts.path.rstrip("/").endswith(("/voice", "/voice/next", "/call-status")):
        raise wrong("has the path of a webhook", f"set the origin, such as {example}")
    return url.removesuffix("/")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _redis_url(value: object) -> str:
    """The URL may contain a password, so a message never shows any part of it."""
    url = stripped(value.get_secret_value() if isinstance(value, SecretStr) else value)
    fix = "set a URL such as redis://:password@host:6379/0"
    parts = _split(url)
    place = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise wrong("is not a Redis URL", f"{fix}, rediss:// (TLS) or unix://")
    if not place or parts.fragment:
        escaped = "in a password, write / # ? @ as %2F %23 %3F %40"
        raise wrong("is not a complete URL", f"{fix}; {escaped}")
    if parts.scheme != "unix" and not re.fullmatch("/?|/[0-9]+", parts.path):
        raise wrong("has a path that is not the number of a database", fix)
    for name, content in parse_qsl(parts.query, keep_blank_values=True):
        usable = parts.scheme == "rediss" or not name.startswith("ssl_")
        if not usable or not re.fullmatch(_REDIS_OPTIONS.get(name, "(?!)"), content):
            known = f"{', '.join(_REDIS_OPTIONS)}; the ssl_ ones only with rediss://"
            fault = "has an option that does not exist, or a wrong value"
            raise wrong(fault, f"the options are {known}")
    return url


HttpUrl = Annotated[Text, AfterValidator(_http_url)]
PublicUrl = Annotated[Text, AfterValidator(_public_url)]
ModelUrl = Annotated[Text, AfterValidator(_model_url)]
RedisUrl = Annotated[SecretStr, BeforeValidator(_redis_url)]

# --- lists and tables ---


def _comma_separated(value: object) -> list[Any]:
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    return [part for part in parts if stripped(part)]


def _allowing(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    if prefixes and all(prefix.startswith("!") for prefix in prefixes):
        raise wrong("allows no number", "set what is allowed, such as +1,!+1900")
    return prefixes


def _network(value: object) -> IpNetwork:
    text = stripped(value)
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        fix = "set addresses or networks such as 127.0.0.1,10.0.0.0/8"
        fault = f"has {text!r}, which is not an address or network"
        raise wrong(fault, fix) from None


class _Entry(NamedTuple):
    """One `name: value` of a list."""

    name: str
    value: object
    number: int
    """From 1; messages show it in place of the value."""
    line: int
    """Of the value, from 1; 0 if it has only one."""

    def fault(self, text: str, fix: str) -> Fault:
        return Fault(f"{text} in entry {self.number}", fix, self.line, self.number)


def _headers(value: object) -> dict[str, str]:
    """A JSON object or `Name: value; Name: value`; a line break is as good as a
    semicolon. A message never shows a value."""
    fix = 'set `Name: value; Name: value` or {"Name": "value"}'
    found: dict[str, str] = {}
    entries, faults = _entries(value, fix)
    for it in entries:
        name, content = it.name, it.value
        if not isinstance(content, str) or not _HEADER_NAME.fullmatch(name):
            faults.append(it.fault("has a name or value that no header can have", fix))
        elif not content.strip().isprintable():
            faults.append(it.fault("has control characters", fix))
        else:
            found[name] = content.strip()
    if faults:
        raise wrong_parts(faults)
    return found


def _entries(value: object, fix: str) -> tuple[list[_Entry], list[Fault]]:
    """The entries, and a fault for each part that is none."""
    pairs: list[tuple[str, object]] | None = None
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif stripped(value).startswith("{"):
        try:
            pairs = list(json.loads(stripped(value)).items())
        except (ValueError, RecursionError):
            return [], [Fault("is not a valid JSON object", fix)]
    if pairs is not None:
        named = enumerate(pairs, 1)
        return [_Entry(key.strip(), it, n, 0) for n, (key, it) in named], []
    return _written_entries(str(value), fix)


def _written_entries(text: str, fix: str) -> tuple[list[_Entry], list[Fault]]:
    entries: list[_Entry] = []
    faults: list[Fault] = []
    several = "\n" in text.strip()
    number = 0
    for line, row in enumerate(text.split("\n"), 1):
        for part in filter(str.strip, row.split(";")):
            number += 1
            name, colon, content = part.partition(":")
            entry = _Entry(name.strip(), content, number, line if several else 0)
            if colon:
                entries.append(entry)
            else:
                faults.append(entry.fault("has no colon", fix))
    return entries, faults


def _shared_keys(value: object) -> dict[str, str]:
    fix = "set `webhooks_sharedkey_...: secret; ...`"
    entries, faults = _entries(value, fix)
    found: dict[str, str] = {}
    for it in entries:
        secret = it.value.strip() if isinstance(it.value, str) else ""
        named = re.fullmatch("[A-Za-z0-9_-]+", it.name)
        if not named or not secret or not secret.isascii() or not secret.isprintable():
            faults.append(it.fault("has an id or secret that no key has", fix))
        elif is_path(secret):
            path_fix = f"set {OF_A_FILE} to a file with all keys, or set the secret"
            faults.append(it.fault("has the path of a file", path_fix))
        found[it.name] = secret
    if faults:
        raise wrong_parts(faults)
    return found


def _accounts(value: object) -> dict[str, tuple[str, ...]]:
    """`AC...: token; AC...: token, other token`. A message never shows any part: what
    stands in the place of a SID may be a token."""
    if isinstance(value, Mapping):  # made in code
        return dict(value)
    fix = "set `AC...: its-token; AC...: its-token, its-other-token`"
    found: dict[str, tuple[str, ...]] = {}
    entries, faults = _entries(value, fix)
    for it in entries:
        try:
            tokens = _tokens(it.value)
        except PydanticCustomError as error:
            faults += _in_entry(error, it)
            continue
        faults += _account_faults(it, tokens, found, fix)
        found.setdefault(it.name, tokens)
    if faults:
        raise wrong_parts(faults)
    return found


def _in_entry(error: PydanticCustomError, entry: _Entry) -> list[Fault]:
    return [entry.fault(it.text, it.fix) for it in faults_of(error)]


def _tokens(value: object) -> tuple[str, ...]:
    text = value if isinstance(value, str) else ""
    return tuple(str(_secret(it)) for it in text.split(",") if it.strip())


def _account_faults(
    entry: _Entry,
    tokens: tuple[str, ...],
    others: Mapping[str, tuple[str, ...]],
    fix: str,
) -> list[Fault]:
    """What is wrong with an account and its tokens, beside those before it."""
    copy = "copy each token from the page of its account"
    if not re.fullmatch(_ACCOUNT_SID, entry.name):
        return [entry.fault("has no account SID", fix)]
    if entry.name in others:
        again = "separate its tokens by a comma"
        return [entry.fault("names an account twice, the second time", again)]
    if not tokens:
        return [entry.fault("has an account without its token", fix)]
    if len(tokens) > MAX_TOKENS:
        return [entry.fault("has an account with more than two tokens", fix)]
    if any({*tokens} & {*given} for given in others.values()):
        return [entry.fault("has a token of another account", copy)]
    return []


def _prices(value: object) -> Prices:
    """`input_text=4, input_audio=32, ...`. A missing price is a mistake: it would count
    as 0, and every cost limit would be wrong."""
    if isinstance(value, Prices):
        return value
    names = Prices.__struct_fields__
    fix = "set " + ", ".join(f"{name}=..." for name in names) + " (per million tokens)"
    found: dict[str, float] = {}
    for part in filter(str.strip, str(value).split(",")):
        name, _, price = (piece.strip() for piece in part.partition("="))
        if name not in names or not _AMOUNT.fullmatch(price):
            raise wrong("has a part that is not a price", fix)
        found[name] = float(price)
    if missing := [name for name in names if name not in found]:
        raise wrong(f"lacks {', '.join(missing)}", fix)
    return Prices(**found)


_PREFIX = _form(
    r"!?\+[1-9][0-9]{0,13}",
    "has a part that no phone number begins with",
    "set prefixes such as +1,!+1900,+4930",
)
Prefixes = Annotated[
    tuple[Annotated[Text, _PREFIX], ...],
    BeforeValidator(_comma_separated),
    AfterValidator(_allowing),
]
"""Beginnings of phone numbers. `!` excludes numbers that another prefix allows."""
_PARAMETER = _form(
    r"[A-Za-z][A-Za-z0-9_.-]{0,80}\*?",
    "has a part that is no name of a parameter",
    "set names such as default,tenant,SipHeader_*, or none",
)
PARAMETERS = (
    *("CallerCity", "CallerCountry", "CallerName", "CallerState", "CallerZip"),
    *("CalledVia", "ForwardedFrom", "ParentCallSid", "SipDomain", "SipHeader_*"),
    *("StirVerstat", "custom"),
)


def _with_default(names: tuple[str, ...]) -> tuple[str, ...]:
    if names == ("none",):
        return ()
    others = tuple(it for it in names if it != "default")
    return others if len(others) == len(names) else (*PARAMETERS, *others)


def _record_parts(value: object) -> frozenset[RecordPart]:
    if isinstance(value, frozenset):
        return value
    found = {it.strip() for it in stripped(value).lower().split(",") if it.strip()}
    if found == {"off"}:
        return frozenset()
    fix = f"set {', '.join(RECORD_PARTS)}, some of them, or off"
    if not found:
        raise wrong("names nothing", fix)
    for it in sorted(found - {*RECORD_PARTS}):
        raise wrong(f"has {it!r}, which is nothing that can be kept", fix)
    return frozenset(it for it in RECORD_PARTS if it in found)


RecordParts = Annotated[frozenset[RecordPart], PlainValidator(_record_parts)]
"""What is kept of a call at its end."""
ParameterNames = Annotated[
    tuple[Annotated[Text, _PARAMETER], ...],
    BeforeValidator(_comma_separated),
    AfterValidator(_with_default),
]
"""Names of parameters; `*` at the end stands for any rest. `custom`: what a client of
Twilio's Voice SDK sends. `default`: PARAMETERS. `none`: no parameter."""
Networks = Annotated[
    tuple[Annotated[IpNetwork, BeforeValidator(_network)], ...],
    BeforeValidator(_comma_separated),
]
"""Addresses and networks (CIDR)."""
Headers = Annotated[dict[str, str], BeforeValidator(_headers)]
SharedKeys = Annotated[dict[str, str], BeforeValidator(_shared_keys)]
"""The ID of a Twilio key -> its secret; written in the same form as headers."""
Accounts = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_accounts)]
"""The SID of a Twilio account -> its one or two auth tokens."""
PriceTable = Annotated[Prices, BeforeValidator(_prices)]

# --- paths ---


def _path(text: str, fix: str, refused: Callable[[Path], bool]) -> BeforeValidator:
    def check(value: object) -> Path:
        try:
            path = Path(stripped(value)).expanduser()
            path.exists()
        except RuntimeError:
            fault = "names the home folder of an unknown user"
            raise wrong(fault, "write the whole path") from None
        except (
            ValueError,
            OSError,
        ):  # a null character, too long, an unreadable folder
            raise wrong("is not a usable path", "write another path") from None
        if refused(path):
            raise wrong(text, fix)
        return path

    return BeforeValidator(check)


def _waiting_sound(value: object) -> Sound:
    if isinstance(value, Sound):
        return value
    text = stripped(value)
    try:
        return recordings.waiting_sound(text)
    except ValueError as error:
        fault, _, fix = str(error).partition(": ")
        raise wrong(f"is {text!r}, which {fault}", f"{fix}, tone or off") from None


WaitingSound = Annotated[Sound, PlainValidator(_waiting_sound)]
_FOLDER_FIX = "set a folder; a missing folder is created"
File = Annotated[
    Path, _path("names a folder", "set the path of a file", lambda it: it.is_dir())
]
Folder = Annotated[
    Path,
    _path("names a file", _FOLDER_FIX, lambda it: it.exists() and not it.is_dir()),
]
