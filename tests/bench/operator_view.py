"""What the operator of a fleet sees: alerts, the log, metrics, and the runbook.

Alerts are those of deploy/alerts.yml, evaluated by a real Prometheus. The first command
of a section of the runbook is run with a `docker` that shows the fleet's output.
"""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bridge.sim.ports import HOST, free_port
from scripts.fleet import ROOT, Fleet, Process

SCRAPE_SECONDS = 5.0
"""As in deploy/prometheus.yml."""

ANSWER_SECONDS = 5.0
COMMAND_SECONDS = 20.0

CONFIG = """
global: {{scrape_interval: 5s, evaluation_interval: 5s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: bridge
    static_configs: [targets: [{bridges}]]
  - job_name: balancer
    static_configs: [targets: ["{balancer}"]]
"""


@dataclass
class Alert:
    """An alert as Prometheus has it; `fired_at` is a monotonic time."""

    name: str
    annotations: Mapping[str, str]
    fired_at: float


class Prometheus:
    """A Prometheus that scrapes the fleet; `async with` starts and ends it."""

    def __init__(self, program: str, fleet: Fleet, folder: Path) -> None:
        self._port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(
            CONFIG.format(
                rules=ROOT / "deploy" / "alerts.yml",
                bridges=", ".join(f'"{HOST}:{it.port}"' for it in fleet.bridges),
                balancer=fleet.balancer_metrics_url.split("/")[2],
            )
        )
        command = [program, f"--config.file={config}"]
        command += [f"--storage.tsdb.path={folder / 'prometheus'}"]
        command += [f"--web.listen-address={HOST}:{self._port}"]
        self._process = Process("prometheus", command, folder, os.environ)
        self.fired: dict[str, Alert] = {}
        """The alerts that have fired, by name."""
        self.firing: set[str] = set()
        self.pending: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._process.launch()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._process.destroy()

    async def watch(self) -> None:
        """Notes which alerts fire, until it is cancelled."""
        while True:
            await asyncio.sleep(SCRAPE_SECONDS)
            if not self._process.running:
                raise RuntimeError(f"Prometheus ended\n{self._process.tail()}")
            alerts = await self._alerts()
            self.firing = {_name(it) for it in alerts if it["state"] == "firing"}
            self.pending = {_name(it) for it in alerts} - self.firing
            for it in alerts:
                if it["state"] == "firing" and _name(it) not in self.fired:
                    alert = Alert(_name(it), it["annotations"], monotonic())
                    self.fired[alert.name] = alert

    async def _alerts(self) -> list[dict[str, Any]]:
        url = f"http://{HOST}:{self._port}/api/v1/alerts"
        limit = aiohttp.ClientTimeout(ANSWER_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as http,
                http.get(url) as answer,
            ):
                alerts: list[dict[str, Any]] = (await answer.json())["data"]["alerts"]
                return alerts
        except aiohttp.ClientConnectorError:
            return []  # it has not started yet


def _name(alert: Mapping[str, Any]) -> str:
    return str(alert["labels"]["alertname"])


# --- the log ---


def events(log: Path, skip_bytes: int = 0) -> Counter[tuple[str, str]]:
    """(level, event) of the warnings and errors of a bridge's log, behind this
    position."""
    found: Counter[tuple[str, str]] = Counter()
    for line in log.read_bytes()[skip_bytes:].splitlines():
        if not line.startswith(b"{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            found["error", "cut off line"] += 1
            continue
        if entry["level"] in ("warning", "error", "critical"):
            found[entry["level"], entry["event"].partition("\n")[0]] += 1
    return found


# --- metrics ---


async def metrics_page(fleet: Fleet) -> str:
    """The /metrics of the first bridge."""
    limit = aiohttp.ClientTimeout(2 * ANSWER_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=limit) as http,
        http.get(f"{fleet.bridges[0].url}/metrics") as answer,
    ):
        return await answer.text()


def series(page: str) -> dict[str, float]:
    """Each series of the bridge by its name with labels."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.name.startswith("bridge_"):
                continue
            labels = ",".join(f"{key}={it}" for key, it in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = (
                sample.value
            )
    return found


def moved(before: str, began: str, ended: str) -> list[str]:
    """What moved in the outage (from `began` to `ended`), and did not move like this
    before it (from `before` to `began`). Each is a line for people."""
    normal, start, end = series(before), series(began), series(ended)
    lines = []
    for name, value in end.items():
        plain = re.sub(r"\{.*", "", name)
        if plain.endswith(("_bucket", "_created", "_sum", "_count")):
            continue
        change = value - start.get(name, 0.0)
        if plain.endswith("_total"):
            if change > 0 and start.get(name, 0.0) == normal.get(name, 0.0):
                lines.append(f"{name} +{change:g}")
        elif plain != "bridge_calls_active" and change:
            lines.append(f"{name} {start.get(name, 0.0):g} -> {value:g}")
    for name in end:
        if name.endswith("_sum"):
            was, now = (_mean(name, *it) for it in ((normal, start), (start, end)))
            if now > 0.02 and now > 3 * was:
                lines.append(f"mean of {name[:-4]} {was:.3f} -> {now:.3f} s")
    return lines


def _mean(name: str, start: Mapping[str, float], end: Mapping[str, float]) -> float:
    count = name[:-4] + "_count"
    number = end[count] - start.get(count, 0.0)
    return (end[name] - start.get(name, 0.0)) / number if number else 0.0


# --- the runbook ---


def first_command(section: str) -> str:
    """The first command of a section of docs/operations.md, for docker compose."""
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (text,) = re.findall(rf"(?ms)^### {section}\n(.*?)^#", handbook)
    (command, *_) = re.findall(r"(?m)^  `([^`]+)`$", text)
    return str(command)


OVERVIEW = """docker compose logs --no-log-prefix --since 15m bridge | sed -nE \
's/.*"event": "([^"]*)".*"level": "(warning|error|critical)".*/\\2 \\1/p' | \
sort | uniq -c | sort -rn"""
"""The command of docs/operations.md for a problem without an alert."""

DOCKER = """#!/bin/sh
# Shows the fleet of the bench in place of `docker compose`.
case "$*" in
*logs*balancer*) tail -n 20 haproxy.log ;;
*logs*redis*) tail -n 20 redis.log ;;
*logs*) cat bridge1.log ;;
*" ps"*) cat ps ;;
*stats*) ps -o pcpu,args -p "$(cat bridge.pid)" ;;
*) echo "not in the bench: docker $*" ;;
esac
"""


def show_to_operator(fleet: Fleet, tools: Path) -> None:
    """Writes `docker` and `df` into `tools`: they show the state of the fleet."""
    tools.mkdir(exist_ok=True)
    states = [f"{name} {state}" for name, state in fleet.states().items()]
    for name in ("haproxy", "redis", "bridge1"):
        link = tools / f"{name}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(fleet.folder / f"{name}.log")
    (tools / "ps").write_text("\n".join(states) + "\n")
    (tools / "bridge.pid").write_text(str(fleet.bridges[0].pid))
    docker, df = tools / "docker", tools / "df"
    docker.write_text(DOCKER.replace("case", f"cd {tools} || exit 1\ncase", 1))
    df.write_text(f"#!/bin/sh\nexec /bin/df -h {fleet.folder}\n")
    for tool in (docker, df):
        tool.chmod(0o755)


async def run_command(command: str, tools: Path) -> str:
    """The output of a command of the runbook, run as an operator pastes it."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", command),
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        output, _ = await process.communicate()
    return output.decode("utf-8", "replace")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
