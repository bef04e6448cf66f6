"""Which numbers may be dialled: by a transfer, and by an outbound call.

A call costs money, and a caller can talk an agent into dialling an expensive number.
Therefore the operator or the user's code names the numbers, never the model. Dials
nothing.
"""

import re
from collections.abc import Sequence

import twiml
from bridge.agent.live import LiveCall, NotAllowed, Transfer
from bridge.app.routes import Route

_TRUNK_DIGITS = tuple(
    re.compile(it)
    for it in (r"(\+1)[01]+", r"(\+7)[08]", r"(\+[2-689]\d)0+", r"(\+[2-689]\d\d)0+")
)
"""Country code and trunk digits. Trunk digits are for calls within a country, but
people write them in international numbers: +44 (0)900. Networks drop them, so such a
number would reach an excluded prefix (+44900)."""


def may_dial(number: str, prefixes: Sequence[str]) -> bool:
    """Whether a number (E.164) may be dialled. The longest matching prefix decides; a
    prefix that begins with `!` forbids, also when trunk digits follow the country code.
    A number that no prefix matches may not be dialled."""
    without_trunk = (
        it.sub(r"\1", number, count=1) for it in _TRUNK_DIGITS if it.match(number)
    )
    return _is_allowed(number, prefixes) is True and not any(
        _is_allowed(it, prefixes) is False for it in without_trunk
    )


def _is_allowed(number: str, prefixes: Sequence[str]) -> bool | None:
    """None if no prefix matches."""
    matching = [it for it in prefixes if number.startswith(it.removeprefix("!"))]
    longest = max((len(it.removeprefix("!")) for it in matching), default=0)
    deciding = [it for it in matching if len(it.removeprefix("!")) == longest]
    return not any(it.startswith("!") for it in deciding) if deciding else None


def check_transfer(
    route: Route,
    live: LiveCall,
    to: Transfer,
    *,
    prefixes: Sequence[str],
    fallback_number: str,
    outbound_number: str,
) -> None:
    """NotAllowed unless the number and the caller_id of a transfer are permitted.

    The number must be named by the route (`transfers`, `keys`, `fallback`) or by the
    user's code (`live.transfers`), be `fallback_number`, or be allowed by `prefixes`.
    The caller_id must be our number in the call, `outbound_number`, or named together
    with the number.
    """
    keys = (it for it in route.keys.values() if isinstance(it, Transfer))
    fallback = Transfer(route.fallback or fallback_number)
    named = [*route.transfers.values(), *keys, *live.transfers.values(), fallback]
    named = [it for it in named if _same(it.number, to.number)]
    ours = [live.facts.ours, outbound_number, *(it.caller_id for it in named)]
    if not named and not may_dial(to.number, prefixes):
        raise NotAllowed(
            "calls may not be transferred to this number: name it in the route's "
            "transfers, or allow its prefix in BRIDGE_TRANSFER_PREFIXES"
        )
    if to.caller_id and not any(_same(it, to.caller_id) for it in ours):
        raise NotAllowed(
            "this caller_id is not allowed: use our number in this call, "
            "BRIDGE_OUTBOUND_NUMBER, or the caller_id that the route's transfer names"
        )


def _same(number: str, other: str) -> bool:
    """The same number, however written. False if either is not a phone number."""
    try:
        return twiml.phone_number(number) == twiml.phone_number(other)
    except ValueError:
        return False
