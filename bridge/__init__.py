"""The public API: all that a user's agent file imports. Nothing else is promised.

    from bridge import LiveCall, hang_up

Names are loaded when they are first used, so `import bridge` alone stays fast and does
not import the SDK.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.agent.approvals import Approval as Approval
    from bridge.agent.events import CallEvent as CallEvent
    from bridge.agent.live import BadRequest as BadRequest
    from bridge.agent.live import CallFacts as CallFacts
    from bridge.agent.live import CallOver as CallOver
    from bridge.agent.live import LiveCall as LiveCall
    from bridge.agent.live import Message as Message
    from bridge.agent.live import NotAllowed as NotAllowed
    from bridge.agent.live import Transfer as Transfer
    from bridge.agent.phone_tools import PHONE_TOOLS as PHONE_TOOLS
    from bridge.agent.phone_tools import hang_up as hang_up
    from bridge.agent.phone_tools import send_digits as send_digits
    from bridge.agent.phone_tools import take_message as take_message
    from bridge.agent.phone_tools import transfer_call as transfer_call
    from bridge.core.history import HistoryItem as HistoryItem
    from bridge.model.results import BackgroundResult as BackgroundResult
    from bridge.model.results import background_result as background_result
    from bridge.records.report import CallReport as CallReport
    from bridge.records.report import CallUsage as CallUsage
    from bridge.records.report import ToolCall as ToolCall
    from bridge.records.report import TranscriptEntry as TranscriptEntry

_MODULES = {
    "bridge.agent.approvals": ("Approval",),
    "bridge.agent.events": ("CallEvent",),
    "bridge.agent.live": (
        "BadRequest",
        "CallFacts",
        "CallOver",
        "LiveCall",
        "Message",
        "NotAllowed",
        "Transfer",
    ),
    "bridge.agent.phone_tools": (
        "PHONE_TOOLS",
        "hang_up",
        "send_digits",
        "take_message",
        "transfer_call",
    ),
    "bridge.core.history": ("HistoryItem",),
    "bridge.model.results": ("BackgroundResult", "background_result"),
    "bridge.records.report": (
        "CallReport",
        "CallUsage",
        "ToolCall",
        "TranscriptEntry",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Imports the module of an exported name when the name is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
