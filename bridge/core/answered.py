"""What the agent hears of who has answered an outbound call. PURE."""

from typing import Literal

Answer = Literal["voicemail", "screened", "person"]
"""A mailbox; a service that asks who calls before it puts the call through; a
person."""
