"""One variable's text -> its value, or what is wrong with it and how to mend it.

Each function is one kind of value; `settings.py` says which variable is which. What
may hold a secret (urls, headers, keys) is never repeated in a message.
"""

import base64
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import SecretStr
from pydantic_core import PydanticCustomError

from bridge.core.rules import Prices

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOCAL_MODEL = "local"
_YES, _NO = (
    frozenset({"1", "true", "yes", "on"}),
    frozenset({"0", "false", "no", "off"}),
)
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_PREFIX = re.compile(r"!?\+[1-9][0-9]{0,13}")
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]*)?")
_SHARED_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ACCOUNT_SID = re.compile(r"AC[0-9a-zA-Z]{32}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: token
_HEADERS_FIX = 'set `Name: value; Name: value` or {"Name": "value"}'
_REDIS_OPTIONS = {
    "db": "[0-9]+",
    "ssl_ca_certs": ".+",
    "ssl_certfile": ".+",
    "ssl_keyfile": ".+",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "true|false|True|False",
}
_AGENT = re.compile(r"\S.*:[A-Za-z_][A-Za-z0-9_.]*")


def wrong(text: str, fix: str) -> PydanticCustomError:
    # Through the context, not the template: a value may well contain braces.
    return PydanticCustomError("setting", "{text}: {fix}", {"text": text, "fix": fix})


def whole_number(least: int, most: int | None = None) -> Callable[[object], int]:
    span = f"from {least} up" if most is None else f"from {least} to {most}"

    def parse(value: object) -> int:
        text = str(value).strip()
        # Not int(): that takes "1_0" and digits of other scripts.
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise wrong(f"is {text!r}, no whole number", f"set a number {span}")
        number = int(text)
        if number < least or (most is not None and number > most):
            raise wrong(f"is {number}", f"set a whole number {span}")
        return number

    return parse


def seconds(value: object) -> float:
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
        raise wrong(f"is {text!r}, no number of seconds", "set one from 0 up")
    return float(text)


def some_seconds(value: object) -> float:
    found = seconds(value)
    if found < 0.1:
        raise wrong(f"is {found:g}, which is no time at all", "set 0.1 or more")
    return found


def is_yes(value: object) -> bool:
    return str(value).strip().lower() in _YES


def yes_or_no(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in _YES | _NO:
        raise wrong(f"is {text!r}, neither yes nor no", "set 1 or 0")
    return text in _YES


def word(value: object) -> str:
    text = str(value).strip()
    if not text or any(not character.isprintable() for character in text):
        raise wrong("is empty or has control characters", "set a plain name")
    return text


def host(value: object) -> str:
    text = word(value)
    if "/" in text or " " in text:
        raise wrong(f"is {text!r}, no address", "set one such as 0.0.0.0 or 127.0.0.1")
    return text


def agent(value: object) -> str:
    text = word(value)
    if not _AGENT.fullmatch(text):
        raise wrong(f"is {text!r}", "set package.module:name or path/to/file.py:name")
    return text


def _url(value: object, form: str) -> tuple[str, SplitResult]:
    """The url and its parts; its text goes into no message while it may hold a key."""
    text = str(value).strip()
    try:
        parts = urlsplit(text)
        well_formed = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        well_formed = False
    if not well_formed or any(character <= " " for character in text):
        raise wrong("is no complete url", f"set one such as {form}")
    if parts.username is not None or parts.password is not None:
        raise wrong("has a user or password in it", f"set one such as {form}")
    return text, parts


def public_url(value: object) -> str:
    form = "https://bridge.example.com"
    text, parts = _url(value, form)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and _is_loopback(parts.hostname or "")
    ):
        raise wrong(
            f"begins with {parts.scheme}://, but Twilio needs TLS",
            f"set the https origin Twilio sees, such as {form}",
        )
    if parts.path not in ("", "/") or "?" in text or "#" in text:
        raise wrong("has a path or query", f"set the origin alone, such as {form}")
    return text.removesuffix("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def model_url(value: object) -> str:
    if str(value).strip() == LOCAL_MODEL:
        return LOCAL_MODEL
    text, parts = _url(value, "wss://host/v1/realtime, or `local`")
    if parts.scheme not in ("ws", "wss") or parts.fragment:
        raise wrong(
            "is neither a WebSocket url nor `local`",
            "set one such as wss://host/v1/realtime, or `local` for the bundled fake",
        )
    return text


def redis_url(value: object) -> object:
    """May have a password in it, so no part of it is ever in a message."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    text, form = str(value).strip(), "redis://:password@host:6379/0"
    try:
        parts = urlsplit(text)
        there = parts.path if parts.scheme == "unix" else parts.hostname
        well_formed = bool(there) and parts.port != 0 and not parts.fragment
    except ValueError:  # a port that is no number, a broken IPv6 address
        parts, well_formed = urlsplit("redis:"), False
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise wrong(
            "is no redis url", f"set one such as {form}, rediss:// (TLS) or unix://"
        )
    if not well_formed or any(character <= " " for character in text):
        escaped = "in a password / # ? @ are %2F %23 %3F %40"
        raise wrong("is no complete url", f"set one such as {form}; {escaped}")
    if parts.scheme != "unix" and not re.fullmatch(r"/?|/[0-9]+", parts.path):
        raise wrong("has a path that is no database", f"set one such as {form}")
    for name, content in parse_qsl(parts.query, keep_blank_values=True):
        usable = parts.scheme == "rediss" or not name.startswith("ssl_")
        pattern = _REDIS_OPTIONS.get(name)
        if not (usable and pattern and re.fullmatch(pattern, content)):
            options = ", ".join(_REDIS_OPTIONS)
            raise wrong(
                "has an option that does not exist",
                f"there are {options}, those of ssl with rediss:// alone",
            )
    return text


def headers(value: object) -> dict[str, str]:
    """A JSON object or `Name: value; Name: value`; no value is ever in a message."""
    found: dict[str, str] = {}
    for name, content in _header_pairs(value):
        if not isinstance(content, str) or not _HEADER_NAME.fullmatch(name.strip()):
            raise wrong("has a name or value no header can have", _HEADERS_FIX)
        if not content.strip().isprintable():
            raise wrong("has control characters in a value", _HEADERS_FIX)
        found[name.strip()] = content.strip()
    return found


def _header_pairs(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return list(value.items())
    text = str(value).strip()
    if text.startswith("{"):
        return _json_headers(text)
    pairs: list[tuple[str, object]] = []
    for part in filter(str.strip, text.split(";")):
        name, colon, content = part.partition(":")
        if not colon:
            raise wrong("has a part without a colon", _HEADERS_FIX)
        pairs.append((name, content))
    return pairs


def _json_headers(text: str) -> list[tuple[str, object]]:
    try:
        parsed = json.loads(text)
    except ValueError:
        raise wrong("is no valid JSON object", _HEADERS_FIX) from None
    return list(parsed.items())


def phone_number(value: object) -> str:
    text = re.sub(r"[ ().-]", "", str(value))
    if not _E164.fullmatch(text):
        raise wrong("is no phone number", "set one in E.164, such as +14155550100")
    return text


def account_sid(value: object) -> str:
    text = str(value).strip()
    if not _ACCOUNT_SID.fullmatch(text):
        raise wrong(
            "is no account SID", "copy it from the Twilio console: AC and 32 characters"
        )
    return text


def secret(value: object) -> object:
    if isinstance(value, SecretStr):
        return value
    text = str(value).strip()
    # It ends up in a header or a key: a blank inside is always a slip of the paste.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise wrong(
            "has a blank or a character no key has", "copy it again, without quotes"
        )
    return text


def webhook_secret(value: object) -> object:
    """The form of Standard Webhooks: whsec_ and base64."""
    found = secret(value)
    text = found.get_secret_value() if isinstance(found, SecretStr) else str(found)
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise wrong(
            "is no signing secret", "set whsec_ and the base64 of 24 to 64 bytes"
        )
    return found


def prefixes(value: object) -> tuple[str, ...]:
    """Beginnings of phone numbers, apart by commas; with `!` those that are not meant,
    though another one allows them (`+1,!+1900`)."""
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    found = tuple(str(part).strip() for part in parts if str(part).strip())
    if any(not _PREFIX.fullmatch(part) for part in found):
        raise wrong(
            "has a beginning that no number has", "set some such as +1,!+1900,+4930"
        )
    if found and all(part.startswith("!") for part in found):
        raise wrong("allows no number at all", "set what is allowed, such as +1,!+1900")
    return found


def networks(value: object) -> tuple[IpNetwork, ...]:
    """Addresses and networks (CIDR), apart by commas."""
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    found = []
    for part in parts:
        text = str(part).strip()
        if not text:
            continue
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise wrong(
                f"has {text!r}, no address or network",
                "set some such as 127.0.0.1,10.0.0.0/8",
            ) from None
    return tuple(found)


def shared_keys(value: object) -> dict[str, str]:
    """Twilio's SharedKeys: id -> secret, as `headers` are written."""
    form = "set `webhooks_sharedkey_...: secret; ...`"
    try:
        found = headers(value)
    except PydanticCustomError:
        raise wrong("cannot be read", form) from None
    for name, content in found.items():
        if not _SHARED_KEY.fullmatch(name) or not content or not content.isascii():
            raise wrong("has an id or secret that no key has", form)
    return found


def prices(value: object) -> Prices:
    """`input_text=4, input_audio=32, ...`, all of them: one that is missing would be
    one of 0, and every limit a wrong one."""
    if isinstance(value, Prices):
        return value
    names = Prices.__struct_fields__
    form = "set " + ", ".join(f"{name}=..." for name in names) + " (per million tokens)"
    found: dict[str, float] = {}
    for part in filter(str.strip, str(value).split(",")):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if name not in names or not equals or not _AMOUNT.fullmatch(text):
            raise wrong("has a part that is no price", form)
        found[name] = float(text)
    if lacking := [name for name in names if name not in found]:
        raise wrong(f"lacks {', '.join(lacking)}", form)
    return Prices(**found)


def amount(value: object) -> float:
    text = str(value).strip()
    if not _AMOUNT.fullmatch(text):
        raise wrong(f"is {text!r}, no amount", "set a number from 0 up")
    return float(text)


def http_url(value: object) -> str:
    form = "https://example.com/calls"
    text, parts = _url(value, form)
    if parts.scheme not in ("http", "https") or parts.fragment:
        raise wrong("is no http url", f"set one such as {form}")
    return text


def file(value: object) -> Path:
    path = _path(value)
    if path.is_dir():
        raise wrong("names a folder", "set the path of a file")
    return path


def _path(value: object) -> Path:
    try:
        path = Path(str(value).strip()).expanduser()
        path.exists()
    except RuntimeError:
        raise wrong("names the home of nobody", "write the path out") from None
    except (ValueError, OSError):  # a null in it, too long, in a folder not ours
        raise wrong("is no path that can be used", "write another one") from None
    return path


def one_of(*choices: str) -> Callable[[object], str]:
    def chosen(value: object) -> str:
        text = str(value).strip().lower()
        if text not in choices:
            *others, last = choices
            raise wrong(f"is {text!r}", f"set {', '.join(others)} or {last}")
        return text

    return chosen


def text(value: object) -> str:
    return str(value).strip()


def folder(value: object) -> Path:
    path = _path(value)
    if path.exists() and not path.is_dir():
        raise wrong("names a file", "set a folder; it is made where it is missing")
    return path
