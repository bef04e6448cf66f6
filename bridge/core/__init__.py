"""The pure half of the bridge: decides what is done, never how it is carried out.

Rule 1: no asyncio, sockets, clock, randomness, environment or logging in this folder.
Time is passed in as `now` (seconds); what is to be seen is returned as a `Note`. Rule
2: the same inputs give the same commands, so a trace of a call can be replayed. Rule 3:
parsers return a value or raise `ProtocolError`; the code behind them ignores what it
does not know and says so in a Note. tests/test_imports.py enforces rule 1.
"""

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises for hostile text: no JSON, the wrong shape, a lone surrogate (or
bytes that are no UTF-8), endless nesting."""


class ProtocolError(ValueError):
    """A peer sent what its own contract does not allow.

    `reason` is a short fixed phrase that may be counted and logged: it never contains a
    piece of the message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
