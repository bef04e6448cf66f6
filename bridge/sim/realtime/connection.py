"""The socket of a fake session: takes messages in the callback in which they arrive.

A load of 300 calls is 15,000 appends a second. `recv` would cost a future, a wake-up of
a task, and a general parser for each.
"""

from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

_TEXT = 0x81  # a whole text message: FIN, opcode 1
_MASKED = 0x80


class ModelSocket(ServerConnection):
    """A ServerConnection that gives short text messages to a function, if asked."""

    _on_text: Callable[[str], bool] | None = None
    _partial = b""  # of a frame; only while `_on_text` is set

    def take_now(self, on_text: Callable[[str], bool]) -> None:
        """From now on, call `on_text` with each short text message, in place of `recv`.

        For a connection on which nothing has arrived. False: `on_text` did not take the
        message; this message and all that follow wait for `recv`, so none overtakes
        another. The same applies after a message that is long, binary, in fragments, or
        not UTF-8.
        """
        self._on_text = on_text

    def data_received(self, data: bytes) -> None:
        if self._on_text is None:
            super().data_received(data)
        else:
            data = self._partial + data
            self._partial = data[self._take_frames(data) :]
            self._give_up_if_odd()

    def _take_frames(self, data: bytes) -> int:
        """Take the whole frames; returns the bytes that were taken."""
        at = 0
        while self._on_text is not None:
            size = _frame_size(data, at)
            if size == 0 or at + size > len(data):
                break
            frame = data[at : at + size]
            if not self._taken(frame):
                super().data_received(frame)
            at += size
        return at

    def _give_up_if_odd(self) -> None:
        rest = self._partial
        if self._on_text is None or _is_odd(rest):
            self._partial, self._on_text = b"", None
            if rest:
                super().data_received(rest)

    def _taken(self, frame: bytes) -> bool:
        """False: the frame is for websockets, and so are all that follow, unless it is
        a control frame."""
        if frame[0] & 0x08:
            return False
        if frame[0] == _TEXT and self.protocol.state is State.OPEN:
            try:
                text = _unmasked(frame)
            except UnicodeDecodeError:
                text = None  # `recv` closes the connection
            if text is not None and self._on_text is not None and self._on_text(text):
                return True
        self._on_text = None
        return False


def _frame_size(data: bytes, at: int) -> int:
    """Bytes of the frame that begins at `at`; 0 if they are not known yet, or if the
    frame is for websockets (`_is_odd`)."""
    if len(data) < at + 4:
        return 0
    if not data[at + 1] & _MASKED:
        return 0
    size = data[at + 1] & 0x7F
    if size < 126:
        return 6 + size
    if size == 126:
        return 8 + (data[at + 2] << 8 | data[at + 3])
    return 0


def _is_odd(data: bytes) -> bool:
    """The frame that begins here is long, or not masked, which is an error."""
    return len(data) > 1 and (data[1] & 0x7F == 127 or not data[1] & _MASKED)


def _unmasked(frame: bytes) -> str:
    head = 4 if frame[1] & 0x7F == 126 else 2
    key = frame[head : head + 4]
    size = len(frame) - head - 4
    keys = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    masked = int.from_bytes(frame[head + 4 :], "little")
    return (masked ^ keys).to_bytes(size, "little").decode()
