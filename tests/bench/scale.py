"""What a call costs beside the CPU of its bridge: bytes, Redis, the balancer.

    .venv/bin/python -m tests.bench.scale --calls 60 --seconds 30

A fleet (scripts/fleet.py: Redis, HAProxy, bridges) runs without calls, then under the
standard load. The figures are counts of the kernel, of Redis and of processes, so a
busy machine changes them little. docs/performance.md derives a fleet's size from them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from bridge.sim import load
from bridge.sim.load_report import LoadReport
from bridge.sim.load_server import loaded_server
from bridge.sim.model import ModelServer
from bridge.sim.server_process import ProcessTree
from scripts.fleet import Fleet

SETTLE_SECONDS = 3.0
LAST_SECONDS = 4.0
"""After the last call: tombstones and reports are written."""

Figures = dict[str, float]
out, err = Console(), Console(stderr=True)

# --- bytes of sockets -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of this process's sockets: bytes of TCP's payload (frames, and TLS around them),
    and packets, both ways."""

    sent: int = 0
    received: int = 0
    packets: int = 0

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(
            self.sent - before.sent,
            self.received - before.received,
            self.packets - before.packets,
        )


def traffic(port: int) -> dict[tuple[Any, Any], Traffic]:
    """Of each open connection of this process from or to the port. Linux."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as each:
                ends = each.getsockname(), each.getpeername()
                if each.family == socket.AF_INET and port in (ends[0][1], ends[1][1]):
                    # struct tcp_info of linux/tcp.h: tcpi_bytes_acked,
                    # tcpi_bytes_received, tcpi_segs_out, tcpi_segs_in
                    info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    sent, received, *packets = struct.unpack_from("=QQII", info, 120)
                    found[ends] = Traffic(sent, received, sum(packets))
    return found


class Counted:
    """The traffic of one port during a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._at = monotonic()
        self._before = traffic(port)

    def per_second(self, name: str) -> Figures:
        """Per connection that carried data all the time, as the bridge sees it: the
        fakes have the other end. A call whose connection was replaced is left out."""
        seconds = monotonic() - self._at
        changes = [
            now.since(self._before[ends])
            for ends, now in traffic(self._port).items()
            if ends in self._before
        ]
        used = [it for it in changes if it.sent and it.received]
        count = seconds * max(1, len(used))
        return {
            f"bytes from the {name}": sum(it.sent for it in used) / count,
            f"bytes to the {name}": sum(it.received for it in used) / count,
            f"packets of the {name}, both ways": sum(it.packets for it in used) / count,
        }


# --- Redis ----------------------------------------------------------------------------


class RedisCounts:
    """What Redis has done between two moments."""

    def __init__(self, figures: dict[str, Any], at: float) -> None:
        self._figures = figures
        self.at = at

    @classmethod
    async def now(cls, redis: Redis) -> "RedisCounts":
        figures = {**await redis.info(), **await redis.info("commandstats")}
        return cls(figures, monotonic())

    def since(self, before: "RedisCounts") -> Figures:
        def change(name: str) -> float:
            return float(self._figures[name]) - float(before._figures[name])

        calls = {
            name.removeprefix("cmdstat_"): value["calls"]
            - before._figures.get(name, {"calls": 0})["calls"]
            for name, value in self._figures.items()
            if name.startswith("cmdstat_")
        }
        inside = sum(calls.values()) - sum(
            calls.get(it, 0) for it in ("evalsha", "eval", "ping", "info", "publish")
        )
        return {
            "scripts": calls.get("evalsha", 0) + calls.get("eval", 0),
            "commands in scripts": inside,
            "CPU ms": 1000 * (change("used_cpu_user") + change("used_cpu_sys")),
            "bytes in": change("total_net_input_bytes"),
            "bytes out": change("total_net_output_bytes"),
            "log bytes": change("aof_current_size"),
        }

    @property
    def memory(self) -> float:
        return float(self._figures["used_memory"])


def per(figures: Figures, count: float) -> Figures:
    return {name: value / count for name, value in figures.items()}


def less(figures: Figures, idle: Figures, seconds: float) -> Figures:
    """Without what an idle fleet does in that time."""
    return {name: value - idle[name] * seconds for name, value in figures.items()}


# --- the measurements -----------------------------------------------------------------


async def measure_fleet(options: argparse.Namespace) -> dict[str, Figures]:
    """Redis and the balancer: an idle fleet, running calls, whole calls."""
    async with contextlib.AsyncExitStack() as stack:
        model = await stack.enter_async_context(
            ModelServer(load.BEHAVIOUR, record_appends=True, keep_sessions=10_000)
        )
        fleet = await stack.enter_async_context(
            Fleet(options.bridges, model_url=model.url, max_calls=options.calls)
        )
        redis: Redis = Redis.from_url(fleet.redis_url)
        stack.push_async_callback(redis.aclose)
        balancer = ProcessTree(fleet._balancer.pid)
        await asyncio.sleep(SETTLE_SECONDS)
        idle, alone = await measure_idle(fleet, redis, balancer, options.seconds)

        plan = plan_of(options)
        begin, memory = await RedisCounts.now(redis), balancer.memory_mb() or 0.0
        target = load.LoadTarget(name="fleet", webhook_url=fleet.voice_url)
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(load.measure(target, model, plan))
            await asyncio.sleep(plan.ramp_seconds + SETTLE_SECONDS)
            first, cpu = await RedisCounts.now(redis), _cpu([balancer])
            phone = Counted(fleet.port)
            await asyncio.sleep(options.seconds - 2)
            last, bytes_of = await RedisCounts.now(redis), phone.per_second("phone")
            cpu, full_memory = _cpu([balancer]) - cpu, balancer.memory_mb() or 0.0
        _check(loading.result())
        await asyncio.sleep(LAST_SECONDS)
        end = await RedisCounts.now(redis)

    call_seconds = options.calls * (last.at - first.at)
    running = per(less(last.since(first), idle, last.at - first.at), call_seconds)
    whole = less(end.since(begin), idle, end.at - begin.at)
    # Half of a last turn, on average, follows the time in which all calls run.
    lasted = plan.seconds + load.TURN_SECONDS / 2
    fixed = {
        name: whole[name] / options.calls - running[name] * lasted
        for name in ("scripts", "commands in scripts", "CPU ms")
    }
    fixed["memory bytes of Redis"] = (last.memory - begin.memory) / options.calls
    fixed["memory kB of the balancer"] = 1024 * (full_memory - memory) / options.calls
    running["CPU ms of the balancer"] = 1000 * cpu / call_seconds
    running |= bytes_of
    return {
        "an instance without calls, per second": alone,
        "a running call, per second": running,
        "a call, once": fixed,
    }


async def measure_idle(
    fleet: Fleet, redis: Redis, balancer: ProcessTree, seconds: float
) -> tuple[Figures, Figures]:
    """Per second: of Redis, and of each instance."""
    instances = [ProcessTree(it.pid) for it in fleet.bridges]
    before, cpu = await RedisCounts.now(redis), (_cpu(instances), _cpu([balancer]))
    await asyncio.sleep(seconds)
    after = await RedisCounts.now(redis)
    second = per(after.since(before), after.at - before.at)
    each = 1000 / (after.at - before.at) / len(instances)
    alone = per(second, len(instances))
    alone["CPU ms of the bridge"] = each * (_cpu(instances) - cpu[0])
    alone["CPU ms of the balancer"] = each * (_cpu([balancer]) - cpu[1])
    return second, alone


def plan_of(options: argparse.Namespace) -> load.LoadPlan:
    return load.LoadPlan(
        calls=options.calls,
        seconds=SETTLE_SECONDS + options.seconds,
        ramp_seconds=options.calls * load.RAMP_SECONDS,
    )


async def measure_model_bytes(options: argparse.Namespace, tls: bool) -> Figures:
    """The socket to the model, of one bridge."""
    plan = plan_of(options)
    async with (
        loaded_server(None, max_calls=plan.calls, tls=tls) as server,
        asyncio.TaskGroup() as tasks,
    ):
        work = load.measure(server.target, server.model, plan)
        loading = tasks.create_task(work)
        await asyncio.sleep(plan.ramp_seconds + SETTLE_SECONDS)
        counted = Counted(server.model.port)
        await asyncio.sleep(options.seconds - 2)
        found = counted.per_second("model")
        _check(await loading)
    return found


def _cpu(processes: list[ProcessTree]) -> float:
    return sum(it.cpu_seconds() or 0.0 for it in processes)


def _check(report: LoadReport) -> None:
    """A few failed calls change the figures little."""
    if report.failed:
        err.print(f"{len(report.failed)} calls failed, such as: {report.failed[0]}")


# --- the command ----------------------------------------------------------------------


def rows(found: dict[str, Figures]) -> Iterator[tuple[str, str, str]]:
    for title, figures in found.items():
        for name, value in figures.items():
            yield title, name, f"{value:,.2f}"
            title = ""


async def measure(options: argparse.Namespace) -> dict[str, Figures]:
    found = await measure_fleet(options)
    for tls in (False, True):
        title = f"the model's socket, per call-second, {'with' if tls else 'no'} TLS"
        found[title] = await measure_model_bytes(options, tls)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--bridges", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    table = Table(box=None, pad_edge=False)
    for name in ("what", "figure", "value"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for row in rows(found):
        table.add_row(*row)
    (out if out.is_terminal else Console(width=110)).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
