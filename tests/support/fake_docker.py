"""A fake `docker` that keeps its state in the test, for tests of scripts/deploy.py.

`FakeDocker.program` is a small client that sends its words to the test. It imports next
to nothing, because one deploy starts docker about 30 times.

The state: `containers`, `tags` (image name -> ID), `replicas`, `slots`, `env`, the
`calls` that were made, and faults: `fail` (commands that begin with one of these fail),
`new_state`, `new_health`, `check_fails`, `status` and `registry_up` of every bridge,
`exit_code` of a stopped bridge, `slow` (commands that begin with one of these take
until it is removed).
"""

import json
import select
import shlex
import socket
import sys
import threading
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Self

IMAGE = "registry.example.com:5000/phone/bridge"


def container(number: int, image: str, state: str = "running") -> dict[str, Any]:
    """A container in the form of `docker inspect`."""
    return {
        "Id": f"id{number:02}",
        "Name": f"/phone-bridge-{number}",
        "Image": image,
        "Config": {"StopTimeout": 330},
        "State": {"Status": state, "ExitCode": 0, "Health": {"Status": "healthy"}},
    }


@dataclass
class Answer:
    out: str = ""
    error: str = ""
    code: int = 0


_CLIENT = r"""
import _socket, sys
line = _socket.socket()
line.connect(("127.0.0.1", int(sys.argv[1])))
line.sendall("\x1f".join(sys.argv[2:]).encode() + b"\0")
told = b""
while part := line.recv(65536):
    told += part
code, out, error = told.split(b"\0")
sys.stdout.buffer.write(out)
sys.stderr.buffer.write(error)
sys.exit(int(code))
"""


class FakeDocker(ThreadingTCPServer):
    """`with FakeDocker(containers=..., tags=...) as docker:` answers inside the block.
    A client that is killed takes its command with it, as far as it has not run yet."""

    daemon_threads = True

    def __init__(self, **facts: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Command)
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"calls": [], **facts}

    @property
    def program(self) -> str:
        """The text of the program `docker`."""
        client = shlex.join([sys.executable, "-I", "-S", "-c", _CLIENT])
        return f'#!/bin/sh\nexec {client} {self.server_address[1]} "$@"\n'

    @property
    def state(self) -> dict[str, Any]:
        with self._lock:
            return deepcopy(self._state)

    def set(self, **facts: Any) -> None:
        with self._lock:
            self._state.update(facts)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def run(self, words: list[str], client: socket.socket) -> Answer:
        command = " ".join(words)
        with self._lock:
            self._state["calls"].append(words)
        while any(command.startswith(begins) for begins in self.state.get("slow", [])):
            if _gone(client, 0.05):
                return Answer(code=1)
        while words[0] == "wait" and self._some_run(words):
            if _gone(client, 0.1):
                return Answer(code=1)
        with self._lock:
            state = self._state
            if any(command.startswith(begins) for begins in state.get("fail", [])):
                return Answer(error=f"Error: made to fail: {command}\n", code=1)
            if words[0] == "compose":
                return compose(state, words[1:])
            return own(state, words)

    def _some_run(self, words: list[str]) -> bool:
        containers = self.state["containers"]
        return any(
            it["Id"] in words and it["State"]["Status"] == "running"
            for it in containers
        )


class _Command(BaseRequestHandler):
    server: FakeDocker

    def handle(self) -> None:
        asked = b""
        while not asked.endswith(b"\0"):
            part = self.request.recv(65536)
            if not part:
                return
            asked += part
        words = asked[:-1].decode().split("\x1f")
        told = self.server.run(words, self.request)
        text = f"{told.code}\0{told.out}\0{told.error}"
        with suppress(OSError):  # the client was killed
            # Not every log is UTF-8.
            self.request.sendall(text.encode("utf-8", "surrogateescape"))


def _gone(client: socket.socket, seconds: float) -> bool:
    """Waits so long; true at once if the client ends before."""
    return bool(select.select([client], [], [], seconds)[0])


def compose(state: dict[str, Any], words: list[str]) -> Answer:
    bridges: list[dict[str, Any]] = state["containers"]
    match words:
        case ["config", *_]:
            service = {
                "image": state.get("image", IMAGE),
                "deploy": {"replicas": state.get("replicas", 2)},
                "environment": state.get("env", {}),
                "stop_grace_period": "5m30s",
            }
            return Answer(json.dumps({"services": {"bridge": service}}))
        case ["ps", *_, "bridge"]:
            return Answer("\n".join(it["Id"] for it in bridges))
        case ["ps", *_]:
            return Answer("balancer")
        case ["build", *_]:
            state["tags"][IMAGE] = "new"
        case ["run", *_] if state.get("check_fails"):
            return Answer("error    BRIDGE_AGENT   nowhere.py is not there\n", code=1)
        case ["up", *rest]:
            scale(state, int(rest[rest.index("--scale") + 1].partition("=")[2]))
        case ["exec", *rest] if "printenv" in rest:
            return Answer(str(state.get("slots", 40)))
        case ["exec", *_]:
            names = (
                it["Name"][1:] for it in bridges if it["State"]["Status"] == "running"
            )
            rows = [f"media,{name},UP" for name in names]
            return Answer("\n".join(["# pxname,svname,status", *rows]))
    return Answer()


def scale(state: dict[str, Any], count: int) -> None:
    bridges: list[dict[str, Any]] = state["containers"]
    while len(bridges) < count:
        number = max(int(it["Id"][2:]) for it in bridges) + 1
        new = container(number, state["tags"][IMAGE], state.get("new_state", "running"))
        new["State"]["Health"]["Status"] = state.get("new_health", "healthy")
        bridges.append(new)


def own(state: dict[str, Any], words: list[str]) -> Answer:
    bridges: list[dict[str, Any]] = state["containers"]
    named = [it for it in bridges if it["Id"] in words]
    match words:
        case ["inspect", "balancer"]:
            return Answer(json.dumps([container(1, "haproxy")]))
        case ["inspect", *ids]:
            if len(named) < len(ids):
                return Answer(error="Error: No such object\n", code=1)
            return Answer(json.dumps(named))
        case ["exec", *_]:
            up = state.get("registry_up", 1.0)
            status = state.get("status", "ready")
            told = {"status": status, "calls": 3, "registry_up": up}
            return Answer(json.dumps(told))
        case ["tag", source, target]:
            state["tags"][target] = state["tags"].get(source, source)
        case ["image", "inspect", *_]:
            if words[-1] not in state["tags"]:
                return Answer(error="Error: No such image\n", code=1)
            return Answer(state["tags"][words[-1]])
        case ["stop", *_]:
            for it in named:
                it["State"]["Status"] = "exited"
                it["State"]["ExitCode"] = state.get("exit_code", 0)
        case ["rm", *_]:
            state["containers"] = [it for it in bridges if it not in named]
        case ["logs", *_]:
            return Answer("the agent nowhere.py, caf\udce9\n")
    return Answer()
