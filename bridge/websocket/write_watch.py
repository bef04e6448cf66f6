"""Notices a peer that does not read, while the transport is paused."""

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable

CHECKS = 5
"""Looks at the connection within `seconds`, so that a stuck peer is noticed after that
time and at most a fifth more."""

_BYTES_ACKED = 120
"""Where `struct tcp_info` of Linux has the number of bytes that the peer has
acknowledged (RFC 4898, 8 bytes)."""


class WriteWatch:
    """Notices a peer that does not read. A peer that is slow, but reads, is not
    stuck."""

    def __init__(self, seconds: float, on_stuck: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_stuck = on_stuck
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = self._acked = self._quiet = 0
        self.written = 0
        """Bytes written while the transport is paused: what waits may grow although the
        peer reads."""

    def start(self, transport: asyncio.Transport) -> None:
        """The transport was paused."""
        if self._timer is not None:
            return
        self._since = time.monotonic()
        self._look(transport)
        self._quiet = 0
        self._arm(transport)

    def stop(self) -> float:
        """The transport goes on, or is closed. Returns the seconds it was paused."""
        if self._timer is None:
            return 0.0
        self._timer.cancel()
        self._timer = None
        return time.monotonic() - self._since

    def _arm(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds / CHECKS, self._check, transport)

    def _check(self, transport: asyncio.Transport) -> None:
        self._timer = None
        if not transport.get_write_buffer_size():
            return
        self._quiet = 0 if self._look(transport) else self._quiet + 1
        if self._quiet < CHECKS:
            self._arm(transport)
        else:
            self._on_stuck()

    def _look(self, transport: asyncio.Transport) -> bool:
        """Whether the peer has read anything since the last look."""
        before = self._unsent + self.written, self._acked
        self._unsent, self.written = transport.get_write_buffer_size(), 0
        self._acked = acked_bytes(transport)
        return self._unsent < before[0] or self._acked != before[1]


def acked_bytes(transport: asyncio.Transport) -> int:
    """What the peer has acknowledged. The transport's buffer alone does not tell that a
    slow peer reads: the operating system takes more data only after much was read, and
    a TLS transport of the event loop does not show the data that waits below it. 0 for
    a connection that is not TCP, and where Linux is not."""
    line = transport.get_extra_info("socket")
    if sys.platform == "linux" and line is not None:
        with contextlib.suppress(OSError, struct.error):  # not TCP; closed; another OS
            size = _BYTES_ACKED + 8
            info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
            return int(struct.unpack_from("=Q", info, _BYTES_ACKED)[0])
    return 0
