"""What a message of a call costs (tests/bench/counts.py)."""

from typing import Any

import pytest

from bridge.websocket.direct_connection import PhoneConnection
from tests.bench import counts


def test_no_message_costs_more_than_before() -> None:
    """A change that makes the bridge do more for each frame is noticed in its review.
    If it is worth it: `python -m tests.bench.counts --write`, with each Python."""
    assert counts.grown(counts.counted(), counts.baseline()) == []


def test_more_work_for_a_frame_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more callback of the event loop, and some calls of functions."""
    read = PhoneConnection.data_received

    def data_received(phone: PhoneConnection, data: bytes) -> None:
        for _ in range(5):
            phone.is_paused  # noqa: B018
        phone.loop.call_soon(phone.is_paused.__class__)
        read(phone, data)

    monkeypatch.setattr(PhoneConnection, "data_received", data_received)
    now, before = counts.counted(), counts.baseline()

    frame = {"handles": before["caller frame"]["handles"] + 1}
    assert {kind: now["caller frame"][kind] for kind in frame} == frame
    told = " ".join(counts.grown(now, before))
    assert "caller frame: 1 handles, before 0" in told
    assert "instructions" in told or counts.PYTHON not in counts.baselines()
    assert "audio delta" not in told


def test_what_counts_as_grown() -> None:
    """A few instructions more are none; one more write is, because it is a system
    call."""
    before: dict[str, Any] = {"frame": {"instructions": 1000, "writes": 1}}

    assert counts.grown({"frame": {"instructions": 1050, "writes": 1}}, before) == []
    assert counts.grown({"frame": {"instructions": 900, "writes": 1}}, before) == []
    assert counts.grown({"frame": {"instructions": 1051, "writes": 2}}, before) == [
        "frame: 1051 instructions, before 1000",
        "frame: 2 writes, before 1",
    ]
