"""Audio in base64, counted and cut without being decoded."""

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core import audio


@given(st.binary(max_size=2000))
def test_the_length_of_audio_is_known_without_decoding(sound: bytes) -> None:
    """What the caller heard is counted in bytes that nobody had to decode."""
    assert audio.payload_bytes(base64.b64encode(sound).decode()) == len(sound)


@given(st.text("A/=", max_size=12))
def test_the_length_is_right_for_all_that_is_let_in(payload: str) -> None:
    """No padding, however odd, makes the count of what was heard drift."""
    if audio.is_payload(payload):
        sound = binascii.a2b_base64(payload, strict_mode=True)
        assert audio.payload_bytes(payload) == len(sound)


@given(st.binary(max_size=2000), st.integers(0, 700))
def test_audio_is_cut_without_losing_a_byte(sound: bytes, triples: int) -> None:
    """A long answer reaches the caller in pieces, whole and in order."""
    payload = base64.b64encode(sound).decode()

    first, rest = audio.cut_payload(payload, 3 * triples)

    assert base64.b64decode(first) == sound[: 3 * triples]
    assert base64.b64decode(rest) == sound[3 * triples :]


def test_all_of_it_is_one_piece() -> None:
    """What needs no cut is passed on untouched, whatever its length."""
    payload = base64.b64encode(bytes(8)).decode()

    assert audio.cut_payload(payload, 8) == (payload, "")
    assert audio.cut_payload(payload, 9) == (payload, "")


@pytest.mark.parametrize("ms", [0, 1, 20, 1000])
def test_silence_is_zero_of_mulaw(ms: int) -> None:
    """A hole in the line sounds like nothing, not like a click."""
    assert base64.b64decode(audio.silence(ms)) == b"\xff" * (8 * ms)
