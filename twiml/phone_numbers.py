"""Phone numbers: the one place that says what a phone number is.

The form is E.164 and strict: `phonenumbers` alone also accepts extensions, `tel:`,
digits of other scripts and letters, which Twilio or a network may read in another way.
"""

import re

import phonenumbers

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_PUNCTUATION = str.maketrans("", "", " -.()")


class PhoneNumber(str):
    """A number in E.164 without punctuation."""

    __slots__ = ()

    @classmethod
    def of_caller(cls, text: str) -> "PhoneNumber | None":
        """The number that a network names, exactly in E.164; None: it is another text.
        Networks also name numbers that no country has."""
        return cls(text) if _E164.fullmatch(text) else None

    @classmethod
    def read(cls, text: str) -> "PhoneNumber":
        """The number that a person has written, perhaps with punctuation. ValueError if
        it is not a phone number, or is too long or too short for its country."""
        number = cls.of_caller(text.strip().translate(_PUNCTUATION))
        if number is None:
            raise ValueError(
                f"{text!r} is not an E.164 phone number: "
                "a plus sign, the country code, 7 to 15 digits in all, such as "
                "+14155550100"
            )
        if not _is_possible(number):
            raise ValueError(
                f"{text!r} is not an E.164 phone number: no number of its country has "
                "so many digits"
            )
        return number


def _is_possible(number: str) -> bool:
    """A country has numbers of this length. Not those that are complete only within a
    town."""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return False  # no country has this code
    found = phonenumbers.is_possible_number_with_reason(parsed)
    return bool(found == phonenumbers.ValidationResult.IS_POSSIBLE)
