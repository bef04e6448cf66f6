"""The gateways of tests/bench/gateways.py: how each is installed and started.

All of them listen on loopback only, and none of them connects to other machines:
LiteLLM would fetch a price list and send telemetry.
"""

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from bridge.sim.ports import free_port

MODEL = "gpt-realtime-2.1"
ALIAS = "front-desk"
UPSTREAM_KEY = "sk-upstream"
GATEWAY_KEY = "sk-gateway"

VERSIONS = {
    "litellm[proxy]": "1.108.7",
    "@portkey-ai/gateway": "1.15.2",
    "@copilotkit/aimock": "1.43.0",
}
"""The versions whose results docs/models.md has."""

START_SECONDS = 120.0  # LiteLLM imports for half a minute on a loaded machine
STOP_SECONDS = 10.0

_PRELOAD = """
const net = require("net"), tls = require("tls");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (first, ...rest) {
  const options = typeof first === "object" ? first : { port: Number(first) };
  const done = rest.filter((it) => typeof it === "function");
  return listen.call(this, { ...options, host: "127.0.0.1" }, ...done);
};
tls.connect = () => net.connect(Number(process.env.MODEL_PORT), "127.0.0.1");
"""
"""Runs in Portkey's process before it: it listens on loopback, and its TLS connections
go to the fake model, because for Realtime it connects to api.openai.com whatever
x-portkey-custom-host says."""


@dataclass(frozen=True, slots=True)
class Program:
    """The command that starts a gateway, and its part of the environment."""

    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


Prepare = Callable[[Path, Path, int, int], Program]
"""(folder of the programs, folder for files, port, port of the model)"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A way to the model. `model`: the name that the bridge uses. `prepare` None: no
    gateway, the bridge connects to the fake model."""

    name: str
    model: str = MODEL
    prepare: Prepare | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """The bridge's headers (BRIDGE_MODEL_HEADERS)."""
    scripted: bool = True
    """The fake model answers behind it. False: it is a mock that answers itself."""


# --- the programs -------------------------------------------------------------------


def _litellm(folder: Path, files: Path, port: int, model_port: int) -> Program:
    upstream = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://127.0.0.1:{model_port}/v1",
        "api_key": UPSTREAM_KEY,
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": upstream} for name in (MODEL, ALIAS)
        ],
        "general_settings": {"master_key": GATEWAY_KEY},
    }
    file = files / "litellm.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    options = ("--host", "127.0.0.1", "--port", str(port), "--config", str(file))
    return Program(
        [str(folder / "litellm/bin/litellm"), *options],
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
    )


def _portkey(folder: Path, files: Path, port: int, model_port: int) -> Program:
    preload = files / "preload.cjs"
    preload.write_text(_PRELOAD)
    server = folder / "npm/node_modules/@portkey-ai/gateway/build/start-server.js"
    return Program(
        [_node(), "--require", str(preload), str(server), f"--port={port}"],
        {"MODEL_PORT": str(model_port), "NODE_ENV": "production"},
    )


def _aimock(folder: Path, files: Path, port: int, model_port: int) -> Program:
    fixtures = files / "fixtures.json"
    answer = {"match": {}, "response": {"content": "Hello, this is the mock."}}
    fixtures.write_text(json.dumps({"fixtures": [answer]}))
    server = folder / "npm/node_modules/@copilotkit/aimock/dist/cli.js"
    options = ("--host", "127.0.0.1", "--port", str(port), "--fixtures", str(fixtures))
    return Program([_node(), str(server), *options])


def _node() -> str:
    node = which("node")
    assert node, "node is not installed"
    return node


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


_PORTKEY_HEADERS = {**_bearer(UPSTREAM_KEY), "x-portkey-provider": "openai"}

GATEWAYS = (
    Gateway("none", headers=_bearer(UPSTREAM_KEY)),
    Gateway("litellm", prepare=_litellm, headers=_bearer(GATEWAY_KEY)),
    Gateway("litellm-alias", ALIAS, prepare=_litellm, headers=_bearer(GATEWAY_KEY)),
    Gateway("portkey", prepare=_portkey, headers=_PORTKEY_HEADERS),
    Gateway("aimock", prepare=_aimock, headers=_bearer("any"), scripted=False),
)


def install(folder: Path) -> None:
    """Installs the programs into `folder` from the Python and npm registries."""
    packages = [f"{name}=={it}" for name, it in VERSIONS.items() if name[0] != "@"]
    modules = [f"{name}@{it}" for name, it in VERSIONS.items() if name[0] == "@"]
    venv = folder / "litellm"
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin/pip"), "install", "--quiet", *packages],
        ["npm", "install", "--silent", "--prefix", str(folder / "npm"), *modules],
    ):
        subprocess.run(command, check=True)


# --- running ------------------------------------------------------------------------


@asynccontextmanager
async def running(
    gateway: Gateway, folder: Path, files: Path, model_port: int
) -> AsyncIterator[int]:
    """The port of the gateway in front of the model at `model_port`, once it accepts
    connections."""
    if gateway.prepare is None:
        yield model_port
        return
    port = free_port()
    program = gateway.prepare(folder, files, port, model_port)
    with (files / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *program.command,
            env={**_plain_environ(), **program.environ},
            cwd=files,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            await _accepts(port, process, files)
            yield port
        finally:
            await _stop(process)


def _plain_environ() -> dict[str, str]:
    """The environment without keys and settings of vendors."""
    vendors = ("BRIDGE_", "OPENAI_", "TWILIO_", "LITELLM_", "PYTHON")
    return {k: v for k, v in os.environ.items() if not k.startswith(vendors)}


async def _accepts(port: int, process: Process, files: Path) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            if process.returncode is not None:
                output = (files / "gateway.log").read_text(errors="replace")
                raise ChildProcessError(f"the gateway exited:\n{output[-2000:]}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.2)
            else:
                writer.close()
                return


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
