"""Limits of one instance at its edges: sizes, times, numbers. Values, no behaviour.

bridge.core.bounds has the limits of the core. Each limit that is hit is counted
(`bridge_limit_hits_total{limit}`) under one of the names of HITS.
"""

from dataclasses import dataclass

HITS = (
    # connections and requests (connection_guard.py, webhooks.py, api/auth.py)
    "sockets",  # too many sockets without a call: the oldest was closed
    "sockets_of_address",  # the same for one address
    "request_slow",  # no complete request in time
    "header_bytes",
    "body_bytes",
    "body_slow",
    "answer_slow",  # the client does not read our answer
    "api_rate",
    # streams (server.py, stream.py, core)
    "start_late",  # no `start` in time
    "message_bytes",
    "message_rate",
    "audio_rate",  # more audio of the caller than time has passed
    "phone_slow",  # Twilio reads too slowly, or too much waits to be sent
    "audio_held",
    "audio_ahead",
    # calls (quotas.py, server.py, core)
    "calls",  # the maximum number of calls is running
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
    """Built from the settings (startup.py), whose defaults these are."""

    start_seconds: float = 10.0
    """From a connection to its request, and from a stream to its `start`."""
    waiting_sockets: int = 500
    waiting_per_address: int = 100
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    body_seconds: float = 10.0
    send_seconds: float = 5.0
    message_bytes: int = 256 * 1024
    api_per_second: float = 20.0
