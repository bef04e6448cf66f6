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
from collections.abc import AsyncIterator, Coroutine
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
from bridge.app import settings, settings_report, versions
from bridge.app.settings import Finding, Settings, SettingsError
from bridge.app.values import LOCAL_MODEL
from bridge.http.signature import websocket_origin
from bridge.telemetry import log

# The SDK is imported only where it is needed, because that takes two seconds. So a
# mistake in a variable is reported at once.
if TYPE_CHECKING:
    from bridge.app.routes import Routes
    from bridge.app.startup import UserCode
    from bridge.fleet import Registry
    from bridge.sim import load
    from bridge.sim.twilio.record import CallRecord

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Your RealtimeAgent on a Twilio number.

    Without any account: `bridge demo` places a call between two fakes.
    With accounts: set the variables that `bridge check` asks for, then `bridge serve`.
    """,
)
sim = typer.Typer(
    no_args_is_help=True,
    help="Fakes of Twilio and of the model, and measurements with them.",
)
app.add_typer(sim, name="sim")
OWN_FILES = 100
"""Open files besides sockets of calls and clients: Redis, reports, traces and Python's
own."""

CALL_SID = re.compile(r"[\w-]{1,64}", re.ASCII)
MIN_KEY_CHARS = 16
"""A part of a URL's path that has at least this length may be a key, and is kept out of
the log."""

T = TypeVar("T")
out, err = Console(), Console(stderr=True)

AgentOption = Annotated[
    str | None,
    typer.Option(help="package.module:name or file.py:name, instead of BRIDGE_AGENT"),
]
DialledOption = Annotated[
    str, typer.Option(help="the number that is dialled; it selects the route")
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


@app.command()
def serve(agent: AgentOption = None) -> None:
    """Take calls until SIGTERM or Ctrl-C; running calls may then finish.

    Configured by the environment and by .env; `bridge check` says what is missing.
    """
    conf = _settings()
    findings = settings_report.serving_mistakes(conf) + settings_report.unknown_names()
    findings += _raise_file_limit(conf)
    if mistakes := _errors(findings):
        _stop_with("bridge serve does not start:", *map(str, mistakes))
    user_code = _user_code(conf, agent)
    log.configure(conf.log_format, secrets=_secrets(conf, user_code.routes))
    log.log_crashes()
    for finding in findings:
        structlog.get_logger().warning("setting", name=finding.name, text=str(finding))
    for warning in user_code.routes.warnings:
        structlog.get_logger().warning("routes", text=warning)
    _run(_serve(conf, user_code))


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
    message: Annotated[
        str,
        typer.Option(help="text to leave on an answering machine; without it, hang up"),
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value for routes, instructions, tools; may be repeated"
        ),
    ] = None,
    ring_seconds: Annotated[
        int, typer.Option(help="seconds that the phone may ring")
    ] = 30,
    url: Annotated[
        str | None,
        typer.Option(help="URL of the running bridge, instead of this machine's"),
    ] = None,
) -> None:
    """Place an outbound call through a running bridge (POST /api/calls).

    The bridge needs BRIDGE_API_TOKEN, TWILIO_ACCOUNT_SID and BRIDGE_OUTBOUND_PREFIXES.
    """
    conf = _settings()
    token = _api_token(conf)
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
    out.print(_request_call(url or _local_url(conf), token, wanted))


def _api_token(conf: Settings) -> str:
    if conf.api_token is None:
        _stop_with("BRIDGE_API_TOKEN is not set: set it here and for the bridge")
    return conf.api_token.get_secret_value()


def _request_call(url: str, token: str, wanted: dict[str, Any]) -> str:
    """Asks the bridge at `url` to place a call. The call's SID."""
    from bridge.http.api import client

    body = {name: value for name, value in wanted.items() if value is not None}
    try:
        return _run(client.place_call(url, token, body))
    except client.ApiError as error:
        _stop_with(str(error))


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
    conf = _settings()
    log.configure(conf.log_format, logging.ERROR)
    results = _run(_forget(conf, call_sids))
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
        _stop_with("--parameter must be name=value")
    return {name: value for name, _, value in parted}


def _local_url(conf: Settings) -> str:
    """The URL of a bridge with these settings, from this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on
    host = everywhere.get(conf.host, conf.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{conf.port}"


def _secrets(conf: Settings, routes: "Routes") -> set[str]:
    """Values of the configuration that no log may contain."""
    values = [getattr(conf, name) for name in type(conf).model_fields]
    secrets = {it.get_secret_value() for it in values if isinstance(it, SecretStr)}
    secrets |= {*conf.twilio_shared_keys.values(), *conf.model_headers.values()}
    redis = conf.redis_url.get_secret_value() if conf.redis_url else None
    reports = [it.report.url for it in (*routes.routes, routes.defaults) if it.report]
    for url in (redis, conf.model_url, conf.report_url, *reports):
        secrets |= _secrets_in(url)
    return {part for secret in secrets for part in (secret, *secret.split()[1:])}


def _secrets_in(url: str | None) -> set[str]:
    """Parts of a URL that may be secret: query, password, and long parts of the path,
    such as those of a webhook."""
    parts = urlsplit(url or "")
    query = {value for _, value in parse_qsl(parts.query)}
    path = {it for it in parts.path.split("/") if len(it) >= MIN_KEY_CHARS}
    return query | path | {parts.query, unquote(parts.password or "")}


def _demo_settings(routes: Path | None) -> Settings:
    """Ignores the environment, so that a demo is the same everywhere."""
    if routes is None:
        return Settings()
    try:
        return settings.load({"BRIDGE_ROUTES": str(routes)}, env_file=None)
    except SettingsError as error:
        _stop_with(str(error))


@app.command()
def check(agent: AgentOption = None) -> None:
    """Report everything that is missing or wrong in the configuration, each with its
    fix."""
    environ = {**os.environ, **({"BRIDGE_AGENT": agent} if agent else {})}
    findings = settings_report.check(environ)
    findings += _check_user_code(environ, findings)
    wrong = {it.name for it in _errors(findings)}
    findings = [it for it in findings if it.level != "ok" or it.name not in wrong]
    marks = {"ok": "[green]ok", "warning": "[yellow]warning", "error": "[red]error"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        # The user's text may look like markup.
        fix = f"\n[dim]{escape(finding.fix)}[/]" if finding.fix else ""
        table.add_row(
            marks[finding.level], escape(finding.name), escape(finding.text) + fix
        )
    out.print(table)
    if _errors(findings):
        raise typer.Exit(1)


def _check_user_code(environ: dict[str, str], findings: list[Finding]) -> list[Finding]:
    """Mistakes in the user's code and routes, if the settings that name them are
    valid."""
    if any(it.name in ("BRIDGE_AGENT", "BRIDGE_ROUTES") for it in _errors(findings)):
        return []
    try:
        conf = settings.load(environ)
    except SettingsError:
        return []  # reported by settings_report.check
    from bridge.agent.loader import AgentNotLoaded
    from bridge.app.routes import RoutesError
    from bridge.app.startup import load_user_code

    try:
        user_code = load_user_code(conf)
    except SettingsError as error:
        return list(error.mistakes)
    except AgentNotLoaded as error:
        fix = "correct the name or the file"
        return [Finding("error", "BRIDGE_AGENT", f"cannot be loaded: {error}", fix)]
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
    """Print the document for a TwiML Bin, for use without the bridge's webhook."""
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
            "A TwiML Bin's streams have no tickets: set BRIDGE_TICKETS=off for them"
        )
    sys.stdout.write(document + "\n")


@sim.command("model")
def sim_model(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port to listen on")
    ] = 8765,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 in a container")
    ] = "127.0.0.1",
) -> None:
    """Run the fake Realtime model. Point BRIDGE_MODEL_URL at it."""
    try:
        _run(_sim_model(host, port))
    except OSError as error:
        _stop_with(f"cannot listen on {host} port {port}: {error.strerror}")


@sim.command("call")
def sim_call(
    url: Annotated[
        str | None,
        typer.Argument(
            help="voice webhook of a running bridge; default: this machine's"
        ),
    ] = None,
    wav: Annotated[
        Path | None, typer.Option(help="file for the audio of both sides")
    ] = None,
    to: DialledOption = "+15557650002",
    caller_id: Annotated[
        str | None, typer.Option("--from", help="the caller's number; default: any")
    ] = None,
    keys: Annotated[
        str, typer.Option(help="keys to press after the greeting, instead of talking")
    ] = "",
    allow_ws: Annotated[
        bool,
        typer.Option(
            "--allow-ws",
            help="accept ws:// stream URLs of any host, as between containers; "
            "Twilio accepts wss:// only",
        ),
    ] = False,
) -> None:
    """Place one call to a running bridge, as Twilio would: greeting, a question, an
    interruption, goodbye. The webhook is signed if TWILIO_AUTH_TOKEN is set."""
    from bridge.sim import scenario
    from bridge.sim.caller import Caller, random_number

    conf = _settings()
    token = conf.twilio_auth_token
    caller = Caller(
        webhook_url=url or f"{_local_url(conf)}/voice",
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
    _report_call(record)


def _report_call(record: "CallRecord") -> None:
    """Prints how the call went. Stops if the caller did not hear the agent to the
    end."""
    out.print(
        f"The call was ended by the {record.ended_by}: "
        f"{len(record.heard) / 8000:.1f} s of the agent heard, "
        f"interruptions: {len(record.clears)}, warnings: {len(record.warnings)}.",
        soft_wrap=True,  # one log line in a container
    )
    if len(record.streams) > 1:
        again = len(record.streams) - 1
        out.print(
            f"It continued on a new stream {again} time{'s' if again > 1 else ''}."
        )
    if record.dialled:
        out.print(f"The caller was transferred to {record.dialled}.")
    for text in record.said_by_twilio:
        out.print(f"Twilio said: {text}")
    if record.said_by_twilio or not record.heard:
        _stop_with(
            "The call failed: the caller did not hear the agent to the end. See "
            "`call_ended` in the bridge's log for the reason."
        )


@sim.command("accuracy")
def sim_accuracy(
    calls: Annotated[int, typer.Option(help="calls for each scene and network")] = 3,
    at_once: Annotated[int, typer.Option(help="calls at the same time")] = 12,
    frames: Annotated[
        bool, typer.Option(help="use a fake Twilio that plays whole 20 ms frames")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
) -> None:
    """Measure how well the model knows what the caller heard. Exits with 1 if a limit
    is exceeded.

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
    # A file has no width, so the table gets the width that it needs.
    wide = out if out.is_terminal else Console(width=140)
    wide.print(accuracy.render(report))
    if json:
        json.write_text(accuracy.as_json(report))
    if report.broken:
        _stop_with("Limits exceeded:", *report.broken)


@sim.command("load")
def sim_load(
    calls: Annotated[int, typer.Option(help="calls at the same time")] = 50,
    seconds: Annotated[float, typer.Option(help="seconds that each call lasts")] = 40.0,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
) -> None:
    """Put the standard load on a bridge in a process of its own, and measure its
    delays, CPU and memory. The fakes use another core."""
    from bridge.sim import load

    report = _run(_sim_load(calls, seconds))
    out.print(load.render(report))
    if json:
        json.write_text(load.as_json(report))
    if report.failed or report.model_errors or report.lost_or_repeated_bytes:
        _stop_with("Some calls failed:", *report.failed[:10])


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
    """A bridge with this model, for a measurement."""
    from bridge.app.startup import load_user_code
    from bridge.http.server import serving

    conf = Settings(host="127.0.0.1", port=0, insecure=True, greeting="")
    async with serving(conf, load_user_code(conf), model_url) as running:
        yield f"http://127.0.0.1:{running.port}/voice", None


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


async def _serve(conf: Settings, user_code: "UserCode") -> None:
    """Runs the server from start to the last call. Uses the bundled fake model if no
    other model is configured."""
    from bridge.app.startup import start_services
    from bridge.http.server import Server
    from bridge.model.local_mcp import McpUnavailable
    from bridge.sim.model import ModelServer

    listen_error = ""
    stop_signal = _first_signal()
    async with contextlib.AsyncExitStack() as stack:
        model_url = conf.model_target
        if model_url == LOCAL_MODEL:
            fake = await stack.enter_async_context(ModelServer(keep_audio=False))
            model_url = fake.url
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
            listen_error = f"cannot listen on {conf.host}:{conf.port}: {error.strerror}"
        else:
            # The objects that are loaded now stay for the life of the process. Without
            # `freeze`, each garbage collection would scan them and stop all calls for
            # a fifth of a second.
            gc.collect()
            gc.freeze()
            await stop_signal.wait()
            _restore_signal_handlers()
            await running.close(conf.drain_seconds)
    # Outside of the context managers: their task groups would wrap the exception in an
    # ExceptionGroup.
    if listen_error:
        _stop_with(listen_error)


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
    # Nothing that the imports create is garbage. Looking for some takes a fifth of the
    # time until a bridge is ready.
    gc.disable()
    try:
        from bridge.agent.loader import AgentNotLoaded
        from bridge.app.routes import RoutesError
        from bridge.app.startup import load_user_code
    finally:
        gc.enable()
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
