"""Finds the items of the model in the audio that the caller heard. Pure."""

from collections.abc import Sequence

BYTES_PER_MS = 8

PIN_BYTES = 100 * BYTES_PER_MS
"""An item is found in the played audio by its first 100 ms, which no other item has."""


def find_items(
    played: bytes, items: Sequence[tuple[bytes, bool]]
) -> list[tuple[int, int]]:
    """For each item: its position in `played`, and how many of its bytes were played.

    An item is (audio, whether the model believes that it was not heard). Items were
    played in order, each from its beginning; some were cut, some not played at all.
    """
    found: list[tuple[int, int]] = []
    position = earliest = 0
    for audio, unheard in items:
        # An unheard item may sound like a later item.
        start = -1 if unheard else played.find(audio[:PIN_BYTES], earliest)
        if start < 0:
            start = position
        # An item that was cut in a pause seems to continue in the silence at the
        # beginning of the next item.
        found = [(at, min(heard, max(0, start - at))) for at, heard in found]
        heard = _common_prefix(played[start:], audio)
        found.append((start, heard))
        position = start + heard
        if heard == len(audio):
            earliest = position
        elif heard and not unheard:
            earliest = max(start + 1, position - PIN_BYTES)
    return found


def _common_prefix(heard: bytes, generated: bytes) -> int:
    """The number of bytes of an item that were played. Only an item's end can be cut
    off."""
    most = min(len(heard), len(generated))
    if heard[:most] == generated[:most]:
        return most
    return next(i for i in range(most) if heard[i] != generated[i])
