"""What is known of phones that were dialled: values that are stored and reported."""

from typing import get_args

import msgspec

from bridge.core.answered import Answer
from bridge.core.transfers import FailedTransfer


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
