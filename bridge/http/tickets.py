"""The ticket of a stream: Twilio was told by us, just now, to open it for this call.

The signature of a handshake covers its url and nothing else, so whoever saw one could
use it for ever. Hence each stream has a url of its own: it names account and call and
is good once, for a minute. Any instance can tell a good one without asking: it is
signed under the auth token, which all have. That it was used, the Registry's shelf has.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from bridge.fleet import Registry

PATH = "/media"

TICKET_SECONDS = 60.0
"""Twilio opens the stream within a second of the TwiML; clocks of instances may differ
by the rest."""

MAC_BYTES = 18
"""Of the 32: enough that nobody guesses, short enough for a url."""

MAX_TICKET_CHARS = 200


class TicketRefused(Exception):
    """`why` is one of bridge.telemetry.metrics.REFUSALS."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Ticket:
    """One that is good, and not yet spent."""

    account_sid: str
    call_sid: str
    nonce: str
    until: float


class Tickets:
    """`keys`: secrets that all instances have; a ticket is signed under each, and good
    if it is under any: so a rotation of the auth token leaves no stream outside,
    whichever of the two an instance knows. `now`: seconds since the epoch."""

    def __init__(
        self,
        keys: Sequence[str],
        registry: Registry,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not all(keys) or not keys:
            raise ValueError("a ticket needs a secret")
        # Derived: what leaks of a ticket says nothing of the token.
        self._keys = [
            hmac.digest(key.encode(), b"bridge stream ticket", "sha256") for key in keys
        ]
        self._registry = registry
        self._now = now

    def path(self, account_sid: str, call_sid: str) -> str:
        """Of a new stream's url."""
        until = f"{int(self._now() + TICKET_SECONDS):x}"
        nonce = secrets.token_urlsafe(12)
        macs = (_mac(it, account_sid, call_sid, until, nonce) for it in self._keys)
        ticket = ".".join((until, nonce, *macs))
        account, call = (quote(sid, safe="") for sid in (account_sid, call_sid))
        return f"{PATH}/{account}/{call}/{ticket}"

    def read(self, account_sid: str, call_sid: str, ticket: str) -> Ticket:
        """TicketRefused: forged, of another call, or too old."""
        until, nonce, *macs = ticket.split(".") if ticket.count(".") >= 2 else ("", "")
        if len(ticket) > MAX_TICKET_CHARS or not ticket.isascii() or not macs:
            raise TicketRefused("ticket_forged")
        right = [_mac(it, account_sid, call_sid, until, nonce) for it in self._keys]
        # All of them: how long it takes says nothing of which was right.
        if not sum(hmac.compare_digest(a, b) for a in macs for b in right):
            raise TicketRefused("ticket_forged")
        ends = float(int(until, 16))  # our own: nobody else could sign it
        if self._now() > ends:
            raise TicketRefused("ticket_expired")
        return Ticket(account_sid, call_sid, nonce, ends)

    async def spend(self, ticket: Ticket) -> None:
        """TicketRefused: it was used before, here or on another instance."""
        left = max(ticket.until - self._now(), 0.0) + 1.0
        if not await self._registry.set_if_absent(f"ticket:{ticket.nonce}", left):
            raise TicketRefused("ticket_used")


def _mac(key: bytes, *parts: str) -> str:
    # Each with its length: no two lists of parts read the same.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest.digest()[:MAC_BYTES]).decode()
