"""The tools that run now, and the calls of tools that have no result yet. PURE."""

from bridge.core.limits import MAX_ID_CHARS

MAX_OPEN_TOOL_CALLS = 64
"""Most tool calls remembered as running; beyond that the oldest are forgotten."""


class RunningTools:
    """The tools of one call."""

    def __init__(self) -> None:
        self.count = 0
        """Tools that run now. Waiting for a tool does not count as silence."""
        self.of_server = 0
        """Tools that the model's own server runs as a part of a response. While one
        runs, the response is never late."""
        self.open_calls: dict[str, None] = {}
        """call_ids of tools that run or wait for an approval."""

    def change(self, change: int, call_id: str) -> None:
        """A tool started (+1) or ended (-1). Without `call_id` it is a tool of the
        model's own server."""
        self.count = max(self.count + change, 0)
        if not call_id:
            self.of_server = max(self.of_server + change, 0)
        elif change > 0 and len(call_id) <= MAX_ID_CHARS:
            self.open_calls[call_id] = None
            if len(self.open_calls) > MAX_OPEN_TOOL_CALLS:
                del self.open_calls[next(iter(self.open_calls))]
