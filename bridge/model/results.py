"""What a tool may return besides a plain result: one the agent does not speak about."""

import json
from typing import Any


class BackgroundResult(str):
    """A tool's result that asks for no answer (PhoneModel.send_event)."""

    __slots__ = ()


def background_result(value: Any) -> BackgroundResult:
    """The model learns of it, the agent says nothing: `return background_result(x)`.

    A text stays as it is; all else must be fit for JSON.
    """
    return BackgroundResult(value if isinstance(value, str) else json.dumps(value))
