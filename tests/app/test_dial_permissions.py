"""Which numbers may be dialled: nobody talks an agent into an expensive number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import twiml
from bridge.app.dial_permissions import may_dial


@pytest.mark.parametrize(
    ("number", "prefixes", "may"),
    [
        ("+14155550101", ["+1"], True),
        ("+14155550101", ["+4930", "+1415"], True),
        ("+19005550101", ["+1", "!+1900"], False),
        ("+19005550101", ["!+1900", "+1"], False),
        ("+19005550101", ["+1", "!+1900", "+1900555"], True),
        ("+14155550101", ["+1", "!+1900"], True),
        ("+19005550101", ["+1900", "!+1900"], False),
        ("+4930123456", ["+1"], False),
        ("+14155550101", ["!+1900"], False),
        ("+14155550101", [], False),
        # As people write numbers and networks correct them: +1 (1) 900, +44 (0)900.
        ("+119005550101", ["+1", "!+1900"], False),
        ("+109005550101", ["+1", "!+1900"], False),
        ("+440900123456", ["+44", "!+44900"], False),
        ("+3530900123456", ["+353", "!+353900"], False),
        ("+78809123456", ["+7", "!+7809"], False),
        ("+440301234567", ["+44", "!+44900"], True),
        ("+390612345678", ["+39", "!+39899"], True),
        ("+78121234567", ["+7", "!+7809"], True),
        # Trunk digits of two digits, codes of networks, and several of them.
        ("+360690123456", ["+36", "!+3690"], False),
        ("+36 06 90 123456", ["+36", "!+3690"], False),
        ("+36090123456", ["+36", "!+3690"], False),
        ("+3662123456", ["+36", "!+3690", "!+36690"], True),
        ("+36061234567", ["+36", "!+3690"], True),
        ("+44 (0)900 123456", ["+44", "!+44900"], False),
        ("+49 0 900 123456", ["+49", "!+49900"], False),
        ("+49 00 900 123456", ["+49", "!+49900"], False),
        ("+5201900123456", ["+52", "!+52900"], False),
        ("+52045900123456", ["+52", "!+52900"], False),
        ("+52 1 900 123 4567", ["+52", "!+52900"], False),
        ("+55 0 15 900 123456", ["+55", "!+55900"], False),
        ("+82 082 60 1234567", ["+82", "!+8260"], False),
        ("+370 8 900 12345", ["+370", "!+370900"], False),
        ("+375 80 900 12345", ["+375", "!+375900"], False),
        # The code of another country is no reading of this one: 230 is not 23 and 0.
        ("+23052512345", ["+230", "!+235"], True),
        # Without its trunk digits the number leaves what is allowed.
        ("+4402079460000", ["+440", "!+44900"], False),
        ("+78900123456", ["+78"], True),
        ("+789001234567", ["+78"], False),
        ("+390612345678", ["+3906"], True),
        ("+2250712345678", ["+22507"], True),
        # A prefix that is written with trunk digits forbids what it means.
        ("+3690123456", ["+36", "!+360690"], False),
        ("+44900123456", ["+44", "!+440900"], False),
        ("+3966123456", ["+39", "!+3906612"], True),
        ("+3666123456", ["+36", "!+3606"], True),
    ],
)
def test_allowed_prefixes(number: str, prefixes: list[str], may: bool) -> None:
    """The longest matching prefix decides; of equal ones the one that forbids. No
    caller reaches a forbidden number by writing it with trunk digits."""
    assert may_dial(number, prefixes) is may


@pytest.mark.parametrize(
    "text",
    [
        "+1٤155550101",  # digits of another script
        "+１4155550101",
        "0014155550101",
        "4155550101",
        "+1415+5550101",
        "++14155550101",
        "+14155550101;ext=9",
        "+14155550101,,9",
        "+14155550101w9",
        "+14155550101x9",
        "+1415\u00a05550101",
        "+1415\u20115550101",
        "+1415/5550101",
        "tel:+14155550101",
        "sip:+14155550101@example.com",
        "client:anna",
        "+1415",
        "+1415555010112345",
        "+04155550101",
        "",
    ],
)
def test_what_is_no_number_is_not_dialled(text: str) -> None:
    """What Twilio or a network may read in another way than the bridge is refused, with
    the reason, before a prefix is compared with it."""
    with pytest.raises(ValueError, match=r"is not an E\.164 phone number"):
        twiml.phone_number(text)
    assert not may_dial(text, ["+1"])


TRUNK_DIGITS = [
    *[(code, "0") for code in ("20", "33", "44", "49", "61", "81", "91", "353", "972")],
    *[("1", "1"), ("1", "0"), ("7", "8"), ("36", "06"), ("370", "8"), ("375", "80")],
    *[("52", "01"), ("52", "044"), ("55", "0"), ("55", "015"), ("57", "05")],
    *[("86", "0"), ("82", "0"), ("591", "012"), ("993", "8"), ("30", "0")],
]


@given(
    country=st.sampled_from(TRUNK_DIGITS),
    repeated=st.integers(1, 2),
    forbidden=st.from_regex(r"[2-9][0-9]{1,2}", fullmatch=True),
    rest=st.from_regex(r"[0-9]{5}", fullmatch=True),
    spaces=st.lists(st.sampled_from(["", " ", "-", ".", "(", ")"]), max_size=16),
)
def test_trunk_digits_and_punctuation_open_nothing(
    country: tuple[str, str],
    repeated: int,
    forbidden: str,
    rest: str,
    spaces: list[str],
) -> None:
    """A number that reaches a forbidden prefix once a network has dropped its trunk
    digits is not dialled, however it is written."""
    code, trunk = country
    prefixes = [f"+{code}", f"!+{code}{forbidden}"]
    digits = f"{code}{trunk * repeated}{forbidden}{rest}"
    spaces += [""] * len(digits)
    number = "+" + "".join(map("".join, zip(digits, spaces, strict=False)))

    assert not may_dial(f"+{code}{forbidden}{rest}", prefixes)
    assert not may_dial(number, prefixes)
