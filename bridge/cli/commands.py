"""The commands: parse, check, start, print. What they start lives elsewhere."""

import asyncio
import contextlib
import gc
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import twiml
from bridge.app import settings, versions
from bridge.app.settings import Finding, Settings, SettingsError
from bridge.app.values import LOCAL_MODEL
from bridge.http.signature import websocket_origin
from bridge.telemetry import log

# The SDK takes two seconds to import, so it is imported where it is needed: a slip in a
# variable is told at once.
if TYPE_CHECKING:
    from bridge.app.routes import Routes
    from bridge.app.startup import UserCode
    from bridge.fleet import Registry
    from bridge.sim import load

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Your RealtimeAgent on a Twilio number.

    Without any account: `bridge demo` places a call between two fakes.
    With one: set the variables that `bridge check` asks for, then `bridge serve`.
    """,
)
sim = typer.Typer(no_args_is_help=True, help="The outside world, faked.")
app.add_typer(sim, name="sim")
MIN_THREADS = 32
OWN_FILES = 100
"""Redis, reports, traces, and what Python has open itself."""

CALL_SID = re.compile(r"[\w-]{1,64}", re.ASCII)
MIN_KEY_CHARS = 16
"""A part of a path that is as long may well be a key."""

T = TypeVar("T")
out, err = Console(), Console(stderr=True)

AgentOption = Annotated[
    str | None,
    typer.Option(help="package.module:name or file.py:name, instead of BRIDGE_AGENT"),
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
    """Options of no command; the help of the whole stands in `app`."""


@app.command()
def serve(agent: AgentOption = None) -> None:
    """Take calls until told to stop (SIGTERM or Ctrl-C: running calls may finish).

    Configured by the environment and by .env; `bridge check` says what is missing.
    """
    conf = _settings()
    findings = settings.serving_mistakes(conf) + settings.unknown_names()
    findings += _allow_files(conf)
    if mistakes := _errors(findings):
        _stop_with("bridge serve does not start:", *map(str, mistakes))
    user_code = _user_code(conf, agent)
    log.configure(conf.log_format, secrets=_secrets(conf, user_code.routes))
    log.tell_crashes()
    for finding in findings:
        structlog.get_logger().warning("setting", name=finding.name, text=str(finding))
    for warning in user_code.routes.warnings:
        structlog.get_logger().warning("routes", text=warning)
    _run(_serve(conf, user_code))


@app.command()
def demo(
    agent: Annotated[
        str | None,
        typer.Option(help="package.module:name or file.py:name, not the bundled one"),
    ] = None,
    routes: Annotated[
        Path | None, typer.Option(help="a routes file: it names the agent, or --agent")
    ] = None,
    to: Annotated[
        str, typer.Option(help="the number that is dialled: routes go by it")
    ] = "+15557650002",
    folder: Annotated[Path, typer.Option(help="where the recording goes")] = Path(
        "calls"
    ),
) -> None:
    """Place a call offline: the real bridge, a fake Twilio, a fake model that speaks.

    With the bundled agent a caller is greeted, asks, interrupts, is handed over and
    says goodbye; with another the fake makes small talk and tries its tools.
    """
    from bridge.cli import demo as demo_call
    from bridge.sim import scenario

    bundled = agent is None and routes is None
    user_code = _user_code(_demo_settings(routes), agent)
    plan = scenario.RECEPTION if bundled else scenario.SMALL_TALK
    log.configure("pretty", logging.WARNING)
    out.print(f"[bold]{plan.name}[/], about half a minute, in real time ...")
    try:
        call = demo_call.run(user_code, plan, folder, to)
    except demo_call.DemoFailed as error:
        _stop_with(f"The call failed: {error}")
    demo_call.show(call, out)
    if failures := demo_call.failures(call):
        _stop_with("This should not have happened:", *failures)


@app.command("call")
def place_call(
    number: Annotated[str, typer.Argument(help="who is called, E.164: +14155550100")],
    caller_id: Annotated[
        str | None, typer.Option("--from", help="instead of BRIDGE_OUTBOUND_NUMBER")
    ] = None,
    route: Annotated[
        str, typer.Option(help="name of a route: who speaks, and how")
    ] = "",
    greeting: Annotated[
        str | None, typer.Option(help="what the agent is told to open with")
    ] = None,
    message: Annotated[
        str, typer.Option(help="left on an answering machine, instead of hanging up")
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value for routes, instructions, tools; may be repeated"
        ),
    ] = None,
    ring_seconds: Annotated[int, typer.Option(help="how long it may ring")] = 30,
    url: Annotated[
        str | None, typer.Option(help="the running bridge, instead of this machine's")
    ] = None,
) -> None:
    """Have a running bridge call somebody (POST /api/calls).

    The bridge needs BRIDGE_API_TOKEN, TWILIO_ACCOUNT_SID and BRIDGE_OUTBOUND_PREFIXES.
    """
    from bridge.http.api import client

    conf = _settings()
    if conf.api_token is None:
        _stop_with("BRIDGE_API_TOKEN is not set: set it here and for the bridge")
    wanted = {
        "to": number,
        "from": caller_id,
        "route": route,
        "greeting": greeting,
        "machine": "message" if message else "hang_up",
        "message": message,
        "parameters": _parameters(parameter or []),
        "ring_seconds": ring_seconds,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    token = conf.api_token.get_secret_value()
    try:
        sid = _run(client.place_call(url or _here(conf), token, body))
    except client.ApiError as error:
        _stop_with(str(error))
    out.print(sid)


@app.command()
def forget(
    call_sids: Annotated[
        list[str], typer.Argument(help="SIDs of calls, as in reports and logs: CA...")
    ],
) -> None:
    """Delete what is kept of calls: their traces on this machine (BRIDGE_RECORD_DIR),
    and with BRIDGE_REDIS_URL what the instances share of them.

    Reports that were delivered, and what Twilio and the model's vendor keep, are not
    the bridge's to delete. A call that still runs is left alone. Exits with 1 where
    nothing of a call was there to be deleted.
    """
    conf = _settings()
    log.configure(conf.log_format, logging.ERROR)
    told = _run(_forget(conf, call_sids))
    for sid, (line, _) in told.items():
        out.print(f"{sid}: {line}", highlight=False, markup=False, soft_wrap=True)
    if not all(done for _, done in told.values()):
        raise typer.Exit(1)


async def _forget(conf: Settings, call_sids: list[str]) -> dict[str, tuple[str, bool]]:
    """What became of each, and whether it is as was wanted."""
    from bridge.fleet import InstanceLoad
    from bridge.fleet.memory import MemoryRegistry
    from bridge.fleet.redis import redis_registry

    if conf.redis_url is None:
        return await _forget_in(MemoryRegistry(), True, conf, call_sids)
    there: list[bool] = []
    url = conf.redis_url.get_secret_value()
    # An instance that takes no calls, for a moment.
    async with redis_registry(
        url, lambda: InstanceLoad(0, 0, True), there.append
    ) as it:
        return await _forget_in(it, there[-1:] == [True], conf, call_sids)


async def _forget_in(
    registry: "Registry", there: bool, conf: Settings, call_sids: list[str]
) -> dict[str, tuple[str, bool]]:
    from bridge.records import retention

    if not there:
        return dict.fromkeys(call_sids, ("nothing deleted, Redis is away", False))
    told: dict[str, tuple[str, bool]] = {}
    running = {entry.call_sid for entry in await registry.calls()}
    where = conf.record_dir.absolute() if conf.record_dir else None
    for sid in call_sids:
        if not CALL_SID.fullmatch(sid):
            told[sid] = ("is no SID of a call, such as CA and 32 digits", False)
            continue
        try:
            if sid in running:
                raise retention.StillRuns
            traces, shared = await retention.forget_call(where, registry, sid)
        except retention.StillRuns:
            told[sid] = ("still runs, so nothing was deleted", False)
        except OSError as error:
            told[sid] = (f"not all could be deleted: {error.strerror}", False)
        else:
            told[sid] = (f"deleted: traces {traces}, shared records {shared}", True)
            if not (traces or shared):
                place = f"in {where}" if where else "here: BRIDGE_RECORD_DIR is not set"
                told[sid] = (f"nothing is kept of it {place}", False)
    return told


def _parameters(pairs: list[str]) -> dict[str, str]:
    parted = [pair.partition("=") for pair in pairs]
    if not all(name and equals for name, equals, _ in parted):
        _stop_with("a parameter is name=value")
    return {name: value for name, _, value in parted}


def _here(conf: Settings) -> str:
    """Where a bridge with these settings is reached from this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on
    host = everywhere.get(conf.host, conf.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{conf.port}"


def _secrets(conf: Settings, routes: "Routes") -> set[str]:
    """What of the configuration no log may show."""
    values = [getattr(conf, name) for name in type(conf).model_fields]
    secrets = {it.get_secret_value() for it in values if isinstance(it, SecretStr)}
    secrets |= {*conf.twilio_shared_keys.values(), *conf.model_headers.values()}
    redis = conf.redis_url.get_secret_value() if conf.redis_url else None
    reports = [it.report.url for it in (*routes.routes, routes.defaults) if it.report]
    for url in (redis, conf.model_url, conf.report_url, *reports):
        secrets |= _secrets_in(url)
    return {part for secret in secrets for part in (secret, *secret.split()[1:])}


def _secrets_in(url: str | None) -> set[str]:
    """A key may stand in its query, in its path (of a webhook), before its host."""
    parts = urlsplit(url or "")
    query = {value for _, value in parse_qsl(parts.query)}
    path = {it for it in parts.path.split("/") if len(it) >= MIN_KEY_CHARS}
    return query | path | {parts.query, unquote(parts.password or "")}


def _demo_settings(routes: Path | None) -> Settings:
    """None of the environment's: a demo is the same everywhere."""
    if routes is None:
        return Settings()
    try:
        return settings.load({"BRIDGE_ROUTES": str(routes)}, env_file=None)
    except SettingsError as error:
        _stop_with(str(error))


@app.command()
def check(agent: AgentOption = None) -> None:
    """Tell what in the configuration is missing or wrong, all at once, with the fix."""
    environ = {**os.environ, **({"BRIDGE_AGENT": agent} if agent else {})}
    findings = settings.check(environ)
    findings += _check_user_code(environ, findings)
    wrong = {it.name for it in _errors(findings)}
    findings = [it for it in findings if it.level != "ok" or it.name not in wrong]
    marks = {"ok": "[green]ok", "warning": "[yellow]warning", "error": "[red]error"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        # What people wrote may look like markup.
        fix = f"\n[dim]{escape(finding.fix)}[/]" if finding.fix else ""
        table.add_row(
            marks[finding.level], escape(finding.name), escape(finding.text) + fix
        )
    out.print(table)
    if _errors(findings):
        raise typer.Exit(1)


def _check_user_code(environ: dict[str, str], findings: list[Finding]) -> list[Finding]:
    """What is wrong with the user's own code and routes, where they can be read."""
    if any(it.name in ("BRIDGE_AGENT", "BRIDGE_ROUTES") for it in _errors(findings)):
        return []
    try:
        conf = settings.load(environ)
    except SettingsError:
        return []  # told already
    from bridge.agent.loader import AgentNotLoaded
    from bridge.app.routes import RoutesError
    from bridge.app.startup import load_user_code

    try:
        user_code = load_user_code(conf)
    except SettingsError as error:
        return list(error.mistakes)
    except AgentNotLoaded as error:
        fix = "correct the name or the file"
        return [Finding("error", "BRIDGE_AGENT", f"fails: {error}", fix)]
    except RoutesError as error:
        return [Finding("error", "BRIDGE_ROUTES", it) for it in error.mistakes]
    return [Finding("warning", "BRIDGE_ROUTES", it) for it in user_code.routes.warnings]


def _errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]


def _origin(url: str) -> str:
    try:
        return settings.load({"BRIDGE_PUBLIC_URL": url}, None).public_url or ""
    except SettingsError as error:
        _stop_with(str(error).replace("BRIDGE_PUBLIC_URL", "--url"))


@app.command("twiml")
def print_twiml(
    url: Annotated[
        str | None,
        typer.Option(help="https origin of the bridge, instead of BRIDGE_PUBLIC_URL"),
    ] = None,
) -> None:
    """Print the document for a TwiML Bin (when no webhook of ours is to be asked)."""
    conf = _settings()
    origin = _origin(url) if url else conf.public_url
    if not origin:
        _stop_with("BRIDGE_PUBLIC_URL is not set: set it, or give --url https://...")
    stream = websocket_origin(origin) + "/media"
    try:
        document = twiml.bin_document(stream, f"{origin}/voice/next")
    except ValueError as error:
        _stop_with(str(error))
    if conf.tickets == "required" and not conf.insecure:
        err.print(
            "A Bin's streams have no tickets: set BRIDGE_TICKETS=off to take them."
        )
    sys.stdout.write(document + "\n")


@sim.command("model")
def sim_model(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="where to listen on this machine")
    ] = 8765,
    host: Annotated[
        str, typer.Option(help="the address to listen on; 0.0.0.0 in a container")
    ] = "127.0.0.1",
) -> None:
    """Run the fake Realtime model: point BRIDGE_MODEL_URL at it."""
    try:
        _run(_sim_model(host, port))
    except OSError as error:
        _stop_with(f"cannot listen on {host} port {port}: {error.strerror}")


@sim.command("call")
def sim_call(
    url: Annotated[
        str | None,
        typer.Argument(
            help="the voice webhook of a running bridge, else of this machine's"
        ),
    ] = None,
    wav: Annotated[
        Path | None, typer.Option(help="write what both sides said and heard")
    ] = None,
    to: Annotated[
        str, typer.Option(help="the number that is dialled: routes go by it")
    ] = "+15557650002",
    caller_id: Annotated[
        str | None, typer.Option("--from", help="the number that calls, else any")
    ] = None,
    keys: Annotated[
        str, typer.Option(help="pressed behind the greeting, in place of the talk")
    ] = "",
    allow_ws: Annotated[
        bool,
        typer.Option(
            "--allow-ws",
            help="take ws:// stream URLs of any host, as between containers; "
            "Twilio takes wss:// only",
        ),
    ] = False,
) -> None:
    """Place one call to a running bridge, as Twilio would (signed if TWILIO_AUTH_TOKEN
    is set): greeting, a question, an interruption, goodbye."""
    from bridge.sim import scenario
    from bridge.sim.caller import Caller, random_number

    conf = _settings()
    token = conf.twilio_auth_token
    caller = Caller(
        webhook_url=url or f"{_here(conf)}/voice",
        auth_token=token.get_secret_value() if token else None,
        signed_origin=conf.public_url,
        from_number=caller_id or random_number(),
        to_number=to,
        allow_ws=allow_ws,
    )
    plan = scenario.pressing(keys) if keys else scenario.SHORT_TALK
    record = _run(caller.call(plan.script()))
    if record.error:
        _stop_with(f"The call failed: {record.error}")
    if wav:
        record.write_wav(wav)
    out.print(
        f"The call was ended by the {record.ended_by}: "
        f"{len(record.heard) / 8000:.1f} s of the agent heard, "
        f"interruptions: {len(record.clears)}, warnings: {len(record.warnings)}.",
        soft_wrap=True,  # one line of a log, in a container
    )
    if len(record.streams) > 1:
        again = len(record.streams) - 1
        out.print(f"It went on in a new stream {again} time{'s' if again > 1 else ''}.")
    if record.dialled:
        out.print(f"The caller was put through to {record.dialled}.")
    for text in record.said_by_twilio:
        out.print(f"Twilio said: {text}")
    if record.said_by_twilio or not record.heard:
        _stop_with(
            "The call failed: the caller did not hear the agent to the end. See "
            "`call_ended` in the bridge's log for the reason."
        )


@sim.command("accuracy")
def sim_accuracy(
    calls: Annotated[int, typer.Option(help="calls in each scene and network")] = 3,
    at_once: Annotated[int, typer.Option(help="calls at the same time")] = 12,
    frames: Annotated[
        bool, typer.Option(help="a Twilio that plays in whole 20 ms frames")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="write the figures there")] = None,
) -> None:
    """Measure how well the model knows what was heard; exit 1 if a bound is broken.

    Belief error: for every item, |ms the model believes were heard - ms that were|,
    over scenes that break other bridges and over three networks.
    """
    from bridge.sim import accuracy

    log.configure("pretty", logging.ERROR)
    report = _run(
        accuracy.measure(
            _bridge_for, calls=calls, at_once=at_once, frame_playout=frames
        )
    )
    # Into a file as wide as it needs to be.
    wide = out if out.is_terminal else Console(width=140)
    wide.print(accuracy.render(report))
    if json:
        json.write_text(accuracy.as_json(report))
    if report.broken:
        _stop_with("Broken:", *report.broken)


@sim.command("load")
def sim_load(
    calls: Annotated[int, typer.Option(help="how many at the same time")] = 50,
    seconds: Annotated[float, typer.Option(help="how long each lasts")] = 40.0,
    json: Annotated[Path | None, typer.Option(help="write the figures there")] = None,
) -> None:
    """Load a bridge in a process of its own with the standard workload, and measure
    its delays, its CPU and its memory. The fakes take a core of their own."""
    from bridge.sim import load

    report = _run(_sim_load(calls, seconds))
    out.print(load.render(report))
    if json:
        json.write_text(load.as_json(report))
    if report.failed or report.model_errors or report.lost_or_repeated_bytes:
        _stop_with("Not all calls were well:", *report.failed[:10])


async def _sim_load(calls: int, seconds: float) -> "load.LoadReport":
    from bridge.sim import load
    from bridge.sim.model import ModelServer

    async with (
        ModelServer(load.BEHAVIOUR, record_appends=True) as model,
        load.bridge_process(model.url, max_calls=calls) as process,
    ):
        return await load.measure(process, model, calls=calls, seconds=seconds)


@asynccontextmanager
async def _bridge_for(model_url: str) -> AsyncIterator[tuple[str, str | None]]:
    """A bridge in front of that model, for a measurement."""
    from bridge.app.startup import load_user_code
    from bridge.http.server import serving

    conf = Settings(host="127.0.0.1", port=0, insecure=True, greeting="")
    async with serving(conf, load_user_code(conf), model_url) as running:
        yield f"http://127.0.0.1:{running.port}/voice", None


def _allow_files(conf: Settings) -> list[Finding]:
    """As many open files as a flood at the doors may take beside all calls: without one
    left no call comes in, and each that cannot is a line of the log."""
    import resource  # not on every system that `bridge check` runs on

    from bridge.http.connection_guard import BACKLOG

    # What is accepted at once comes on top of those who wait, and they may be twice as
    # many for a moment (connection_guard.py). A call has its stream, a session and a
    # successor.
    most = 2 * conf.waiting_sockets + BACKLOG + 4 * conf.max_calls + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    no_end = resource.RLIM_INFINITY
    if soft == no_end or soft >= most:
        return []
    allowed = most if hard == no_end else min(most, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # another limit of the system's, which it hides
        allowed = soft
    if allowed == most:
        return []
    text = f"allows {allowed} open files; a flood and all calls can take {most}"
    fix = "raise it, or lower BRIDGE_WAITING_SOCKETS or BRIDGE_MAX_CALLS"
    return [Finding("warning", "ulimit -n", text, fix)]


async def _serve(conf: Settings, user_code: "UserCode") -> None:
    """From start to the last call, with the bundled model where none is named."""
    from bridge.app.startup import start_services
    from bridge.http.server import Server
    from bridge.model.local_mcp import McpUnavailable
    from bridge.sim.model import ModelServer

    trouble = ""
    told_to_stop = _first_signal()
    async with contextlib.AsyncExitStack() as stack:
        model_url = conf.model_target
        if model_url == LOCAL_MODEL:
            fake = await stack.enter_async_context(ModelServer(keep_audio=False))
            model_url = fake.url
        # Tools that are plain functions run in threads, and so does the look-up of the
        # model's host: with the few of the default, slow tools would stop new calls.
        threads = ThreadPoolExecutor(max(MIN_THREADS, conf.max_calls))
        asyncio.get_running_loop().set_default_executor(threads)
        try:
            services = await stack.enter_async_context(
                start_services(conf, user_code, model_url)
            )
        except McpUnavailable as error:
            _stop_with(f"bridge serve does not start: {error}")
        running = Server(conf, services)
        try:
            await running.start()
        except OSError as error:
            trouble = f"cannot listen on {conf.host}:{conf.port}: {error.strerror}"
        else:
            # All that was loaded stays as long as the process: to look through it again
            # and again for garbage would hold calls up, a fifth of a second each time.
            gc.collect()
            gc.freeze()
            await told_to_stop.wait()
            _let_the_next_signal_kill()
            await running.close(conf.drain_seconds)
    # Not before: what is raised within comes out of its task groups as a group.
    if trouble:
        _stop_with(trouble)


def _first_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT, also by one that comes while the server starts."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


def _let_the_next_signal_kill() -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


async def _sim_model(host: str, port: int) -> None:
    from bridge.sim.model import ModelServer

    async with ModelServer(host=host, port=port, keep_audio=False) as fake:
        out.print(f"BRIDGE_MODEL_URL={fake.url}")
        await asyncio.Event().wait()


def _settings() -> Settings:
    try:
        return settings.load()
    except SettingsError as error:
        _stop_with("The configuration is not usable:", *str(error).splitlines())


def _user_code(conf: Settings, agent: str | None) -> "UserCode":
    from bridge.agent.loader import AgentNotLoaded
    from bridge.app.routes import RoutesError
    from bridge.app.startup import load_user_code

    try:
        return load_user_code(conf, agent)
    except AgentNotLoaded as error:
        _stop_with(f"The agent cannot be loaded: {error}")
    except SettingsError as error:
        _stop_with("The configuration is not usable:", *str(error).splitlines())
    except RoutesError as error:
        _stop_with("The routes are not usable:", *error.mistakes)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _stop_with(*lines: str) -> NoReturn:
    for line in lines:
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
