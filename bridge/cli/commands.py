"""The commands: they parse options, check settings, start the work and print results.
The work itself is in other modules."""

import asyncio
import contextlib
import gc
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

import twiml
from bridge.app import settings, settings_report, versions
from bridge.app.settings import Finding, Settings, SettingsError
from bridge.app.values import LOCAL_MODEL
from bridge.cli import check, show, sim_commands
from bridge.cli.check import AgentOption
from bridge.cli.fallback import fallback
from bridge.cli.secret_values import secrets_of
from bridge.cli.terminal import (
    DialledOption,
    api_token,
    err,
    load_settings,
    local_url,
    out,
    run,
    stop_with,
)
from bridge.http.signature import websocket_origin
from bridge.telemetry import log, output

# The SDK is imported only where it is needed, because that takes two seconds. So a
# mistake in a variable is reported at once.
if TYPE_CHECKING:
    from bridge.app.configuration import FoundConfiguration
    from bridge.app.startup import UserCode
    from bridge.fleet import Registry
    from bridge.records.report import CallReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Your RealtimeAgent on a Twilio number.

    Without any account: `bridge demo` places a call between two fakes.
    With accounts: set the variables that `bridge check` asks for, then `bridge serve`.
    """,
)
app.add_typer(sim_commands.sim, name="sim")
app.add_typer(fallback, name="fallback")
app.command()(show.show)
app.command()(check.check)

OWN_FILES = 100
"""Open files besides sockets of calls and clients: Redis, reports, traces and Python's
own."""

CALL_SID = re.compile(r"[\w-]{1,64}", re.ASCII)
MessageOption = Annotated[
    str,
    typer.Option(help="text to leave on an answering machine; without it, hang up"),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(help="name=value for routes, instructions, tools; may be repeated"),
]
DecidesOption = Annotated[
    bool,
    typer.Option(
        "--agent-decides", help="the agent says by a tool if a mailbox has answered"
    ),
]
DigitsOption = Annotated[
    str,
    typer.Option(
        help="keys to press when the call is answered, such as wwww12#; w waits half "
        "a second. Answering machines are not detected then"
    ),
]


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name in (versions.PACKAGE, "openai-agents", "openai"):
            print(name, versions.version_of(name))
        print("Python", platform.python_version(), "on", platform.platform())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="print the versions that a bug report needs, and exit",
        ),
    ] = False,
) -> None:
    """Options without a command. The help text of the program is in `app`."""


ReloadOption = Annotated[
    bool,
    typer.Option(
        "--reload",
        help="for development: start again when the agent's code, the routes file or "
        ".env changes; running calls get a second to end. Needs BRIDGE_INSECURE=1",
    ),
]


@app.command()
def serve(agent: AgentOption = None, reload: ReloadOption = False) -> None:
    """Take calls until SIGTERM or Ctrl-C; running calls may then finish.

    Configured by the environment and by .env; `bridge check` says what is missing.
    """
    if reload:
        _serve_again(load_settings(), agent)
        return
    lost_lines = output.protect_output()
    environ = {**os.environ, **({"BRIDGE_AGENT": agent} if agent else {})}
    configuration = _configuration(environ)
    conf, user_code = configuration.settings, configuration.user_code
    if configuration.mistakes or user_code is None:
        problems = sorted(configuration.problems, key=lambda it: it.level == "error")
        stop_with("bridge serve does not start:", *map(str, problems))
    findings = configuration.problems + _machine_findings(conf)
    danger = settings_report.open_with_model_key(conf)
    if danger:
        _print_danger(danger)
    log.configure(conf.log_format, secrets=secrets_of(conf, user_code.routes))
    log.log_crashes()
    if danger:
        structlog.get_logger().warning("insecure_with_model_key", text=danger[0])
    _log_findings(findings)
    run(_serve(conf, user_code, lost_lines))


def _log_findings(findings: list[Finding]) -> None:
    for finding in findings:
        if finding.name == "BRIDGE_ROUTES":
            structlog.get_logger().warning("routes", text=str(finding))
        else:
            named = {"name": finding.name, "text": str(finding)}
            structlog.get_logger().warning("setting", **named)


def _serve_again(conf: Settings, agent: str | None) -> None:
    if not conf.insecure:
        stop_with(
            "--reload is for development: each change ends the running calls. It needs "
            "BRIDGE_INSECURE=1, without BRIDGE_PUBLIC_URL"
        )
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        stop_with("--reload needs the package watchfiles: pip install watchfiles")
    from bridge.cli.reload import serve_again

    run(serve_again(conf, agent))


@app.command()
def demo(
    agent: Annotated[
        str | None,
        typer.Option(
            help="package.module:name or file.py:name; default: the bundled agent"
        ),
    ] = None,
    routes: Annotated[
        Path | None, typer.Option(help="a routes file; it or --agent names the agent")
    ] = None,
    to: DialledOption = "+15557650002",
    folder: Annotated[Path, typer.Option(help="folder for the recording")] = Path(
        "calls"
    ),
) -> None:
    """Place a call offline: the real bridge, a fake Twilio, a fake model that speaks.

    With the bundled agent, the caller is greeted, asks, interrupts, is handed off to
    another agent and says goodbye. With another agent, the fake caller makes small talk
    and the fake model calls the agent's tools.
    """
    from bridge.cli import demo as demo_call
    from bridge.sim import scenario

    bundled = agent is None and routes is None
    # Without the bridge's settings, so that a demo is the same everywhere, and free.
    settings.export(settings.read({}).file, own=False)
    user_code = _user_code(_demo_settings(routes), agent)
    plan = scenario.RECEPTION if bundled else scenario.SMALL_TALK
    log.configure("pretty", logging.WARNING)
    out.print(f"[bold]{plan.name}[/], about half a minute, in real time ...")
    try:
        call = demo_call.run(user_code, plan, folder, to)
    except demo_call.DemoFailed as error:
        stop_with(f"The call failed: {error}")
    demo_call.show(call, out)
    if failures := demo_call.failures(call):
        stop_with("The call was placed, and has these faults:", *failures)


@app.command("call")
def place_call(
    number: Annotated[str, typer.Argument(help="number to call, E.164: +14155550100")],
    caller_id: Annotated[
        str | None, typer.Option("--from", help="instead of BRIDGE_OUTBOUND_NUMBER")
    ] = None,
    route: Annotated[
        str, typer.Option(help="name of the route: agent, voice, greeting, ...")
    ] = "",
    greeting: Annotated[
        str | None, typer.Option(help="instruction for the agent's first sentence")
    ] = None,
    message: MessageOption = "",
    parameter: ParameterOption = None,
    ring_seconds: Annotated[
        int, typer.Option(help="seconds that the phone may ring")
    ] = 30,
    digits: DigitsOption = "",
    campaign: Annotated[
        str, typer.Option(help="calls of one campaign are placed one after the other")
    ] = "",
    agent_decides: DecidesOption = False,
    url: Annotated[
        str | None,
        typer.Option(help="URL of the running bridge, instead of this machine's"),
    ] = None,
) -> None:
    """Place an outbound call through a running bridge (POST /api/calls).

    The bridge needs BRIDGE_API_TOKEN, TWILIO_ACCOUNT_SID and BRIDGE_OUTBOUND_PREFIXES.
    """
    conf = load_settings()
    token = api_token(conf)
    wanted = {
        "to": number,
        "from": caller_id,
        "route": route,
        "greeting": greeting,
        "machine": "message" if message else "ignore" if digits else "hang_up",
        "message": message,
        "agent_decides": agent_decides,
        "parameters": _parameters(parameter or []),
        "ring_seconds": ring_seconds,
        "send_digits": digits,
        "campaign": campaign,
    }
    out.print(_request_call(url or local_url(conf), token, wanted))


@app.command()
def connect(
    number: Annotated[
        str, typer.Argument(help="a number of your account, E.164: +14155550100")
    ],
    fallback: Annotated[
        str | None,
        typer.Option(
            help="URL that Twilio asks while the bridge cannot be reached, such as a "
            "TwiML Bin's; a URL of the bridge would not answer either"
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="only say what is wrong at present")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Point a phone number at this bridge: its webhook, status callback and fallback.

    Shows what was set before, and asks. Needs BRIDGE_PUBLIC_URL, TWILIO_ACCOUNT_SID,
    and TWILIO_AUTH_TOKEN or an API key. With --check, exits with 1 if calls to the
    number do not reach the bridge.
    """
    from bridge.cli.connect import ConnectFailed, NumberConnection

    log.configure("pretty", logging.ERROR)
    try:
        it = NumberConnection(load_settings(), number, out)
        if not check:
            run(it.connect(fallback, lambda: yes or typer.confirm("Set this?")))
            return
        findings = run(it.check())
    except ConnectFailed as error:
        stop_with(str(error))
    for finding in findings:
        out.print(f"{finding.level}: {finding}", highlight=False, markup=False)
    if _errors(findings):
        raise typer.Exit(1)
    if not findings:
        out.print("Nothing is wrong: calls to this number reach the bridge.")


def _request_call(url: str, token: str, wanted: dict[str, Any]) -> str:
    """Asks the bridge at `url` to place a call. The call's SID."""
    from bridge.http.api import client

    body = {name: value for name, value in wanted.items() if value is not None}
    try:
        return run(client.place_call(url, token, body))
    except client.ApiError as error:
        stop_with(str(error))


@app.command()
def forget(
    call_sids: Annotated[
        list[str], typer.Argument(help="SIDs of calls, as in reports and logs: CA...")
    ],
) -> None:
    """Delete the stored records of calls: their traces on this machine
    (BRIDGE_RECORD_DIR), and with BRIDGE_REDIS_URL their records in the shared registry.

    The bridge cannot delete delivered reports, nor what Twilio and the model's vendor
    store. The records of a running call are not deleted. Exits with 1 if a call had no
    records to delete, or if a deletion failed.
    """
    conf = load_settings()
    log.configure(conf.log_format, logging.ERROR)
    results = run(_forget(conf, call_sids))
    for sid, (line, _) in results.items():
        out.print(f"{sid}: {line}", highlight=False, markup=False, soft_wrap=True)
    if not all(done for _, done in results.values()):
        raise typer.Exit(1)


async def _forget(conf: Settings, call_sids: list[str]) -> dict[str, tuple[str, bool]]:
    """Call SID -> (result for the user, whether it is what the user wanted)."""
    from bridge.fleet import InstanceLoad
    from bridge.fleet.memory import MemoryRegistry
    from bridge.fleet.redis import redis_registry

    if conf.redis_url is None:
        return await _forget_in(MemoryRegistry(), True, conf, call_sids)
    reachable: list[bool] = []
    url = conf.redis_url.get_secret_value()
    # Joins the fleet for a moment, as an instance that takes no calls.
    async with redis_registry(
        url, lambda: InstanceLoad(0, 0, True), reachable.append
    ) as it:
        return await _forget_in(it, reachable[-1:] == [True], conf, call_sids)


async def _forget_in(
    registry: "Registry", reachable: bool, conf: Settings, call_sids: list[str]
) -> dict[str, tuple[str, bool]]:
    from bridge.records import retention

    if not reachable:
        return dict.fromkeys(
            call_sids, ("nothing deleted: Redis cannot be reached", False)
        )
    results: dict[str, tuple[str, bool]] = {}
    running = {entry.call_sid for entry in await registry.calls()}
    where = conf.record_dir.absolute() if conf.record_dir else None
    for sid in call_sids:
        if not CALL_SID.fullmatch(sid):
            results[sid] = ("is not a call SID, such as CA and 32 digits", False)
            continue
        try:
            if sid in running:
                raise retention.StillRuns
            traces, shared = await retention.forget_call(where, registry, sid)
        except retention.StillRuns:
            results[sid] = ("is still running, so nothing was deleted", False)
        except OSError as error:
            results[sid] = (
                f"some records could not be deleted: {error.strerror}",
                False,
            )
        else:
            results[sid] = (f"deleted: traces {traces}, shared records {shared}", True)
            if not (traces or shared):
                place = f"in {where}" if where else "here: BRIDGE_RECORD_DIR is not set"
                results[sid] = (f"has no records {place}", False)
    return results


def _parameters(pairs: list[str]) -> dict[str, str]:
    parted = [pair.partition("=") for pair in pairs]
    if not all(name and equals for name, equals, _ in parted):
        stop_with("--parameter must be name=value")
    return {name: value for name, _, value in parted}


def _demo_settings(routes: Path | None) -> Settings:
    """Ignores the settings, so that a demo is the same everywhere."""
    if routes is None:
        return Settings()
    try:
        return settings.load({"BRIDGE_ROUTES": str(routes)}, env_file=None)
    except SettingsError as error:
        stop_with(str(error))


def _errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]


def _origin(url: str) -> str:
    try:
        return settings.load({"BRIDGE_PUBLIC_URL": url}, None).public_url or ""
    except SettingsError as error:
        stop_with(str(error).replace("BRIDGE_PUBLIC_URL", "--url"))


@app.command("twiml")
def print_twiml(
    url: Annotated[
        str | None,
        typer.Option(help="https origin of the bridge, instead of BRIDGE_PUBLIC_URL"),
    ] = None,
) -> None:
    """Print the document for a TwiML Bin, for use without the bridge's webhook."""
    conf = load_settings()
    origin = _origin(url) if url else conf.public_url
    if not origin:
        stop_with("BRIDGE_PUBLIC_URL is not set: set it, or give --url https://...")
    stream = websocket_origin(origin) + "/media"
    try:
        document = twiml.bin_document(stream, f"{origin}/voice/next")
    except ValueError as error:
        stop_with(str(error))
    if conf.tickets == "required" and not conf.insecure:
        err.print(
            "A TwiML Bin's streams have no tickets: set BRIDGE_TICKETS=off for them"
        )
    sys.stdout.write(document + "\n")


def _raise_file_limit(conf: Settings) -> list[Finding]:
    """Raises the limit of open files to what a flood of connections and all calls can
    use together. Without a free file no call is accepted, and each failed accept is a
    log line."""
    import resource  # does not exist on every system that runs `bridge check`

    from bridge.http.connection_guard import BACKLOG

    # Waiting connections may be twice their limit for a moment, plus what is accepted
    # at once (connection_guard.py). A call needs up to four: its stream, its model
    # connection, the next model connection.
    needed = 2 * conf.waiting_sockets + BACKLOG + 4 * conf.max_calls + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return []
    allowed = needed if hard == unlimited else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # a further limit, hidden by the system
        allowed = soft
    if allowed == needed:
        return []
    text = f"allows {allowed} open files; a flood and all calls can use {needed}"
    fix = "raise it, or lower BRIDGE_WAITING_SOCKETS or BRIDGE_MAX_CALLS"
    return [Finding("warning", "ulimit -n", text, fix)]


async def _serve(
    conf: Settings, user_code: "UserCode", lost_lines: output.LostLines
) -> None:
    """Runs the server from start to the last call. Uses the bundled fake model if no
    other model is configured."""
    from bridge.app.startup import start_services
    from bridge.http.server import Server
    from bridge.model.local_mcp import McpUnavailable
    from bridge.telemetry.loop_watch import watch_loop

    listen_error = ""
    stop_signal = _first_signal()
    async with contextlib.AsyncExitStack() as stack:
        model_url = conf.model_target
        if model_url == LOCAL_MODEL:
            from bridge.sim.model import ModelServer

            fake = await stack.enter_async_context(ModelServer(keep_audio=False))
            model_url = fake.url
        try:
            services = await stack.enter_async_context(
                start_services(conf, user_code, model_url)
            )
        except McpUnavailable as error:
            stop_with(f"bridge serve does not start: {error}")
        lost_lines.count_with(services.metrics.log_lines_lost.inc)
        services = replace(services, print_report=_printer(conf))
        running = Server(conf, services)
        try:
            await running.start()
        except OSError as error:
            listen_error = f"cannot listen on {conf.host}:{conf.port}: {error.strerror}"
        else:
            # The objects that are loaded now stay for the life of the process. Without
            # `freeze`, each garbage collection would scan them and stop all calls for
            # a fifth of a second.
            gc.collect()
            gc.freeze()
            with watch_loop(
                services.metrics.loop_lag.observe, lambda: services.capacity.load.calls
            ):
                await stop_signal.wait()
                _restore_signal_handlers()
                await running.close(conf.drain_seconds)
    # Outside of the context managers: their task groups would wrap the exception in an
    # ExceptionGroup.
    if listen_error:
        stop_with(listen_error)


def _printer(conf: Settings) -> "Callable[[CallReport], None] | None":
    """What prints the calls that are over. By default words of people are printed only
    for a developer, who calls."""
    from bridge.cli import call_page

    automatic = conf.insecure and sys.stdout.isatty()
    prints = automatic if conf.print_calls == "auto" else conf.print_calls == "on"
    return partial(call_page.show_report, console=out) if prints else None


def _first_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT, even if it comes while the server starts."""
    received = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received.set)
    return received


def _restore_signal_handlers() -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


def _configuration(environ: dict[str, str]) -> "FoundConfiguration":
    with _no_garbage_collection():
        from bridge.app.configuration import read_configuration
    return read_configuration(settings.read(environ))


def _user_code(conf: Settings, agent: str | None) -> "UserCode":
    with _no_garbage_collection():
        from bridge.app.startup import load_user_code
    try:
        return load_user_code(conf, agent)
    except SettingsError as error:
        stop_with("The configuration is not usable:", *str(error).splitlines())


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing that the imports create is garbage. Looking for some takes a fifth of the
    time until a bridge is ready."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _machine_findings(conf: Settings) -> list[Finding]:
    """What is wrong with this machine. Calls are taken all the same."""
    from bridge.app.machine_check import record_dir_findings

    folder = [replace(it, level="warning") for it in record_dir_findings(conf)]
    return folder + _raise_file_limit(conf)


def _print_danger(lines: list[str]) -> None:
    """A frame of stars, which nobody overlooks among log lines."""
    width = max(map(len, lines))
    stars = "*" * (width + 6)
    framed = (f"** {line:<{width}} **" for line in lines)
    for line in ("", stars, *framed, stars, ""):
        err.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
