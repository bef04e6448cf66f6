"""What the edges of one instance bear: sizes, times, numbers. Values, no behaviour.

What the core bears is bridge.core.bounds. Each limit that is hit is counted
(`bridge_limit_hits_total{limit}`) under one of the names of HITS.
"""

from dataclasses import dataclass

HITS = (
    # connections and requests (connection_guard.py, webhooks.py, api/auth.py)
    "sockets",  # too many that are no call: the oldest was closed
    "sockets_of_address",  # the same for one address
    "request_slow",  # no complete request in time
    "header_bytes",
    "body_bytes",
    "body_slow",
    "answer_slow",  # an answer that nobody reads
    "api_rate",
    # streams (server.py, stream.py, core)
    "start_late",  # no `start` in time
    "message_bytes",
    "message_rate",
    "audio_rate",  # more audio of the caller than time has passed
    "phone_slow",  # nothing was taken in time, or too much waits to be sent
    "audio_held",
    "audio_ahead",
    # calls (quotas.py, server.py, core)
    "calls",  # no line is free
    "calls_of_number",
    "calls_of_number_hour",
    "longest",
    "cost_of_call",
    "cost_of_day",
    # what is dialled (outbound.py, call.py)
    "outbound_number",
    "transfer_number",
    # the model's side (agent/, core)
    "model_bytes",
    "model_flood",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Made of the settings (startup.py); the defaults are theirs."""

    start_seconds: float = 10.0
    """Connection -> request, and stream -> `start`."""
    waiting_sockets: int = 500
    waiting_per_address: int = 100
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    body_seconds: float = 10.0
    send_seconds: float = 5.0
    message_bytes: int = 256 * 1024
    api_per_second: float = 20.0
