"""The pure half of the bridge: what is decided, never how it is carried.

Rule 1: no asyncio, sockets, clock, randomness, environment or logging in this folder;
time is handed in as `now` (seconds), what is to be seen leaves as a `Note`.
Rule 2: the same inputs give the same commands. A trace of a call can be replayed.
Rule 3: parsers answer a value or raise `ProtocolError`; everything behind them ignores
what it does not know and says so in a Note.
Kept by tests/test_imports.py.
"""

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises for hostile text: no JSON or of another shape, a lone surrogate
(or bytes that are no UTF-8), nested without end."""


class ProtocolError(ValueError):
    """The far side sent what its own contract does not allow.

    `reason` is a short fixed phrase, fit to be counted and to be logged: it never
    carries a piece of the message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
