"""`bridge check`: everything that is wrong with a deployment, in one message."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bridge.app import settings, settings_report
from bridge.app.settings import Finding
from bridge.app.values import LOCAL_MODEL
from bridge.cli.secret_values import secrets_of
from bridge.cli.terminal import local_url, out, run
from bridge.privacy.log_scrubber import LogScrubber

if TYPE_CHECKING:
    from bridge.app.configuration import FoundConfiguration
    from bridge.app.startup import UserCode
    from bridge.call import dial_check

Report = Mapping[str, list[Finding]]
"""Group -> its findings."""

MARKS = {"ok": "[green]ok", "warning": "[yellow]warning", "error": "[red]error"}

AgentOption = Annotated[
    str | None,
    typer.Option(help="package.module:name or file.py:name, instead of BRIDGE_AGENT"),
]


def check(
    agent: AgentOption = None,
    dial: Annotated[
        bool,
        typer.Option(
            help="Also open a session with the model for the agent of each route, and "
            "report what its server refuses or does not confirm."
        ),
    ] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Open no connection and call no function: only settings, routes and "
            "imports.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for a CI.")
    ] = False,
) -> None:
    """Report everything that is missing or wrong in the configuration, each with its
    fix. Exits with 1 if there is a mistake; warnings are none.

    Looks at the port, the folder of the traces, Redis and the public URL, and calls
    each agent's function once, for a caller who does not exist. `bridge serve` reports
    the mistakes of settings, routes and agents, too.
    """
    environ = {**os.environ, **({"BRIDGE_AGENT": agent} if agent else {})}
    found = _report(environ, dial, static)
    if as_json:
        print(_as_json(found))
    else:
        _print(found)
    if _count(found, "error"):
        raise typer.Exit(1)


def _report(environ: Mapping[str, str], dial: bool, static: bool) -> Report:
    from bridge.app.configuration import read_configuration

    it = read_configuration(settings.read(environ))
    report = {
        "Settings": [*it.of_settings],
        "Routes and agents": [*it.of_code],
        "This machine": list[Finding](),
        "The model": list[Finding](),
    }
    if static:
        skipped = "port, folder, Redis, public URL, agents' functions (--static)"
        report["This machine"] = [Finding("ok", "not checked", skipped)]
        return report
    agents, machine = run(_look_around(it))
    wrong = {it.name for it in it.mistakes}
    report["Routes and agents"] += map(it.reading.placed, agents)
    # Of a value with a mistake nothing else is to be said.
    machine = settings_report.not_consequences(machine, wrong)
    report["This machine"] += map(it.reading.placed, machine)
    if dial:
        report["The model"] = _dial_findings(it)
    return report


async def _look_around(it: "FoundConfiguration") -> tuple[list[Finding], list[Finding]]:
    """What only a running process can find out: about agents, about the machine."""
    from bridge.agent.user_code import protected_loop
    from bridge.app.machine_check import check_machine
    from bridge.app.redis_check import check_redis
    from bridge.call.agent_check import check_agents

    conf = it.settings
    machine = await check_machine(conf, local_url(conf))
    if conf.redis_url is not None:
        machine += await check_redis(conf.redis_url.get_secret_value())
    async with protected_loop():
        agents = await check_agents(it.user_code) if it.user_code else []
    return agents, machine


def _dial_findings(it: "FoundConfiguration") -> list[Finding]:
    """What the model's server says to the agent of each route."""
    from bridge.model.local_mcp import McpUnavailable

    if it.user_code is None or it.reading.mistakes:
        why = "correct the mistakes of settings and agents first"
        return [Finding("warning", "--dial", "was not done", why)]
    try:
        checked = run(_dial_check(it.settings, it.user_code))
    except McpUnavailable as error:
        return [Finding("error", "MCP", str(error), "start the MCP server")]
    # A server may quote a part of the key.
    scrub = LogScrubber(secrets_of(it.settings, it.user_code.routes)).text
    findings = []
    for session in checked:
        name = f"session of {session.route}"
        if session.round_trip is not None:
            findings.append(Finding("ok", f"{name} opened", session.text))
        findings += [Finding("error", name, scrub(text)) for text in session.problems]
    return findings


async def _dial_check(
    conf: settings.Settings, user_code: "UserCode"
) -> "list[dial_check.CheckedSession]":
    from bridge.app.startup import start_services
    from bridge.call.dial_check import check_sessions
    from bridge.sim.model import ModelServer

    async with contextlib.AsyncExitStack() as stack:
        model_url = conf.model_target
        if model_url == LOCAL_MODEL:
            fake = await stack.enter_async_context(ModelServer(keep_audio=False))
            model_url = fake.url
        services = await stack.enter_async_context(
            start_services(conf, user_code, model_url)
        )
        return await check_sessions(services)


# --- the output ---


def _count(report: Report, level: str) -> int:
    return sum(it.level == level for found in report.values() for it in found)


def _summary(report: Report) -> str:
    mistakes, warnings = _count(report, "error"), _count(report, "warning")
    told = [
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in ((mistakes, "mistake"), (warnings, "warning"))
    ]
    return ", ".join(told)


def _as_json(report: Report) -> str:
    findings = [
        {"group": group, **asdict(it)}
        for group, found in report.items()
        for it in found
    ]
    counts = {
        "mistakes": _count(report, "error"),
        "warnings": _count(report, "warning"),
    }
    return json.dumps({**counts, "findings": findings}, indent=2)


def _print(report: Report) -> None:
    """What is in force first, so that the mistakes stand beside the prompt."""
    every = [it for found in report.values() for it in found]
    mistaken = {it.name for it in every if it.level == "error"}
    good = [it for it in every if it.level == "ok" and it.name not in mistaken]
    _print_table("In force", good)
    for group, found in report.items():
        wrong = sorted(
            (it for it in found if it.level != "ok"), key=lambda it: it.level == "error"
        )
        _print_table(group, wrong)
    out.print(f"\n{_summary(report)}")


def _print_table(title: str, findings: list[Finding]) -> None:
    if not findings:
        return
    out.print(f"\n[bold]{title}[/]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for it in findings:
        # The user's text may look like markup.
        place = f"[bold]{escape(it.place)}[/]: " if it.place else ""
        fix = f"\n[dim]{escape(it.fix)}[/]" if it.fix else ""
        table.add_row(MARKS[it.level], escape(it.name), place + escape(it.text) + fix)
    out.print(table)
