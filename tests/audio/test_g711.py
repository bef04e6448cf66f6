"""Audio in base64, counted and cut without being decoded."""

import audioop
import base64
import binascii
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio import g711


@given(st.binary(max_size=2000))
def test_the_length_of_audio_is_known_without_decoding(sound: bytes) -> None:
    """What the caller heard is counted in bytes that need no decoding."""
    assert g711.payload_bytes(base64.b64encode(sound).decode()) == len(sound)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("AAAA", True),
        ("AAA=", True),
        ("+/==", True),
        ("", False),
        ("AAA", False),
        ("A===", False),
        ("====", False),
        ("=AAA", False),
        ("AA==AA==", False),
        ("AA-_", False),
        ("AA\n=", False),
        ("AAA\u00e9", False),
        ("AAA\ud800", False),
    ],
)
def test_only_base64_reaches_the_other_side(text: str, accepted: bool) -> None:
    """Twilio plays nothing else, and the model answers it with an error."""
    assert g711.is_payload(text) is accepted


@given(st.text("A/=-\u00e9", max_size=12))
def test_a_payload_is_what_can_be_decoded(text: str) -> None:
    """Checked without decoding, which takes longer."""
    try:
        decoded = base64.b64encode(binascii.a2b_base64(text, strict_mode=True))
    except ValueError:
        decoded = b""
    as_sent = len(decoded) == len(text) and decoded[-2:].count(b"=") == text.count("=")
    assert g711.is_payload(text) is (bool(text) and as_sent)


@given(st.text("A/=", max_size=12))
def test_the_length_is_right_for_every_accepted_payload(payload: str) -> None:
    """No padding, however odd, makes the count of what was heard drift."""
    if g711.is_payload(payload):
        sound = binascii.a2b_base64(payload, strict_mode=True)
        assert g711.payload_bytes(payload) == len(sound)


@given(st.binary(max_size=2000), st.integers(0, 700))
def test_audio_is_cut_without_losing_a_byte(sound: bytes, triples: int) -> None:
    """A long response reaches the caller in pieces, whole and in order."""
    payload = base64.b64encode(sound).decode()

    first, rest = g711.cut_payload(payload, 3 * triples)

    assert base64.b64decode(first) == sound[: 3 * triples]
    assert base64.b64decode(rest) == sound[3 * triples :]


def test_a_payload_that_needs_no_cut_is_unchanged() -> None:
    """It is passed on as it is, whatever its length."""
    payload = base64.b64encode(bytes(8)).decode()

    assert g711.cut_payload(payload, 8) == (payload, "")
    assert g711.cut_payload(payload, 9) == (payload, "")


@pytest.mark.parametrize("ms", [0, 1, 20, 1000])
def test_silence_is_zero_of_mulaw(ms: int) -> None:
    """A gap in the line sounds like silence, not like a click."""
    assert base64.b64decode(g711.silence(ms)) == b"\xff" * (8 * ms)


# --- key tones ---

ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
PAD = ["123A", "456B", "789C", "*0#D"]
KEYS = "".join(PAD)

TONE, GAP, PAUSE = 100 * 8, 80 * 8, 500 * 8
"""Bytes of a key, of the silence behind it, of a `w`."""

FULL_SCALE = 32767 / 10 ** (3.17 / 20)
"""The amplitude of 0 dBm0: a sine at mu-law's full scale is +3.17 dBm0 (G.711)."""


def samples(mulaw: bytes) -> tuple[int, ...]:
    linear = audioop.ulaw2lin(mulaw, 2)
    return struct.unpack(f"<{len(mulaw)}h", linear)


def level(tone: bytes, hz: float) -> float:
    """Level of this frequency in the samples, in dBm0 (Goertzel's single bin of a
    DFT)."""
    heard = samples(tone)
    turn = 2 * math.pi * hz / 8000
    real = sum(it * math.cos(turn * n) for n, it in enumerate(heard))
    imaginary = sum(it * math.sin(turn * n) for n, it in enumerate(heard))
    amplitude = 2 * math.hypot(real, imaginary) / len(heard)
    return 20 * math.log10(max(amplitude, 1e-3) / FULL_SCALE)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_one_low_and_one_high_tone(key: str) -> None:
    """The machine at the other end hears the key that was sent, and no other."""
    tone = g711.key_tones(key)[:TONE]
    levels = {hz: level(tone, hz) for hz in (*ROWS, *COLUMNS)}

    row = next(n for n, keys in enumerate(PAD) if key in keys)
    low, high = ROWS[row], COLUMNS[PAD[row].index(key)]
    assert levels[low] == pytest.approx(-10, abs=0.5)
    assert levels[high] == pytest.approx(-8, abs=0.5)
    others = [it for hz, it in levels.items() if hz not in (low, high)]
    assert max(others) < -30  # 20 dB below, as receivers want it


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_right_to_the_hertz(key: str) -> None:
    """Receivers accept a deviation of 1.5 % from the frequency and refuse 3.5 %."""
    row = next(n for n, keys in enumerate(PAD) if key in keys)
    tone = g711.key_tones(key)[:TONE]

    for hz in (ROWS[row], COLUMNS[PAD[row].index(key)]):
        near = [hz * (1 + step / 1000) for step in range(-40, 41)]
        loudest = max(near, key=lambda it: level(tone, it))
        assert loudest == pytest.approx(hz, rel=0.01)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_does_not_clip(key: str) -> None:
    """Both tones together stay below full scale, so no third tone is made."""
    assert max(abs(it) for it in samples(g711.key_tones(key))) < 16_000


def test_keys_come_one_after_the_other() -> None:
    """Each is long enough to be accepted, with a silence that separates two of the
    same."""
    tones = g711.key_tones("11w2")

    assert len(tones) == 3 * (TONE + GAP) + PAUSE
    one = g711.key_tones("1")
    assert tones[: TONE + GAP] == tones[TONE + GAP : 2 * (TONE + GAP)] == one
    assert one[TONE:] == b"\xff" * GAP
    assert g711.key_tones("w") == b"\xff" * PAUSE
    assert g711.key_tones("") == b""
    slow = g711.key_tones("1", 250, 120)
    assert len(slow) == 370 * 8 and slow[250 * 8 :] == b"\xff" * (120 * 8)


def test_a_character_that_is_no_key_is_an_error() -> None:
    """A slip in the digits is an error, not a wrong number."""
    with pytest.raises(KeyError):
        g711.key_tones("1x")


def test_mu_law_as_pcm() -> None:
    """ITU-T G.711: 0xff and 0x7f are silence, 0x80 and 0x00 the loudest samples."""
    samples = struct.unpack("<4h", g711.linear(bytes([0xFF, 0x7F, 0x80, 0x00])))

    assert samples == (0, 0, 32124, -32124)
