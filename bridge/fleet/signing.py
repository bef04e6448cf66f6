"""Signatures of what instances tell each other through Redis.

Whoever can write to Redis can send any message there. A signed one proves that its
sender has the secret that all bridges of the fleet share. It hides nothing: whoever can
read Redis can read it.
"""

import hmac

MAC_BYTES = 32


class FleetKey:
    """Derived from the secret, so that a signature tells nothing about the secret."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("the key of a fleet needs a secret")
        self._key = hmac.digest(secret.encode(), b"bridge fleet key", "sha256")

    def sign(self, purpose: bytes, content: bytes) -> bytes:
        """`purpose`: what the content is used for. A signature of another purpose is
        not valid."""
        return self._mac(purpose, content) + content

    def verified(self, purpose: bytes, signed: bytes) -> bytes | None:
        """The content; None if it was not signed for this purpose with this key."""
        mac, content = signed[:MAC_BYTES], signed[MAC_BYTES:]
        right = self._mac(purpose, content)
        return content if hmac.compare_digest(mac, right) else None

    def _mac(self, purpose: bytes, content: bytes) -> bytes:
        # The length of the purpose stands first: no two pairs give the same text.
        return hmac.digest(
            self._key, b"%d:%b%b" % (len(purpose), purpose, content), "sha256"
        )
