"""Speech from espeak-ng, through ctypes and the wheel of the package espeakng_loader.

The library has global state and no locks: all calls go through one lock. This module
does not resample, cache or fall back: it speaks or raises.
"""

import ctypes
import importlib.util
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

# espeak-ng/speak_lib.h
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE_PARAMETER = 1
_POSITION_IS_CHARACTER = 1
_TEXT_IS_UTF8 = 1
_EVENT_LIST_ENDS = 0
_EVENT_WORD = 1

_lock = threading.Lock()


class _EspeakEvent(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


def installed() -> bool:
    """True if the package with the library is installed."""
    return importlib.util.find_spec("espeakng_loader") is not None


class Espeak:
    """The loaded library. Use `espeak()`: a process can have only one."""

    def __init__(self) -> None:
        import espeakng_loader  # optional: `pip install twilio-realtime-bridge[voice]`

        self._data = Path(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        # The wheel's compiled-in data path is that of its build machine, so pass ours.
        self.rate = int(
            self._library.espeak_Initialize(
                _SYNCHRONOUS, 0, str(self._data).encode(), _DONT_EXIT
            )
        )
        if self.rate <= 0:
            raise RuntimeError("espeak-ng found no data")
        self._pcm = bytearray()
        self._events: list[tuple[int, float]] = []
        # Kept in an attribute: ctypes frees an unreferenced callback that espeak still
        # calls.
        self._callback = _Callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pcm += ctypes.string_at(samples, count * 2)
        index = 0
        while events[index].type != _EVENT_LIST_ENDS:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._events.append(
                    (event.text_position - 1, event.audio_position / 1000)
                )
            index += 1
        return 0  # 0: continue

    def say(
        self, text: str, voice: str, words_per_minute: int
    ) -> tuple[bytes, list[tuple[int, float]]]:
        """PCM s16 at `rate`, and (character index, second) of each spoken word.

        espeak's breath noise is random: the same text does not give the same bytes
        twice.
        """
        language, _, variant = voice.partition("+")
        # espeak silently ignores an unknown variant.
        if variant and not (self._data / "voices" / "!v" / variant).is_file():
            raise ValueError(f"espeak-ng has no voice variant {variant!r}")
        with _lock:
            if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {language!r}")
            self._library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)
            self._pcm.clear()
            self._events.clear()
            raw = text.encode()
            status = self._library.espeak_Synth(
                raw,
                ctypes.c_size_t(len(raw) + 1),
                0,
                _POSITION_IS_CHARACTER,
                0,
                _TEXT_IS_UTF8,
                None,
                None,
            )
            if status != 0:
                raise RuntimeError(f"espeak-ng could not speak: {status}")
            return bytes(self._pcm), list(self._events)


@lru_cache(maxsize=1)
def espeak() -> Espeak:
    """The library of this process."""
    return Espeak()
