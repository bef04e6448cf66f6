"""The commands of `bridge sim`: the fakes by themselves, and measurements with them.
They parse options and print results; the work is in bridge/sim."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bridge.app.settings import Settings
from bridge.cli.terminal import (
    DialledOption,
    T,
    err,
    load_settings,
    local_url,
    loop_factory,
    out,
    run,
    stop_with,
)
from bridge.telemetry import log

# The fakes are imported only where they are needed: `bridge serve` needs none of them.
if TYPE_CHECKING:
    from bridge.sim import (
        capacity,
        capacity_report,
        load,
        load_monitor,
        load_progress,
        load_report,
        load_server,
    )
    from bridge.sim.caller import Caller
    from bridge.sim.scenario import Scenario
    from bridge.sim.twilio.record import CallRecord

sim = typer.Typer(
    no_args_is_help=True,
    help="Fakes of Twilio and of the model, and measurements with them.",
)


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
        run(_sim_model(host, port))
    except OSError as error:
        stop_with(f"cannot listen on {host} port {port}: {error.strerror}")


WebhookArgument = Annotated[
    str | None,
    typer.Argument(help="voice webhook of a running bridge; default: this machine's"),
]
CallerIdOption = Annotated[
    str | None, typer.Option("--from", help="the caller's number; default: any")
]
StayOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=240,
        help="seconds to listen before hanging up, for an agent with a slow tool",
    ),
]
AllowWsOption = Annotated[
    bool,
    typer.Option(
        "--allow-ws",
        help="accept ws:// stream URLs of any host, as between containers; "
        "Twilio accepts wss:// only",
    ),
]
ShowOption = Annotated[
    bool | None,
    typer.Option(
        help="print what was said and heard, and the delays; default: on a terminal"
    ),
]


@sim.command("call")
def sim_call(
    url: WebhookArgument = None,
    wav: Annotated[
        Path | None, typer.Option(help="file for the audio of both sides")
    ] = None,
    to: DialledOption = "+15557650002",
    caller_id: CallerIdOption = None,
    keys: Annotated[
        str, typer.Option(help="keys to press after the greeting, instead of talking")
    ] = "",
    stay: StayOption = 0.0,
    allow_ws: AllowWsOption = False,
    show: ShowOption = None,
) -> None:
    """Place one call to a running bridge, as Twilio would: greeting, a question, an
    interruption, goodbye. The webhook is signed if TWILIO_AUTH_TOKEN is set.

    The fake caller knows the agent's audio, not its words: the terminal of `bridge
    serve` prints these (BRIDGE_PRINT_CALLS).
    """
    from bridge.sim import scenario

    if wav and not wav.absolute().parent.is_dir():
        stop_with(f"There is no folder {wav.parent} for {wav.name}: make it first")
    caller = _fake_caller(url, caller_id, to, allow_ws=allow_ws)
    plan = scenario.pressing(keys) if keys else scenario.SHORT_TALK
    record = run(caller.call(scenario.staying(plan, stay).script()))
    if record.error:
        stop_with(
            f"The call failed: {record.error}. Is this the bridge's webhook: "
            f"{caller.webhook_url}? If it is, see the bridge's log for the reason."
        )
    if out.is_terminal if show is None else show:
        _show_call(record, plan)
    _report_call(record, wav)


def _fake_caller(
    url: str | None, from_number: str | None, to_number: str, *, allow_ws: bool
) -> "Caller":
    """A caller whose webhooks are signed as the settings of this machine say."""
    from bridge.sim.caller import Caller, random_number

    conf = load_settings()
    token = conf.twilio_auth_token
    caller = Caller(
        webhook_url=url or f"{local_url(conf)}/voice",
        auth_token=token.get_secret_value() if token else None,
        signed_origin=conf.public_url,
        from_number=from_number or random_number(),
        to_number=to_number,
        allow_ws=allow_ws,
    )
    sid = conf.twilio_account_sid  # the bridge refuses calls of other accounts
    return replace(caller, account_sid=sid) if sid else caller


def _show_call(record: "CallRecord", plan: "Scenario") -> None:
    """Prints the call as the fake caller experienced it."""
    from bridge.cli import call_page, heard_call

    call_page.show_lines(heard_call.heard_lines(record, plan.texts), out)
    call_page.show_delays(heard_call.experienced_delays(record), out)
    for warning in record.warnings:
        out.print(f"Twilio warned: {warning.code} {warning.text}", markup=False)
    for what in record.timed_out:
        out.print(f"The caller waited too long: {what}", markup=False)


def _report_call(record: "CallRecord", wav: Path | None) -> None:
    """Prints how the call went, and writes its audio to `wav`. Stops if the caller did
    not hear the agent to the end."""
    if wav:
        record.write_wav(wav)
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
        stop_with(
            "The call failed: the caller did not hear the agent to the end. See "
            "`call_ended` in the bridge's log for the reason."
        )


LossOption = Annotated[
    float, typer.Option(min=0, max=1, help="chance that a message is lost at first")
]
StopOption = Annotated[
    float,
    typer.Option(min=0, help="seconds that a lost message, and all behind it, wait"),
]


FramesOption = Annotated[
    bool, typer.Option(help="use a fake Twilio that plays whole 20 ms frames")
]
WordsOption = Annotated[
    int, typer.Option(min=0, help="calls for each lead of the words; 0: none")
]
StopsOption = Annotated[
    bool, typer.Option(help="use six networks that lose packets, and so stop")
]


@sim.command("accuracy")
def sim_accuracy(
    calls: Annotated[int, typer.Option(help="calls for each scene and network")] = 3,
    at_once: Annotated[int, typer.Option(help="calls at the same time")] = 12,
    frames: FramesOption = False,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
    words: WordsOption = 4,
    stops: StopsOption = False,
    up_loss: LossOption = 0.0,
    up_stop: StopOption = 1.0,
    down_loss: LossOption = 0.0,
    down_stop: StopOption = 1.0,
    seed: Annotated[int, typer.Option(help="seed of all that is random")] = 1,
) -> None:
    """Measure how well the model knows what the caller heard. Exits with 1 if a limit
    is exceeded.

    Belief error: for every item, |ms the model believes were heard - ms that were|,
    over scenes that break other bridges and over three networks. With --up-loss or
    --down-loss: over the 60/60/30 network, which stops (up: from Twilio to the bridge).
    Heard words: words of the report that were not heard, or lack, where the words come
    ahead of their audio, with it or behind it; without stops.
    """
    from bridge.sim import accuracy

    log.configure("pretty", logging.ERROR)
    networks = accuracy.LOSSY_NETWORKS if stops else accuracy.NETWORKS
    if up_loss or down_loss:
        networks = (
            accuracy.lossy(up_loss, 1000 * up_stop, down_loss, 1000 * down_stop),
        )
    report = run(
        accuracy.measure(
            _bridge_for,
            networks=networks,
            calls=calls,
            seed=seed,
            at_once=at_once,
            frame_playout=frames,
        )
    )
    # A file has no width, so the table gets the width that it needs.
    wide = out if out.is_terminal else Console(width=140)
    wide.print(accuracy.render(report))
    broken = report.broken
    if words:
        broken += _measure_words(wide, words, seed, at_once)
    if json:
        json.write_text(accuracy.as_json(report))
    if broken:
        stop_with("Limits exceeded:", *broken)


def _measure_words(
    console: Console, calls: int, seed: int, at_once: int
) -> tuple[str, ...]:
    """Prints the heard words; returns the limits that are exceeded."""
    from bridge.sim import heard_words

    found = run(
        heard_words.measure(_bridge_for, calls=calls, seed=seed, at_once=at_once)
    )
    console.print(heard_words.render(found))
    return found.broken


RampOption = Annotated[
    float | None,
    typer.Option(
        min=0, help="seconds from the first call to the last; default: 20 calls/s"
    ),
]
BargeInOption = Annotated[
    int, typer.Option(min=0, help="one turn of so many interrupts the agent; 0: none")
]
WebhookOption = Annotated[
    str | None,
    typer.Option(
        help="voice webhook of a running server, in place of a bridge that the command "
        "starts; the fake model is its model. Signed if TWILIO_AUTH_TOKEN is set"
    ),
]
StreamOption = Annotated[
    str | None,
    typer.Option(help="media WebSocket of a running server, ws:// or wss://"),
]
ModelPortOption = Annotated[
    int,
    typer.Option(
        min=0, max=65535, help="port of the fake model, for --webhook and --url"
    ),
]
ModelHostOption = Annotated[
    str, typer.Option(help="address of the fake model; 0.0.0.0 in a container")
]
PidOption = Annotated[
    int | None,
    typer.Option(help="process of the running server: measures its CPU and memory"),
]
TlsOption = Annotated[
    bool,
    typer.Option("--tls", help="wss:// to the model of the bridge that is started"),
]
JsonOption = Annotated[Path | None, typer.Option(help="file for the figures")]


@sim.command("load")
def sim_load(
    calls: Annotated[int, typer.Option(min=1, help="calls at the same time")] = 50,
    seconds: Annotated[
        float, typer.Option(min=5, help="seconds that all calls run together")
    ] = 40.0,
    ramp: RampOption = None,
    barge_in_every: BargeInOption = 5,
    webhook: WebhookOption = None,
    url: StreamOption = None,
    model_port: ModelPortOption = 8765,
    model_host: ModelHostOption = "127.0.0.1",
    pid: PidOption = None,
    allow_ws: AllowWsOption = False,
    tls: TlsOption = False,
    burst: Annotated[
        str | None,
        typer.Option(
            help="new calls beside the others: calls a second x seconds x seconds of a "
            "call, such as 50x10x2"
        ),
    ] = None,
    json: JsonOption = None,
    html: Annotated[
        Path | None, typer.Option(help="file for the figures with plots")
    ] = None,
) -> None:
    """Put the standard load on a bridge that the command starts, or on any server for
    Twilio Media Streams, and measure its delays, CPU and memory.

    Exits with 1 if calls failed, and with 3 if the fakes were late: the result is
    worthless then.
    """
    from bridge.sim import load
    from bridge.sim.load_burst import Burst

    try:
        plan = load.LoadPlan(
            calls=calls,
            seconds=seconds,
            ramp_seconds=calls * load.RAMP_SECONDS if ramp is None else ramp,
            barge_in_every=barge_in_every,
            burst=None if burst is None else Burst.parse(burst),
        )
    except ValueError as mistake:
        stop_with(f"--burst: {mistake}")
    target = _load_target(webhook, url, pid, allow_ws, tls)
    server = _loaded_server(target, plan.all_calls, model_host, model_port, tls)
    _show_load(_run_load(_sim_load(plan, server)), json, html)


def _load_target(
    webhook: str | None, url: str | None, pid: int | None, allow_ws: bool, tls: bool
) -> "load.LoadTarget | None":
    """None: a bridge that the command starts."""
    from bridge.sim.load import LoadTarget

    if webhook and url:
        stop_with("give --webhook or --url, not both")
    if not webhook and not url:
        return None
    if tls:
        stop_with("--tls is for a bridge that the command starts")
    conf = load_settings()
    token = conf.twilio_auth_token
    return LoadTarget(
        name=webhook or url or "",
        webhook_url=webhook,
        stream_url=url,
        auth_token=token.get_secret_value() if token else None,
        signed_origin=conf.public_url if webhook else None,
        allow_ws=allow_ws,
        pid=pid,
    )


def _show_load(
    report: "load_report.LoadReport", json: Path | None, html: Path | None
) -> None:
    """Prints and writes the report, and exits with its code."""
    from bridge.sim import load_page, load_report

    out.print(load_report.render(report))
    if json:
        json.write_text(load_report.as_json(report))
    if html:
        html.write_text(load_page.page(report))
    if report.worthless:
        err.print(
            "[red]This result is worthless, because the fakes were late:[/]",
            *report.worthless,
            "Try fewer calls, or an idle machine with two cores.",
            sep="\n  ",
        )
        raise typer.Exit(load_report.WORTHLESS)
    if report.broken:
        stop_with("Some calls failed:", *report.broken[:10])


def _loaded_server(
    target: "load.LoadTarget | None", max_calls: int, host: str, port: int, tls: bool
) -> AbstractAsyncContextManager["load_server.LoadedServer"]:
    from bridge.sim.load_server import loaded_server

    return loaded_server(
        target, max_calls=max_calls, model_host=host, model_port=port, tls=tls
    )


def _run_load(work: Coroutine[Any, Any, T]) -> T:
    try:
        return run(work)
    except (OSError, TimeoutError) as error:
        stop_with(f"The load could not begin: {str(error) or type(error).__name__}")


async def _sim_load(
    plan: "load.LoadPlan",
    server: AbstractAsyncContextManager["load_server.LoadedServer"],
) -> "load_report.LoadReport":
    from bridge.sim import load

    async with server as loaded:
        with _load_progress(loaded.target.name, plan) as progress:
            return await load.measure(
                loaded.target,
                loaded.model,
                plan,
                placement=loaded.placement,
                progress=progress.show,
            )


def _load_progress(name: str, plan: "load.LoadPlan") -> "load_progress.LoadProgress":
    from bridge.sim import load, load_progress

    total = plan.ends_at + load.TURN_SECONDS
    return load_progress.LoadProgress(err, name, plan.all_calls, total)


@sim.command("capacity")
def sim_capacity(
    limit: Annotated[
        float, typer.Option(min=0.1, help="highest p99 of each delay, in ms")
    ] = 10.0,
    first: Annotated[int, typer.Option(min=1, help="calls of the first step")] = 25,
    most: Annotated[int, typer.Option(min=1, help="most calls to try")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="most steps of the search")] = 12,
    seconds: Annotated[
        float, typer.Option(min=2, help="seconds that each step is measured")
    ] = 15.0,
    webhook: WebhookOption = None,
    url: StreamOption = None,
    model_port: ModelPortOption = 8765,
    model_host: ModelHostOption = "127.0.0.1",
    pid: PidOption = None,
    allow_ws: AllowWsOption = False,
    tls: TlsOption = False,
    json: JsonOption = None,
) -> None:
    """Find how many calls one core holds with the p99 of all delays below a limit.

    The number of calls is doubled until a step fails, then bisected. A step whose fakes
    were late is worthless: it can neither pass nor fail, so the capacity is then "at
    least" the calls that passed. The server is a bridge that the command starts, or any
    server for Twilio Media Streams, as with `bridge sim load`.

    Exits with 1 if no step passed, and with 3 if the fakes limited the search.
    """
    from bridge.sim import capacity

    plan = capacity.CapacityPlan(
        limit_ms=limit, first=first, most=most, steps=steps, seconds=seconds
    )
    target = _load_target(webhook, url, pid, allow_ws, tls)
    server = _loaded_server(target, most, model_host, model_port, tls)
    result, circumstances = _run_load(_sim_capacity(plan, server, target is None, tls))
    _show_capacity(result, circumstances, json)


async def _sim_capacity(
    plan: "capacity.CapacityPlan",
    server: AbstractAsyncContextManager["load_server.LoadedServer"],
    own: bool,
    tls: bool,
) -> "tuple[capacity.CapacityResult, capacity_report.Circumstances]":
    """`own`: the bridge is started here, so its circumstances are known."""
    from bridge.sim import capacity, capacity_report

    @contextmanager
    def progress(name: str, step: "load.LoadPlan") -> Iterator["load_monitor.Progress"]:
        with _load_progress(name, step) as shown:
            yield shown.show

    def print_step(step: capacity.CapacityStep) -> None:
        err.print(capacity_report.line(step), highlight=False, soft_wrap=True)

    async with server as loaded:
        result = await capacity.find(
            loaded, plan, progress=progress, on_step=print_step
        )
    event_loop = "uvloop" if loop_factory() else "asyncio"
    return result, capacity_report.Circumstances(
        server=loaded.target.name,
        machine=capacity_report.machine(),
        placement=loaded.placement,
        event_loop=event_loop if own else None,
        tls=tls if own else None,
    )


def _show_capacity(
    result: "capacity.CapacityResult",
    circumstances: "capacity_report.Circumstances",
    json: Path | None,
) -> None:
    """Prints and writes the result, and exits with its code."""
    from bridge.sim import capacity_report, load_report

    wide = out if out.is_terminal else Console(width=120)
    wide.print(capacity_report.render(result))
    for name, text in circumstances.rows():
        wide.print(f"{name}: {text}", highlight=False)
    wide.print(f"capacity: {result.conclusion}", highlight=False, soft_wrap=True)
    if json:
        json.write_text(capacity_report.as_json(result, circumstances))
    if result.limited_by_fakes:
        raise typer.Exit(load_report.WORTHLESS)
    if not result.calls:
        raise typer.Exit(1)


@asynccontextmanager
async def _bridge_for(
    model_url: str, report_url: str | None = None
) -> AsyncIterator[tuple[str, str | None]]:
    """A bridge with this model, for a measurement."""
    from bridge.app.startup import load_user_code
    from bridge.http.server import serving

    conf = Settings(host="127.0.0.1", port=0, insecure=True, greeting="")
    conf = conf.model_copy(update={"report_url": report_url})
    async with serving(conf, load_user_code(conf), model_url) as running:
        yield f"http://127.0.0.1:{running.port}/voice", None


async def _sim_model(host: str, port: int) -> None:
    from bridge.sim.model import ModelServer

    async with ModelServer(host=host, port=port, keep_audio=False) as fake:
        out.print(f"BRIDGE_MODEL_URL={fake.url}")
        await asyncio.Event().wait()
