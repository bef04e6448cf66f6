"""A fake `docker` that keeps its state in a file, for tests of scripts/deploy.py.

A test runs it as `docker`; FAKE_DOCKER names a JSON file: `containers`, `tags` (image
name -> ID), `replicas`, `slots`, `env`, the `calls` that were made, and faults: `fail`
(commands that begin with one of these fail), `new_state`, `new_health`, `check_fails`,
`status` and `registry_up` of every bridge, `exit_code` of a stopped bridge, `slow`
(command -> seconds that it takes).
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FILE = Path(os.environ.get("FAKE_DOCKER", "unset"))
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


def main(words: list[str]) -> int:
    with LOCK:
        fcntl.flock(LOCK, fcntl.LOCK_EX)
        state = json.loads(FILE.read_text())
        state.setdefault("calls", []).append(words)
        write(state)
        command = " ".join(words)
        for begins, seconds in state.get("slow", {}).items():
            if command.startswith(begins):
                fcntl.flock(LOCK, fcntl.LOCK_UN)
                time.sleep(seconds)
                fcntl.flock(LOCK, fcntl.LOCK_EX)
                state = json.loads(FILE.read_text())
        if any(command.startswith(begins) for begins in state.get("fail", [])):
            print(f"Error: made to fail: {command}", file=sys.stderr)
            return 1
        code = compose(state, words[1:]) if words[0] == "compose" else own(state, words)
        write(state)
        return code


def write(state: dict[str, Any]) -> None:
    """Replaces the file at once: a test that reads it never sees a part."""
    new = FILE.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(FILE)


def compose(state: dict[str, Any], words: list[str]) -> int:
    bridges: list[dict[str, Any]] = state["containers"]
    match words:
        case ["config", *_]:
            service = {
                "image": state.get("image", IMAGE),
                "deploy": {"replicas": state.get("replicas", 2)},
                "environment": state.get("env", {}),
                "stop_grace_period": "5m30s",
            }
            print(json.dumps({"services": {"bridge": service}}))
        case ["ps", *_, "bridge"]:
            print("\n".join(it["Id"] for it in bridges))
        case ["ps", *_]:
            print("balancer")
        case ["build", *_]:
            state["tags"][IMAGE] = "new"
        case ["run", *_] if state.get("check_fails"):
            print("error    BRIDGE_AGENT   nowhere.py is not there")
            return 1
        case ["up", *rest]:
            scale(state, int(rest[rest.index("--scale") + 1].partition("=")[2]))
        case ["exec", *rest] if "printenv" in rest:
            print(state.get("slots", 40))
        case ["exec", *_]:
            print("# pxname,svname,status")
            for it in bridges:
                if it["State"]["Status"] == "running":
                    print(f"media,{it['Name'][1:]},UP")
    return 0


def scale(state: dict[str, Any], count: int) -> None:
    bridges: list[dict[str, Any]] = state["containers"]
    while len(bridges) < count:
        number = max(int(it["Id"][2:]) for it in bridges) + 1
        new = container(number, state["tags"][IMAGE], state.get("new_state", "running"))
        new["State"]["Health"]["Status"] = state.get("new_health", "healthy")
        bridges.append(new)


def own(state: dict[str, Any], words: list[str]) -> int:
    bridges: list[dict[str, Any]] = state["containers"]
    named = [it for it in bridges if it["Id"] in words]
    match words:
        case ["inspect", "balancer"]:
            print(json.dumps([container(1, "haproxy")]))
        case ["inspect", *ids]:
            if len(named) < len(ids):
                print("Error: No such object", file=sys.stderr)
                return 1
            print(json.dumps(named))
        case ["exec", *_]:
            up = state.get("registry_up", 1.0)
            status = state.get("status", "ready")
            print(json.dumps({"status": status, "calls": 3, "registry_up": up}))
        case ["tag", source, target]:
            state["tags"][target] = state["tags"].get(source, source)
        case ["image", "inspect", *_]:
            if words[-1] not in state["tags"]:
                print("Error: No such image", file=sys.stderr)
                return 1
            print(state["tags"][words[-1]])
        case ["stop", *_]:
            for it in named:
                it["State"]["Status"] = "exited"
                it["State"]["ExitCode"] = state.get("exit_code", 0)
        case ["wait", *_]:
            running = [it for it in named if it["State"]["Status"] == "running"]
            while running:
                fcntl.flock(LOCK, fcntl.LOCK_UN)
                time.sleep(0.1)
                fcntl.flock(LOCK, fcntl.LOCK_EX)
                state |= json.loads(FILE.read_text())
                ids = {it["Id"] for it in running}
                running = [
                    it
                    for it in state["containers"]
                    if it["Id"] in ids and it["State"]["Status"] == "running"
                ]
        case ["rm", *_]:
            state["containers"] = [it for it in bridges if it not in named]
        case ["logs", *_]:
            sys.stdout.buffer.write(b"the agent nowhere.py, caf\xe9\n")
    return 0


if __name__ == "__main__":
    LOCK = FILE.with_suffix(".lock").open("w")
    sys.exit(main(sys.argv[1:]))
