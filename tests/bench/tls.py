"""What TLS at the model costs: each frame, each connection, each dial.

    .venv/bin/python -m tests.bench.tls [--uvloop]

Compares plain TCP, the event loop's own TLS and the bridge's (bridge/websocket/tls.py),
over real sockets. Prints the CPU time of the client alone, the lowest of many rounds,
so it is steady on a machine that does other work. Needs the program `openssl`.
"""

import argparse
import asyncio
import os
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

from websockets.asyncio.client import connect
from websockets.http11 import Request
from websockets.server import ServerProtocol

from bridge.model.session import dial
from bridge.websocket import frames
from bridge.websocket.model_connections import ModelClientConnection
from bridge.websocket.text_socket import SocketEnd
from bridge.websocket.tls import tls_client

ROUNDS, FRAMES = 60, 100
CONNECTIONS = 40
DIALS = 40
OUT = "y" * 280
"""Of the size of 20 ms of a caller's audio."""
IN = "x" * 400


class Echo:
    """Answers each frame if it is told to."""

    def __init__(self, socket: ModelClientConnection, answers: bool) -> None:
        self.socket = socket
        self.answers = answers
        self.frames = 0

    def socket_message(self, text: str | bytes) -> None:
        self.frames += 1
        if self.answers:
            self.socket.send_text(OUT)

    def socket_ended(self, end: SocketEnd) -> None: ...
    def socket_resumed(self, seconds: float) -> None: ...


class Peer:
    """A server whose work is not counted: it has blocking sockets."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "ws" if context is None else "wss"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        line = self._listener.accept()[0]
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            line = self._context.wrap_socket(line, server_side=True)
        protocol = ServerProtocol()
        requests: list[Any] = []
        while not requests:
            protocol.receive_data(line.recv(65536))
            requests = protocol.events_received()
        assert isinstance(requests[0], Request)
        protocol.send_response(protocol.accept(requests[0]))
        line.sendall(b"".join(protocol.data_to_send()))
        return line


Opener = Callable[[str], Any]


async def stock(url: str) -> ModelClientConnection:
    """As `bridge.model.session.dial`, with the TLS of the event loop."""
    context = tls_client().context if url.startswith("wss:") else None
    made = await connect(
        url, create_connection=ModelClientConnection, compression=None, ssl=context
    )
    return cast(ModelClientConnection, made)


async def own(url: str) -> ModelClientConnection:
    return cast(ModelClientConnection, await dial(url, {}))


async def pair(
    open_one: Opener, peer: Peer
) -> tuple[ModelClientConnection, socket.socket]:
    line, made = await asyncio.gather(
        asyncio.to_thread(peer.accept), open_one(peer.url)
    )
    return made, line


async def frame_cost(open_one: Opener, peer: Peer, answers: bool) -> float:
    """CPU in us of a frame that arrives, and of one that is sent if it `answers`."""
    made, line = await pair(open_one, peer)
    listener = Echo(made, answers)
    made.listen(listener)
    data = frames.server_frame(IN.encode())
    costs = []
    for _ in range(ROUNDS):
        spent = 0
        for _ in range(FRAMES):
            line.sendall(data)
            seen = listener.frames
            began = time.thread_time_ns()
            while listener.frames == seen:  # noqa: ASYNC110 - no wake-up is measured
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # uvloop writes at the end of the turn
            spent += time.thread_time_ns() - began
            if answers:
                line.recv(65536)
        costs.append(spent / FRAMES / 1000)
    made.abort()
    line.close()
    return min(costs)


async def memory_cost(open_one: Opener, peer: Peer) -> float:
    """kB of resident memory of a connection, without the server's end."""

    def memory() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4.0

    lines = [await pair(open_one, peer) for _ in range(4)]
    before = memory()
    lines += [await pair(open_one, peer) for _ in range(CONNECTIONS)]
    both = (memory() - before) / CONNECTIONS
    for made, line in lines:
        made.abort()
        line.close()
    return both


async def dial_costs(peer: Peer) -> None:
    """CPU of a dial of this process, with its server's end in another thread."""
    for name, fresh in (("full handshake", True), ("resumed session", False)):
        costs = []
        for n in range(DIALS):
            if fresh:
                tls_client()._tickets.clear()
            async with asyncio.TaskGroup() as tasks:
                accepted = tasks.create_task(asyncio.to_thread(peer.accept))
                began = time.thread_time()
                made = await own(peer.url)
                spent = (time.thread_time() - began) * 1000
            tls = made.transport.get_extra_info("ssl_object")
            if n:  # the first may have no ticket
                assert tls.session_reused is not fresh
                costs.append(spent)
            made.abort()
            accepted.result().close()
            await asyncio.sleep(0.005)
        print(f"dial, {name:15}  min {min(costs):.2f}, median {median(costs):.2f} ms")


async def measure(folder: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem")
    began = time.thread_time()
    ssl.create_default_context()
    print(f"loading certificates   {(time.thread_time() - began) * 1000:.1f} ms")
    for name, context, how in (
        ("plain", None, own),
        ("TLS of the event loop", server, stock),
        ("TLS of the bridge", server, own),
    ):
        peer = Peer(context)
        one = await frame_cost(how, peer, answers=False)
        two = await frame_cost(how, peer, answers=True)
        memory = await memory_cost(how, peer)
        print(f"{name:22} in {one:5.1f} us, in and out {two:5.1f} us, {memory:4.0f} kB")
    await dial_costs(peer)


def chain(folder: Path) -> None:
    """A certificate as vendors have it: signed by an intermediate of a root, which is
    trusted beside those of this machine."""

    def run(words: str) -> None:
        subprocess.run(
            ["openssl", *words.split()], check=True, capture_output=True, cwd=folder
        )

    def signed(name: str, by: str, extension: str) -> None:
        (folder / "ext").write_text(extension)
        run(
            f"req -nodes -subj /CN={name} -newkey ec"
            f" -pkeyopt ec_paramgen_curve:prime256v1 -keyout {name}.key -out request"
        )
        run(
            f"x509 -req -in request -CA {by}.pem -CAkey {by}.key -CAcreateserial"
            f" -days 2 -extfile ext -out {name}.pem"
        )

    run(
        "req -x509 -nodes -days 2 -subj /CN=root -newkey ec"
        " -pkeyopt ec_paramgen_curve:secp384r1 -keyout root.key -out root.pem"
    )
    signed("between", "root", "basicConstraints=critical,CA:true")
    signed("leaf", "between", "subjectAltName=IP:127.0.0.1")
    parts = [folder / name for name in ("leaf.key", "leaf.pem", "between.pem")]
    (folder / "cert.pem").write_text("".join(it.read_text() for it in parts))
    usual = ssl.get_default_verify_paths().cafile
    trusted = Path(usual).read_text() if usual else ""
    (folder / "trusted.pem").write_text(trusted + (folder / "root.pem").read_text())
    os.environ["SSL_CERT_FILE"] = str(folder / "trusted.pem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uvloop", action="store_true")
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if parser.parse_args().uvloop:
        import uvloop

        loop = uvloop.new_event_loop
    with tempfile.TemporaryDirectory() as name:
        chain(Path(name))
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(measure(Path(name)))


if __name__ == "__main__":
    main()
