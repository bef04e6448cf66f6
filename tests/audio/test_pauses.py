"""Pauses are found in the audio of an item, however it is cut into deltas."""

import base64

from bridge.audio.pauses import MAX_BLOCKS, READ_BYTES, Pauses

LOUD, SOFT, HISS, SILENCE = b"\x90", b"\xb0", b"\xe8", b"\xff"
MS = 8


def pauses_in(audio: bytes, delta: int = 1600) -> tuple[tuple[int, int], ...]:
    pauses = Pauses()
    for at in range(0, len(audio), delta):
        piece = audio[at : at + delta]
        pauses.add(base64.b64encode(piece).decode(), len(piece))
    return pauses.find()


def test_silence_between_two_sounds_is_a_pause() -> None:
    """Also if it is the hiss of a microphone; a soft sound is none."""
    audio = LOUD * 400 * MS + HISS * 200 * MS + SOFT * 200 * MS + SILENCE * 300 * MS

    assert pauses_in(audio) == ((400 * MS, 600 * MS), (800 * MS, 1100 * MS))


def test_the_closure_before_a_plosive_is_no_pause() -> None:
    """60 ms of silence are within a word."""
    assert pauses_in(LOUD * 400 * MS + SILENCE * 60 * MS + LOUD * 400 * MS) == ()


def test_the_size_of_the_deltas_makes_no_difference() -> None:
    """Deltas that end within 20 ms, and one that is longer than what is read at
    once."""
    audio = (LOUD * 410 * MS + SILENCE * 310 * MS) * 5

    found = pauses_in(audio)

    assert len(found) == 5
    assert found == pauses_in(audio, 333) == pauses_in(audio, READ_BYTES + 7)


def test_audio_in_which_nothing_is_loud_has_no_pauses() -> None:
    """A line of silence does not say where a word could be."""
    assert pauses_in(SILENCE * 2000 * MS) == pauses_in(b"") == ()


def test_what_is_kept_of_endless_audio_is_bounded() -> None:
    """A server that never ends an item does not fill the memory."""
    audio = LOUD * READ_BYTES
    payload = base64.b64encode(audio).decode()
    pauses = Pauses()
    for _ in range(302):
        pauses.add(payload, len(audio))
    pauses.add(base64.b64encode(SILENCE * READ_BYTES).decode(), READ_BYTES)

    assert pauses.find() == ()
    assert len(pauses._peaks) == MAX_BLOCKS
