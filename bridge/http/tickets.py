"""Tickets: a stream is accepted only if the bridge has just told Twilio to open it.

The signature of a handshake covers its URL and nothing else, so anyone who saw a signed
URL could use it for ever. Each stream therefore has a URL of its own: it names account
and call, and is valid once, for one minute. Any instance can check a ticket without
asking another, because it is signed with the auth token, which all instances have. The
registry stores which tickets were used.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from bridge.fleet import Registry

PATH = "/media"

TICKET_SECONDS = 60.0
"""Twilio opens the stream within a second of the TwiML. The rest is for an instance
that does not know the clock of the registry yet, and uses its own."""

USED_SECONDS = 60.0
"""A used ticket is remembered for so long after it has expired, by the clock by which
it expires: that of the registry. An instance may know that clock a little late."""

MAC_BYTES = 18
"""Bytes of the digest (of 32) in a ticket: too many to guess, few enough for a URL."""

MAX_TICKET_CHARS = 200


class TicketRefused(Exception):
    """`why` is one of bridge.telemetry.metrics.REFUSALS."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket that is valid, and not yet marked as used."""

    account_sid: str
    call_sid: str
    nonce: str
    until: float


class Tickets:
    """`keys`: secrets that all instances have, the tokens of the main account. A ticket
    is signed with each of them, and valid if one signature is valid. While the auth
    token is rotated, every instance thus accepts it, whichever of the two tokens it
    knows. Streams of other accounts have such tickets, too; their handshakes are signed
    with their own tokens. `now`: seconds since the epoch; None: by the clock of the
    registry."""

    def __init__(
        self,
        keys: Sequence[str],
        registry: Registry,
        now: Callable[[], float] | None = None,
    ) -> None:
        if not all(keys) or not keys:
            raise ValueError("tickets need at least one secret, and no empty one")
        # Derived keys: a leaked ticket reveals nothing about the auth token.
        self._keys = [
            hmac.digest(key.encode(), b"bridge stream ticket", "sha256") for key in keys
        ]
        self._registry = registry
        self._now = now or registry.clock

    def path(self, account_sid: str, call_sid: str) -> str:
        """The path of a new stream's URL."""
        until = f"{int(self._now() + TICKET_SECONDS):x}"
        nonce = secrets.token_urlsafe(12)
        macs = (_mac(it, account_sid, call_sid, until, nonce) for it in self._keys)
        ticket = ".".join((until, nonce, *macs))
        account, call = (quote(sid, safe="") for sid in (account_sid, call_sid))
        return f"{PATH}/{account}/{call}/{ticket}"

    def read(self, account_sid: str, call_sid: str, ticket: str) -> Ticket:
        """TicketRefused if the ticket is forged, of another call, or expired."""
        until, nonce, *macs = ticket.split(".") if ticket.count(".") >= 2 else ("", "")
        if len(ticket) > MAX_TICKET_CHARS or not ticket.isascii() or not macs:
            raise TicketRefused("ticket_forged")
        right = [_mac(it, account_sid, call_sid, until, nonce) for it in self._keys]
        # All are compared, so that the time taken does not show which one matched.
        if not sum(hmac.compare_digest(a, b) for a in macs for b in right):
            raise TicketRefused("ticket_forged")
        ends = float(int(until, 16))  # the signature is valid, so the bridge wrote this
        if self._now() > ends:
            raise TicketRefused("ticket_expired")
        return Ticket(account_sid, call_sid, nonce, ends)

    async def spend(self, ticket: Ticket) -> None:
        """Marks the ticket as used. TicketRefused if it was used before, on any
        instance."""
        left = max(ticket.until - self._now(), 0.0) + USED_SECONDS
        if not await self._registry.set_if_absent(f"ticket:{ticket.nonce}", left):
            raise TicketRefused("ticket_used")


def _mac(key: bytes, *parts: str) -> str:
    # Each part with its length, so that no two lists of parts give the same text.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest.digest()[:MAC_BYTES]).decode()
