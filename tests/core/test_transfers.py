"""What is known of phones that were dialled: values that are stored and reported."""

from typing import get_args

import msgspec
import pytest

from bridge.core.answered import Answer
from bridge.core.transfers import (
    ANSWER_SECONDS,
    MEET_SECONDS,
    TIMED_OUT,
    WHISPER_CHARS,
    FailedTransfer,
    WarmOutcome,
    WarmTransfer,
    has_met,
    instruction,
    outcome_of_leg,
    whisper_of,
)


def test_a_failed_transfer_is_stored_whole() -> None:
    """The instance that goes on with the call tells the agent the same reason."""
    failed = FailedTransfer("failed", "13214", "486", "Invalid callerId")

    stored = msgspec.json.encode(failed)

    assert msgspec.json.decode(stored, type=FailedTransfer) == failed


def test_a_failed_transfer_without_codes() -> None:
    """Twilio gives none for a phone that is busy."""
    stored = b'{"status":"busy"}'

    assert msgspec.json.decode(stored, type=FailedTransfer) == FailedTransfer("busy")


def test_the_answers_that_the_agent_can_hear() -> None:
    """Reports and the tool of the agent name them so."""
    assert get_args(Answer) == ("voicemail", "screened", "person")


@pytest.mark.parametrize(
    ("status", "stayed", "words"),
    [
        ("busy", False, "The caller is back with you"),
        ("declined", True, "nobody took the call. The caller is still with you"),
        ("machine", True, "a machine answered"),
        ("left", False, "hung up before the caller was connected"),
        ("new-status", True, "cannot be reached at the moment"),
    ],
)
def test_what_the_agent_is_told(status: str, stayed: bool, words: str) -> None:
    """The reason in words, and where the caller is."""
    assert words in instruction(status, stayed=stayed)


def test_the_end_of_a_leg_that_nobody_has_decided() -> None:
    """A call that was answered and ended without a key was declined."""
    assert outcome_of_leg("completed").failed == FailedTransfer("declined")
    busy = outcome_of_leg("busy", "", "486")
    assert busy.failed == FailedTransfer("busy", sip_code="486")
    assert not busy.accepted and WarmOutcome().accepted
    assert TIMED_OUT.failed == FailedTransfer("no-answer")


def test_a_warm_transfer_is_given_up() -> None:
    """After its ringing, the whisper and a key; the conference names no person."""
    warm = WarmTransfer("ab12", "CA1", "+14155550100", began=1000.0, ring_seconds=30)

    assert warm.due == 1000 + 30 + ANSWER_SECONDS
    assert warm.room == "warm-ab12"


@pytest.mark.parametrize(
    ("joined_at", "met"),
    [(None, True), (100.0, True), (100.0 + MEET_SECONDS, False), (108.0, False)],
)
def test_who_has_met_in_a_conference(joined_at: float | None, met: bool) -> None:
    """A person who leaves within seconds has not talked with the caller."""
    assert has_met(joined_at, 100.0 + MEET_SECONDS) is met


@pytest.mark.parametrize(
    ("summary", "whisper", "default", "heard"),
    [
        ("", "", "", ""),
        ("", "", "Press 1.", "Press 1."),
        ("Ann calls.", "", "Press 1.", "Ann calls. Press 1."),
        (" Ann\ncalls. ", "Take it with 1.", "Press 1.", "Ann calls. Take it with 1."),
        ("x" * 999, "", "", "x" * WHISPER_CHARS),
    ],
)
def test_what_the_person_hears(
    summary: str, whisper: str, default: str, heard: str
) -> None:
    """The agent's words are bounded, and contain nothing that XML cannot carry."""
    assert whisper_of(summary, whisper, default) == heard
