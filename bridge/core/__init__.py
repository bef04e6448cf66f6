"""The pure half of the bridge: decides what is done, never how it is carried out.

Rule 1: no asyncio, sockets, clock, randomness, environment or logging in this folder.
Time is passed in as `now` (seconds); anything to log or count is returned as a `Note`.
Rule 2: the same inputs give the same commands, so a trace of a call can be replayed.
Rule 3: parsers return a value or raise `ProtocolError`; the message is then ignored,
and a Note reports that. tests/test_imports.py enforces rule 1.
"""

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""Errors that msgspec raises for hostile text: not JSON, the wrong shape, a lone
surrogate (or bytes that are not UTF-8), endless nesting."""


class ProtocolError(ValueError):
    """A peer sent a message that its own contract does not allow.

    `reason` is a short fixed phrase that may be counted and logged: it never contains a
    piece of the message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
