"""The voice settings of a phone number at Twilio: what is wrong with them, and what a
bridge needs. Makes no request.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from bridge.app.settings import Finding

POST = "POST"


@dataclass(frozen=True, slots=True)
class NumberSettings:
    """As Twilio's IncomingPhoneNumber resource has them; each field has its name there.
    An empty text: not set."""

    voice_url: str = ""
    voice_method: str = POST
    voice_fallback_url: str = ""
    voice_fallback_method: str = POST
    status_callback: str = ""
    status_callback_method: str = POST
    voice_application_sid: str = ""
    """If set, Twilio uses the URLs of this application in place of the number's."""
    trunk_sid: str = ""
    """If set, Twilio sends the calls to this SIP trunk."""

    @classmethod
    def of(cls, resource: Any) -> "NumberSettings":
        """`resource`: an IncomingPhoneNumberInstance of Twilio's SDK."""
        return cls(**{it.name: getattr(resource, it.name) or "" for it in fields(cls)})

    def connected(self, origin: str, fallback_url: str | None) -> "NumberSettings":
        """The settings with which Twilio asks the bridge at `origin`. `fallback_url`
        None: it stays as it is. So do the query and the options of a URL that is the
        bridge's already: they choose the route."""
        wanted = replace(
            self,
            voice_url=_kept(self.voice_url, f"{origin}/voice"),
            voice_method=POST,
            status_callback=_kept(self.status_callback, f"{origin}/call-status"),
            status_callback_method=POST,
            voice_application_sid="",
            trunk_sid="",
        )
        if fallback_url is None:
            return wanted
        return replace(
            wanted, voice_fallback_url=fallback_url, voice_fallback_method=POST
        )

    def changes(self, wanted: "NumberSettings") -> dict[str, tuple[str, str]]:
        """Field -> its value now, and in `wanted`; fields that differ only."""
        both = {
            it.name: (getattr(self, it.name), getattr(wanted, it.name))
            for it in fields(self)
        }
        return {name: (now, then) for name, (now, then) in both.items() if now != then}


def faults(
    now: NumberSettings, origin: str, *, receives: str, speaks: bool
) -> Iterator[Finding]:
    """What prevents calls of this number from reaching the bridge at `origin`, and what
    is lost. `receives`: the number's `voice_receive_mode`; `speaks`: it can take voice
    calls at all."""
    fix = "run `bridge connect` without --check"
    if not speaks:
        text = "this number takes no voice calls"
        yield Finding("error", "capabilities", text, "use another number")
    if receives == "fax":
        text = "is fax: calls are answered as faxes"
        fix_mode = "set the number to voice calls in Twilio's console"
        yield Finding("error", "voice_receive_mode", text, fix_mode)
    if now.trunk_sid:
        text = f"is {now.trunk_sid}: calls go to a SIP trunk, not to the bridge"
        yield Finding("error", "trunk_sid", text, fix)
    if now.voice_application_sid:
        text = f"is {now.voice_application_sid}: its URLs are used, not the number's"
        yield Finding("error", "voice_application_sid", text, fix)
    yield from _url("error", "voice_url", now.voice_url, f"{origin}/voice", fix)
    if now.voice_method != POST:
        text = f"is {now.voice_method}, but the bridge answers POST alone"
        yield Finding("error", "voice_method", text, fix)
    wanted = f"{origin}/call-status"
    yield from _url("warning", "status_callback", now.status_callback, wanted, fix)
    if now.status_callback and now.status_callback_method != POST:
        text = f"is {now.status_callback_method}, but the bridge answers POST alone"
        yield Finding("warning", "status_callback_method", text, fix)
    if not now.voice_fallback_url:
        text = (
            "is not set: while the bridge cannot be reached, callers hear an error "
            "message of Twilio's, and the call ends"
        )
        fix = "give --fallback the URL of a TwiML Bin"
        yield Finding("warning", "voice_fallback_url", text, fix)
    elif mistake := fallback_mistake(now.voice_fallback_url, origin):
        fix = "give --fallback the URL of a TwiML Bin"
        yield Finding("warning", "voice_fallback_url", mistake, fix)


def fallback_mistake(url: str, origin: str) -> str | None:
    """Why `url` is no fallback of the bridge at `origin`; None if it is one."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme != "https":
        return "is not an https URL"
    if host == urlsplit(origin).hostname:
        return "is at the bridge itself, which cannot be reached when it is needed"
    return None


def _kept(url: str, wanted: str) -> str:
    return url if _is_at(url, wanted) else wanted


def _is_at(url: str, wanted: str) -> bool:
    """Behind the # are Twilio's options of the connection, such as #rc=2, and behind
    the ? is what BRIDGE_PARAMETERS may select."""
    return url.partition("#")[0].partition("?")[0] == wanted


def _url(level: Any, name: str, url: str, wanted: str, fix: str) -> Iterator[Finding]:
    if not _is_at(url, wanted):
        now = f"is {url}" if url else "is not set"
        yield Finding(level, name, f"{now}; the bridge answers at {wanted}", fix)
