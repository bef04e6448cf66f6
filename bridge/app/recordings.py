"""Audio files that routes and settings name: each is read and converted once."""

import base64
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bridge.audio import g711

MAX_FILE_BYTES = 32 << 20
"""Two minutes in stereo, of 48 kHz and 24 bits, have 35 MB; others are smaller."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What a waiting caller hears."""

    name: str
    """`tone`, `off`, or the path of a file."""
    payload: str | None = field(repr=False)
    """As Rules.waiting_sound."""


TONE = Sound("tone", "")
OFF = Sound("off", None)

SHORTEST_SECONDS = 1.0
"""Of a waiting sound: it is repeated without a pause, and each time costs a tick of the
call. A file of one sample would take all of a core."""


def waiting_sound(text: str) -> Sound:
    """Raises ValueError, whose text says what to do."""
    text = text.strip()
    named = {it.name: it for it in (TONE, OFF)}.get(text.lower())
    return named or Sound(text, _repeatable(recording(text)))


def _repeatable(payload: str) -> str:
    if g711.payload_bytes(payload) < SHORTEST_SECONDS * 1000 * g711.BYTES_PER_MS:
        raise ValueError(
            f"is repeated, and shorter than {SHORTEST_SECONDS:.0f} s: add silence"
        )
    return payload


@cache
def recording(path: str) -> str:
    """A WAV file as base64 mu-law of 8 kHz. Raises ValueError, whose text says what to
    do."""
    from bridge.audio import wav  # with numpy, 10 MB

    try:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError("is no file: write the path of a WAV file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MB: shorten it")
        data = file.read_bytes()
    except RuntimeError:
        fault = "is in the home folder of an unknown user"
        raise ValueError(f"{fault}: write the whole path") from None
    except OSError as error:
        reason = error.strerror or "not readable"
        raise ValueError(f"cannot be read ({reason}): correct its path") from None
    return base64.b64encode(wav.mulaw(data)).decode()
