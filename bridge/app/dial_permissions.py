"""Which numbers may be dialled: by a transfer, and by an outbound call.

A call costs money, and a caller can talk an agent into dialling an expensive number.
Therefore the operator or the user's code names the numbers, never the model. Dials
nothing.
"""

import re
from collections.abc import Mapping, Sequence

import twiml
from bridge.agent.live import LiveCall, NotAllowed, Transfer
from bridge.app.routes import Route

_COUNTRY = re.compile(
    r"\+([17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|\d{1,3})", re.ASCII
)
"""The country code: 1 and 7; those of two digits; all others have three (ITU E.164)."""

_TRUNK: Mapping[str, tuple[str, ...]] = {
    "1": ("[01]",),
    "7": ("[08]",),
    "36": ("06", "0(?!6)"),
    "44": ("0", "180020"),
    "52": ("0", "01", "02", "04[45]", "1"),
    "55": ("0", r"0\d\d", "90", r"90\d\d"),
    "57": ("0", "0[3579]", "04(?:[14]4|56)"),
    "61": ("0", "183[12]"),
    "81": ("0", "003768"),
    "82": ("0", "08[1-46-8]", r"085\d\d"),
    "86": ("0", r"1[12]\d\d\d", r"179\d\d"),
    "298": ("0", "10(?:01|[12]0|88)"),
    "352": ("0", r"15\d\d\d"),
    "370": ("[08]",),
    "375": ("0", "8", "80"),
    "423": ("0", "1001"),
    "506": ("0", r"19\d\d"),
    "591": ("0", r"01\d"),
    "692": ("[01]",),
    "993": ("[08]",),
}
"""Country code -> the digits that are dialled before a number within this country: the
trunk digits, or the code of a network. Other countries: 0. People write them in
international numbers (+44 (0)900, +36 06 90) and networks drop them, so such a number
reaches another number. Source: `nationalPrefixForParsing` in the metadata of
libphonenumber 9.0.42; 52 also has those that Mexico used until 2019. (The library
itself drops them only from numbers that it knows as valid, which is too rarely.)"""

_TRUNK_PATTERNS = {
    code: tuple(re.compile(it, re.ASCII) for it in several)
    for code, several in _TRUNK.items()
}
_ZERO = (re.compile("0"),)

_ZERO_BEGINS = re.compile(
    "39|47|225|227|229|241|242|267|268|378|379|501|676|679|687|853"
)
"""Countries in which 0 is the first digit of numbers. Source: as above."""

_TEN_DIGITS = frozenset({"1", "7"})
"""Country codes whose national numbers have 10 digits; a longer one has trunk
digits."""


def may_dial(number: str, prefixes: Sequence[str]) -> bool:
    """Whether a number (E.164, maybe with punctuation) may be dialled.

    The longest matching prefix decides; a prefix that begins with `!` forbids. A number
    that no prefix matches may not be dialled. A number with trunk digits must be
    allowed as it is written and also without them; a prefix with trunk digits forbids
    also the numbers without them.
    """
    try:
        number = twiml.phone_number(number)
    except ValueError:
        return False
    forbidden = (it[1:] for it in prefixes if it.startswith("!"))
    more = ("!" + it for prefix in forbidden for it in _without_zeros(prefix))
    prefixes = [*prefixes, *more]
    if not _is_allowed(number, prefixes):
        return False
    code, national = _split(number)
    must_be_shorter = (
        len(national) > 10
        if code in _TEN_DIGITS
        else national.startswith("0") and not _ZERO_BEGINS.fullmatch(code)
    )
    verdicts = [_is_allowed(it, prefixes) for it in _without_trunk(number)]
    # None: a number that is complete as it is written need not match without them.
    return False not in verdicts and not (must_be_shorter and None in verdicts)


def _split(number: str) -> tuple[str, str]:
    """Country code and national number."""
    found = _COUNTRY.match(number)
    assert found, "a number or prefix begins with + and a digit"
    return found[1], number[found.end() :]


def _without_trunk(number: str) -> set[str]:
    """The numbers that networks may make of this one: each time without one more group
    of trunk digits."""
    code, national = _split(number)
    patterns = _TRUNK_PATTERNS.get(code, _ZERO)
    found: set[str] = set()
    waiting = [national]
    while waiting:
        national = waiting.pop()
        for trunk in patterns:
            match = trunk.match(national)
            rest = national[match.end() :] if match else ""
            if rest and f"+{code}{rest}" not in found:
                waiting.append(rest)
                found.add(f"+{code}{rest}")
    return found


def _without_zeros(prefix: str) -> set[str]:
    """What a prefix with trunk digits means: +44900 for +440900, +3690 for +3606 90.
    Only if the trunk digits begin with 0 and no number there does."""
    code, national = _split(prefix)
    if _ZERO_BEGINS.fullmatch(code) or not national.startswith("0"):
        return set()
    return _without_trunk(prefix)


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
    """The same number, however written, or the same SIP URI. False if either is
    neither."""
    try:
        return twiml.dial_target(number) == twiml.dial_target(other)
    except ValueError:
        return False
