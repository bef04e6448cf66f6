"""Where the pauses lie in the audio of one spoken item. PURE.

The audio is read two seconds at once: a read costs much more than the bytes in it.
"""

import re

from bridge.audio import g711

BLOCK_MS = 20
"""The loudness is the peak of so many ms."""

BLOCK_BYTES = BLOCK_MS * g711.BYTES_PER_MS

READ_BYTES = 2000 * g711.BYTES_PER_MS
"""Audio that is read at once, and about the most that is kept unread."""

MAX_BLOCKS = 600 * 1000 // BLOCK_MS
"""Ten minutes of audio. Behind them no pause is found."""

QUIET_CODES = 68
"""A block is quiet if its peak is so many mu-law codes below the loudest peak of the
item: 26 dB. Sixteen codes are 6 dB."""

SOUND_CODES = 60
"""Peak that speech has somewhere (400 of 32768). Audio below it has no pauses: nothing
in it can be told apart."""

MIN_PAUSE_MS = 100
"""Shorter silence belongs to a word: the closure before a plosive."""

_LONG_RUNS = re.compile(rb"\x01{%d,}" % (MIN_PAUSE_MS // BLOCK_MS))
"""Blocks that are marked with 1."""

Pause = tuple[int, int]
"""Its first byte, and the byte behind it."""


class Pauses:
    """The pauses of one item, found when they are asked for."""

    __slots__ = ("_peaks", "_unread", "_unread_bytes")

    def __init__(self) -> None:
        self._peaks = bytearray()
        """Peak of each block, in mu-law codes from 0 (silence) to 127."""
        self._unread: list[str] = []
        self._unread_bytes = 0

    def add(self, payload: str, size: int) -> None:
        """`size` bytes of audio, as base64."""
        self._unread.append(payload)
        self._unread_bytes += size
        if self._unread_bytes >= READ_BYTES:
            self._read()

    def find(self) -> tuple[Pause, ...]:
        """The pauses in the audio so far, in order."""
        self._read()
        loudest = max(self._peaks, default=0)
        if loudest < SOUND_CODES:
            return ()
        quietest = max(loudest - QUIET_CODES, 0)
        quiet = self._peaks.translate(bytes(code <= quietest for code in range(256)))
        return tuple(
            (run.start() * BLOCK_BYTES, run.end() * BLOCK_BYTES)
            for run in _LONG_RUNS.finditer(quiet)
        )

    def _read(self) -> None:
        audio = g711.sound(self._unread)
        count = min(len(audio) // BLOCK_BYTES, MAX_BLOCKS - len(self._peaks))
        self._peaks += g711.peaks(audio[: max(count, 0) * BLOCK_BYTES], BLOCK_BYTES)
        rest = audio[len(audio) // BLOCK_BYTES * BLOCK_BYTES :]
        self._unread = [g711.payload(rest)] if rest else []
        self._unread_bytes = len(rest)
