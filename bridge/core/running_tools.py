"""The tools that run now. PURE. history.py knows which results are awaited."""

from bridge.core.history import MAX_OPEN_TOOL_CALLS
from bridge.core.responses import remember


class RunningTools:
    """The tools of one call."""

    def __init__(self) -> None:
        self.count = 0
        """Tools that run now. Waiting for a tool does not count as silence."""
        self.of_server = 0
        """Tools that the model's own server runs as a part of a response. While one
        runs, the response is never late."""
        self.calls: dict[str, None] = {}
        """call_ids of the others, in the order in which they began."""

    def change(self, change: int, call_id: str) -> None:
        """A tool started (+1) or ended (-1). Without `call_id` it is a tool of the
        model's own server."""
        self.count = max(self.count + change, 0)
        if not call_id:
            self.of_server = max(self.of_server + change, 0)
        elif change > 0:
            remember(self.calls, call_id, None, MAX_OPEN_TOOL_CALLS)
        else:
            self.calls.pop(call_id, None)
