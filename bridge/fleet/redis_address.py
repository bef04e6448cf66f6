"""The part of a Redis URL that may be logged: it has no password."""

from urllib.parse import urlsplit


def redis_address(url: str) -> str:
    """Host and port of a Redis URL, or the path of its socket."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}" if parts.hostname else parts.path
