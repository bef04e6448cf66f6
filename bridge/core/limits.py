"""All limits of one instance and of one call: sizes, times, rates, numbers.

`Limits` apply at the edges (sockets, requests), `Bounds` in the core. A limit that is
hit is counted (`bridge_limit_hits_total{limit}`) under its name in HITS.
"""

import math
from dataclasses import dataclass

import msgspec

HITS = (
    # connections and requests (connection_guard.py, webhook_fields.py, api/auth.py)
    "sockets",  # too many sockets without a call: the oldest was closed
    "sockets_of_address",  # the same for one address
    "request_slow",  # no complete request in time
    "header_bytes",
    "body_bytes",
    "body_slow",
    "answer_slow",  # the client does not read our answer
    "api_rate",
    # messages of other instances (fleet/requests.py)
    "fleet_rate",
    # streams (server.py, stream.py, core)
    "start_late",  # no `start` in time
    "message_bytes",
    "message_rate",
    "audio_rate",  # the caller's audio arrives faster than real time
    "phone_slow",  # Twilio reads too slowly, or too much waits to be sent
    "key_rate",  # the caller presses more keys than a person does
    "audio_held",
    "audio_ahead",
    # calls (quotas.py, server.py, core)
    "calls",  # the maximum number of calls is running
    "calls_of_number",
    "calls_of_number_hour",
    "longest",
    "cost_of_call",
    "cost_of_day",
    # what is dialled (outbound.py, call.py)
    "outbound_number",
    "transfer_number",
    # the model's side (agent/, core)
    "model_bytes",
    "model_flood",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Built from the settings (startup.py), which have the same defaults."""

    start_seconds: float = 10.0
    """Longest wait for the request of a new connection, and for the `start` of a
    stream."""
    waiting_sockets: int = 500
    waiting_per_address: int = 100
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    body_seconds: float = 10.0
    send_seconds: float = 5.0
    message_bytes: int = 256 * 1024
    api_per_second: float = 20.0


class Bounds(msgspec.Struct, frozen=True):
    """Passed to a new Conversation; stored in its trace."""

    messages_per_second: float = 200.0
    """Messages of the caller's stream, averaged over ten seconds; Twilio sends 50."""
    audio_held_seconds: float = 20.0
    """Caller's audio held for a model that is not ready."""
    audio_ahead_seconds: float = 600.0
    """Agent's audio queued at Twilio."""


BURST_SECONDS = 10.0
"""A network that stalled for seconds delivers all their messages at once; this is
normal."""

MAX_ID_CHARS = 256
"""Longest id or name accepted from Twilio or the model; ids stay in memory for long.
Twilio's ids have 34 characters, OpenAI's up to 32, others are UUIDs with a prefix."""


class MessageRate:
    """Rate limiter, averaged over a burst. `add` costs one addition and two
    comparisons: it runs for every frame."""

    __slots__ = ("_burst", "_per_second", "_spent_at")

    def __init__(self, per_second: float, burst_seconds: float = BURST_SECONDS) -> None:
        self._per_second = per_second
        self._burst = burst_seconds
        self._spent_at = -math.inf
        """When the amounts counted so far would have arrived at the permitted rate."""

    def add(self, amount: float, now: float) -> bool:
        """Counts `amount`; False: that is more than is permitted."""
        spent_at = self._spent_at
        if spent_at < now:
            spent_at = now
        self._spent_at = spent_at = spent_at + amount / self._per_second
        return spent_at - now <= self._burst

    def take(self, amount: float, now: float) -> bool:
        """As `add`, but an amount that is not permitted is not counted: it is dropped,
        and what comes at the permitted rate passes."""
        before = self._spent_at
        permitted = self.add(amount, now)
        if not permitted:
            self._spent_at = before
        return permitted


def is_dense(text: str, most: int) -> bool:
    """Whether a JSON text has more than `most` lists, objects and elements: decoding it
    takes too long. Does not decode it."""
    if _tokens(text) <= most:
        return False
    # Some of them may be in strings.
    plain = text.replace("\\\\", "").replace('\\"', "")
    quotes = plain.count('"')
    if quotes > 4 * (most + 1):
        return True  # between two strings is a comma or a colon
    return _tokens("".join(plain.split('"')[::2])) > most


def _tokens(text: str) -> int:
    return text.count("[") + text.count("{") + text.count(",")
