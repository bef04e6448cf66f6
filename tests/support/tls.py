"""A server's certificate for tests, and a client that trusts it."""

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.websocket.tls import tls_client


def server_context(folder: Path, name: str = "IP:127.0.0.1") -> ssl.SSLContext:
    """The TLS context of a server with a certificate of its own, in
    `folder`/cert.pem. Each context has its own key for tickets."""
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    if not Path(cert).exists():
        command = "openssl req -x509 -nodes -days 2 -subj /CN=test -newkey ec"
        curve = "-pkeyopt ec_paramgen_curve:prime256v1"
        words = f"{command} {curve} -addext subjectAltName={name}".split()
        subprocess.run(
            [*words, "-keyout", key, "-out", cert], check=True, capture_output=True
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


@contextmanager
def trusted(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within this context, the model's certificate is that in the folder."""
    patch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    patch.delenv("SSL_CERT_DIR", raising=False)
    tls_client.cache_clear()
    try:
        yield
    finally:
        tls_client.cache_clear()
