"""Tool results that the model learns but the agent does not speak about."""

import json
from typing import Any


class BackgroundResult(str):
    """A tool's result after which no response is requested (PhoneModel.send_event)."""

    __slots__ = ()


def background_result(value: Any) -> BackgroundResult:
    """Makes a tool result that the model learns without speaking about it.

    Use it in a tool: `return background_result(value)`. A str is sent as it is; any
    other value must be JSON-serializable (TypeError otherwise).
    """
    return BackgroundResult(value if isinstance(value, str) else json.dumps(value))
