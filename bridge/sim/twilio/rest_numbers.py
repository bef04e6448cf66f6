"""The IncomingPhoneNumbers resource of the fake REST API: the account's numbers and
where Twilio sends their calls."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.sim.twilio.rest_checks import RefusedError, check_url, method

NAMES = {
    "VoiceUrl": "voice_url",
    "VoiceMethod": "voice_method",
    "VoiceFallbackUrl": "voice_fallback_url",
    "VoiceFallbackMethod": "voice_fallback_method",
    "StatusCallback": "status_callback",
    "StatusCallbackMethod": "status_callback_method",
    "VoiceApplicationSid": "voice_application_sid",
    "TrunkSid": "trunk_sid",
}
"""Parameter of an update -> property of the resource."""

URLS = ("VoiceUrl", "VoiceFallbackUrl", "StatusCallback")
METHODS = ("VoiceMethod", "VoiceFallbackMethod", "StatusCallbackMethod")


@dataclass(slots=True)
class FakeNumber:
    """One number of the account. A new one has the settings of Twilio's demo."""

    phone_number: str
    sid: str = field(default_factory=lambda: "PN" + secrets.token_hex(16))
    voice_url: str = "https://demo.twilio.com/welcome/voice/"
    voice_method: str = "POST"
    voice_fallback_url: str = ""
    voice_fallback_method: str = "POST"
    status_callback: str = ""
    status_callback_method: str = "POST"
    voice_application_sid: str = ""
    trunk_sid: str = ""
    voice_receive_mode: str = "voice"
    voice: bool = True

    def update(self, asked: Mapping[str, str]) -> None:
        for name in URLS:
            if asked.get(name):
                # https://www.twilio.com/docs/api/errors/21502: VoiceUrl is not valid.
                check_url(asked[name], 21502, name)
        for name in METHODS:
            method(asked, name)
        if asked.get("TrunkSid") and asked.get("VoiceApplicationSid"):
            raise RefusedError(400, 21200, "TrunkSid excludes VoiceApplicationSid")
        for name in NAMES.keys() & asked.keys():
            setattr(self, NAMES[name], asked[name])

    def json(self, account_sid: str) -> dict[str, Any]:
        """The resource in Twilio's JSON, without what no voice call needs."""
        values = {it: getattr(self, it) for it in NAMES.values()}
        # Twilio shows unset SIDs as null, and unset URLs as an empty text or null.
        unset = {it: None for it, value in values.items() if value == ""}
        return {
            "account_sid": account_sid,
            "sid": self.sid,
            "phone_number": self.phone_number,
            "friendly_name": self.phone_number,
            "api_version": "2010-04-01",
            "capabilities": {
                "voice": self.voice,
                "sms": True,
                "mms": False,
                "fax": False,
            },
            "voice_receive_mode": self.voice_receive_mode,
            "status": "in-use",
            "beta": False,
            "origin": "twilio",
            **values,
            **unset,
        }


def number_page(
    numbers: list[FakeNumber], wanted: str, account_sid: str
) -> dict[str, Any]:
    """A page of the list; `wanted` finds numbers that contain these digits."""
    found = [it for it in numbers if wanted.lstrip("+") in it.phone_number]
    return {
        "incoming_phone_numbers": [it.json(account_sid) for it in found],
        "page": 0,
        "page_size": 50,
        "start": 0,
        "end": max(0, len(found) - 1),
        "uri": f"/2010-04-01/Accounts/{account_sid}/IncomingPhoneNumbers.json",
        "first_page_uri": None,
        "next_page_uri": None,
        "previous_page_uri": None,
    }
