"""`bridge connect`: sets a phone number's webhooks at Twilio, or says what is wrong
with them."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from rich.console import Console

import twiml
from bridge.app.number_settings import NumberSettings, fallback_mistake, faults
from bridge.app.settings import Finding, Settings
from bridge.app.twilio_api import RestAccess, TwilioApi, TwilioRefused
from bridge.app.values import is_loopback

UNAUTHORIZED = 401


class ConnectFailed(Exception):
    """The message gives the reason for the user."""


@dataclass(frozen=True, slots=True)
class _Number:
    """A number of the account."""

    sid: str
    settings: NumberSettings
    receives: str
    speaks: bool


class NumberConnection:
    """One number of the account, and the bridge with these settings. ConnectFailed if a
    setting is missing."""

    def __init__(self, conf: Settings, number: str, out: Console) -> None:
        access = RestAccess.of(conf)
        if access is None:
            raise ConnectFailed(
                "Set TWILIO_ACCOUNT_SID, and TWILIO_AUTH_TOKEN or TWILIO_API_KEY with "
                "TWILIO_API_SECRET"
            )
        if conf.public_url is None:
            raise ConnectFailed("Set BRIDGE_PUBLIC_URL to the origin that Twilio sees")
        if is_loopback(urlsplit(conf.public_url).hostname or ""):
            text = f"BRIDGE_PUBLIC_URL is {conf.public_url}, which Twilio cannot reach"
            raise ConnectFailed(text)
        try:
            self._number = twiml.phone_number(number)
        except ValueError as error:
            raise ConnectFailed(str(error)) from None
        self._origin = conf.public_url
        self._fallback_number = conf.fallback_number
        self._twilio = TwilioApi(access)
        self._out = out

    async def check(self) -> list[Finding]:
        """What is wrong with the number's present settings."""
        it = await self._find()
        return list(
            faults(it.settings, self._origin, receives=it.receives, speaks=it.speaks)
        )

    async def connect(
        self, fallback_url: str | None, agreed: Callable[[], bool]
    ) -> None:
        """Shows what changes, and sets it if `agreed` returns True."""
        if fallback_url is not None and (
            mistake := fallback_mistake(fallback_url, self._origin)
        ):
            raise ConnectFailed(f"--fallback {mistake}: {fallback_url}")
        it = await self._find()
        if not it.speaks:
            raise ConnectFailed("This number takes no voice calls")
        wanted = it.settings.connected(self._origin, fallback_url)
        changes = it.settings.changes(wanted)
        if not changes:
            self._print(f"{self._number} is connected already: nothing changes.")
        else:
            for name, (now, then) in changes.items():
                self._print(f"{name}\n  now:  {now or '-'}\n  then: {then or '-'}")
            if not agreed():
                raise ConnectFailed("Nothing was changed")
            after = await self._set(
                it.sid, {name: new for name, (_, new) in changes.items()}
            )
            if left := after.changes(wanted):
                raise ConnectFailed(f"Twilio did not set {', '.join(left)}")
            self._print(f"{self._number} is connected with {self._origin}.")
        if not wanted.voice_fallback_url:
            self._print_bin()

    def _print_bin(self) -> None:
        self._print(
            "\nWhile the bridge cannot be reached, callers hear an error message, and "
            "the call ends.\nMake a TwiML Bin in Twilio's console with this text, and "
            "run `bridge connect` again\nwith --fallback and the URL of the Bin:\n"
        )
        self._print(twiml.sorry(fallback_number=self._fallback_number))

    def _print(self, text: str) -> None:
        self._out.print(text, highlight=False, markup=False, soft_wrap=True)

    # --- Twilio ---

    async def _find(self) -> _Number:
        try:
            found = await self._twilio.ask(
                lambda it: it.incoming_phone_numbers.list_async(
                    phone_number=self._number, limit=20
                )
            )
        except TwilioRefused as refused:
            text = f"Twilio did not show the number: {refused}"
            if refused.status == UNAUTHORIZED:
                text += (
                    ". Compare TWILIO_ACCOUNT_SID, and the API key with its secret or "
                    "the auth token, with Twilio's console: they must be of one "
                    "account, and of the region that TWILIO_REGION names"
                )
            raise ConnectFailed(text) from None
        # Twilio also finds numbers that only contain this one.
        for it in found:
            if it.phone_number == self._number:
                speaks = bool((it.capabilities or {}).get("voice", True))
                receives = str(it.voice_receive_mode or "voice")
                return _Number(it.sid, NumberSettings.of(it), receives, speaks)
        raise ConnectFailed(
            f"The account has no number {self._number}. Each region of Twilio's has "
            "its own settings of a number: see TWILIO_REGION"
        )

    async def _set(self, sid: str, values: dict[str, str]) -> NumberSettings:
        try:
            return NumberSettings.of(
                await self._twilio.ask(
                    lambda it: it.incoming_phone_numbers(sid).update_async(**values)
                )
            )
        except TwilioRefused as refused:
            unsure = (
                ", and it is not known whether they are set" if refused.unsure else ""
            )
            raise ConnectFailed(
                f"Twilio did not take them{unsure}: {refused}"
            ) from None
