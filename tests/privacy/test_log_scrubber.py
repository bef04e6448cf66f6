"""What no log line may contain: phone and card numbers, and keys of any origin."""

import base64
from typing import Any

import pytest

from bridge.privacy.log_scrubber import MAX_CHARS, LogScrubber
from bridge.telemetry.log import scrub_with

TOKEN = "0123456789abcdef0123456789abcdef"
ODD = 'pä"ss/word\\'


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (f"the token {TOKEN} is wrong", "the token [secret] is wrong"),
        (ODD, "[secret]"),
        ("p%C3%A4%22ss%2Fword%5C", "[secret]"),
        ('{"key": "p\\u00e4\\"ss/word\\\\"}', '{"key": "[secret]"}'),
        ("rediss://admin:hunter22@redis:6379/0", "rediss://[secret]@redis:6379/0"),
        ("redis://:hunter22@redis:6379", "redis://[secret]@redis:6379"),
        ("key provided: sk-proj-AbC_12*****wxyz.", "key provided: [secret]."),
        ("whsec_" + base64.b64encode(bytes(24)).decode(), "[secret]"),
        ("'Authorization': 'Bearer abc.def-123'", "'Authorization': 'Bearer [secret]'"),
        ("authorization: basic QUMxMjM6c2VjcmV0", "authorization: basic [secret]"),
        ("a basic functionality", "a basic functionality"),
        ("Authorization: Bearer\tabcdef-123", "Authorization: Bearer\t[secret]"),
        (r"'Bearer\tabcdef-123'", r"'Bearer\t[secret]'"),
        ("Bearer  abcdef-123", "Bearer [secret]"),
        ("Basic\tQUMxMjM6c2VjcmV0", "Basic\t[secret]"),
        (r'{"to": "\u002B15551234567"}', '{"to": "[number]"}'),
        ("+1\xa0555\u202f123\u20074567", "[number]"),
        (r"+1\u00a0555\u202F123\u20074567 or +1\xa05551234567", "[number] or [number]"),
        ("+1/555/123-4567", "[number]"),
        ("From=%2B14155550101&To=+49 (30) 123-4567", "From=[number]&To=[number]"),
        ("a card 4111-1111-1111-1111!", "a card [card number]!"),
        ("four" + " one" * 15, "[card number]"),
    ],
)
def test_numbers_and_keys_are_removed(written: str, kept: str) -> None:
    """A reader of the log sees no phone number, card number or key."""
    scrubber = LogScrubber([TOKEN, ODD, "short"])

    assert scrubber.text(written) == kept


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("no such number: 4155550101", "no such number: [number]"),
        ("ValueError: 030/1234567", "ValueError: 030/[number]"),
        ("(415) 555-0101 or 415.555.0101", "([number] or [number]"),
        ("KeyError: '0301234567'", "KeyError: '[number]'"),
        ("555\xa0123\u202f4567", "[number]"),
    ],
)
def test_national_numbers_are_removed_from_foreign_text(
    written: str, kept: str
) -> None:
    """An exception of user code may quote what a caller said."""
    assert LogScrubber().text(written, theirs=True) == kept
    assert LogScrubber().text(written) == written


@pytest.mark.parametrize(
    "written",
    [
        "CA01234567890123456789012345678901",
        "MZ41111111111111111111111111111111",
        "rtc_4111111111111111a and call_4155550101 and item_4111111111111111",
        "2026-11-21 18:32:04.123456",
        "2026-11-21T18:32:04+0100",
        "after 12345678.25 ms, 1048577 bytes, 12345678 tokens, 12345678\xa0ms",
        "0x7f3a12345678 at 192.168.100.200:12345",
        '  File "/srv/bridge/call.py", line 1234, in run',
        "123e4567-e89b-12d3-a456-426614174000",
        "short",
        "gpt-realtime-2025-08-28",
        "basket-1 of 200",
    ],
)
def test_ids_times_and_counts_are_kept(written: str) -> None:
    """SIDs, times, counts and addresses are what a log is for."""
    assert LogScrubber(["short"]).text(written, theirs=True) == written


def test_every_value_of_a_log_line_is_scrubbed() -> None:
    """Sensitive text is removed anywhere in a line and from values of every type."""

    class Odd:
        def __repr__(self) -> str:
            return "<caller 4155550101>"

    record = object()
    line: dict[str, Any] = {
        "event": "to +14155550101, or 4155550101",
        "timestamp": "2026-11-21T18:32:04.123456Z",
        "level": "info",
        "call_sid": "CA01234567890123456789012345678901",
        "many": [{"+14155550101": ("+14155550101", 3)}, {"+14155550101"}],
        "figures": (12, 1.5, True, None),
        "card": 4111111111111111,
        "made_at": 1763749924123,
        "bytes": 123456789,
        "odd": Odd(),
        "exception": "ValueError: 4155550101",
        "_record": record,
        "_from_structlog": True,
    }

    kept = scrub_with(LogScrubber())(None, "info", dict(line))
    of_library = scrub_with(LogScrubber())(
        None, "info", {**line, "_from_structlog": False}
    )

    assert kept == {
        **line,
        "event": "to [number], or 4155550101",
        "many": [{"[number]": ["[number]", 3]}, ["[number]"]],
        "figures": [12, 1.5, True, None],
        "card": "[card number]",
        "made_at": "[number]",
        "odd": "<caller [number]>",
        "exception": "ValueError: [number]",
    }
    assert of_library["event"] == "to [number], or [number]"


def test_a_very_long_value_is_cut() -> None:
    """It fills no disk and delays no call; a key is not cut in two, as half a key would
    not be recognised."""
    for book in ("x ", "1 ", "://::", "+1", "bearer ", "4 ", "- ", "+1\\u00a0/"):
        kept = LogScrubber([TOKEN]).text(book * 500_000, theirs=True)
        assert len(kept) <= MAX_CHARS + len(" [cut]")
    text = "y " * (MAX_CHARS // 2 - 10) + TOKEN * 2

    assert LogScrubber([TOKEN]).text(text).endswith("y [cut]")
