"""Whole calls through gateways that other people wrote: LiteLLM, Portkey; and aimock.

    .venv/bin/python -m tests.bench.gateways FOLDER --install   # once: pip and npm
    .venv/bin/python -m tests.bench.gateways FOLDER [--only litellm-alias]

FOLDER holds the programs. `bridge serve` runs in a process of its own, the gateway
stands between it and the fake model, and all are on loopback. A relay between bridge
and gateway passes all bytes on as they are, so the report shows what the gateway
changes. docs/models.md has the results. Exits 1 if a call is not as without a gateway.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bridge.sim.caller import Caller, CallRecord, PlacedCall
from bridge.sim.model import (
    Behaviour,
    CallTool,
    Direction,
    ModelServer,
    ModelSession,
    PlayRuler,
    SayText,
    Turn,
    TurnContext,
)
from bridge.sim.realtime import faults
from bridge.sim.ruler import read_ruler
from bridge.sim.server_process import bridge_process
from bridge.sim.twilio import steps
from bridge.sim.voice import speak
from tests.bench.gateway_agent import FORBIDDEN, RESULT
from tests.bench.gateway_programs import (
    GATEWAYS,
    MODEL,
    UPSTREAM_KEY,
    Gateway,
    install,
    running,
)
from tests.support.waiting import until
from tests.support.websocket_tap import Tap, tapped

AGENT = Path(__file__).with_name("gateway_agent.py")
PATH = "/v1/realtime"

LONG_MS = 9000
TURNS: tuple[Turn, ...] = (
    [SayText("Hello, this is the front desk.")],
    [PlayRuler(LONG_MS)],
    [CallTool("look_up", {"day": "Friday"})],
    [SayText("Table nine is free.")],
    [SayText(f"You can take eight hundred {FORBIDDEN} of it, with water. " * 4)],
    [SayText("Let me correct that.")],
)
AFTER_TOOL = 4
"""The turn that speaks about the tool's result."""

TRUNCATE_TOLERANCE_MS = 60
CALL_SECONDS = 60.0
PROBE_SECONDS = 5.0
UNKNOWN_MODEL = "no-such-model"
SECONDS_BEFORE_DROP = 1.5

Json = Mapping[str, Any]


# --- the call -----------------------------------------------------------------------


def script() -> list[steps.Step]:
    """Greeting; a question, its answer cut by the next one, which needs the tool; the
    session is lost; a question whose answer the guardrail stops."""
    question = steps.SayStep(speak("Do you have a table on Friday?").mulaw())
    listen = steps.ListenStep(quiet_seconds=1.2, timeout=15)
    return [
        *(steps.HearStep(300), listen),
        *(question, steps.HearStep(2000)),
        *(question, listen),
        steps.WaitStep(SECONDS_BEFORE_DROP + 4.0),
        *(question, listen),
        steps.HangUpStep(),
    ]


SHORT_SCRIPT: steps.Script = (steps.HearStep(300, timeout=20), steps.HangUpStep())
"""For a mock: does the caller hear the greeting?"""


@dataclass(slots=True)
class Call:
    """One call through a gateway, and what passed on both of its sides."""

    gateway: Gateway
    record: CallRecord
    sessions: list[ModelSession]
    tap: Tap
    log: list[Json]
    sent: list[Json] = field(default_factory=list)
    """Events of the first session at the model, up to its loss."""
    received: list[Json] = field(default_factory=list)
    tapped_bytes: tuple[int, int] = (0, 0)
    """Of the first connection at the bridge: client and server, up to the loss."""


class Script:
    """The turns of the model in order, over all of its sessions."""

    def __init__(self) -> None:
        self.begun = 0

    def answer(self, context: TurnContext) -> Turn:
        self.begun += 1
        return TURNS[min(self.begun, len(TURNS)) - 1]


async def place_call(gateway: Gateway, folder: Path, files: Path) -> Call:
    turns = Script()
    events: dict[Direction, list[Json]] = {"sent": [], "received": []}

    def observe(session: ModelSession, direction: Direction, event: Json) -> None:
        if session is model.sessions[0]:
            events[direction].append(event)

    log = files / "bridge.log"
    behaviour = Behaviour(answer=turns.answer, user_texts=["A table on Friday?"] * 9)
    async with (
        ModelServer(behaviour, api_key=UPSTREAM_KEY, on_event=observe) as model,
        running(gateway, folder, files, model.port) as port,
        tapped(port) as tap,
    ):
        with log.open("wb") as stderr:
            async with bridge_process(
                f"ws://127.0.0.1:{tap.port}{PATH}",
                more=_settings(gateway),
                stderr=stderr.fileno(),
            ) as bridge:
                caller = Caller(
                    webhook_url=bridge.webhook_url, max_seconds=CALL_SECONDS
                )
                call = Call(gateway, CallRecord("", 0.0), model.sessions, tap, [])
                async with asyncio.TaskGroup() as tasks:
                    losing = tasks.create_task(_lose(call, turns, model, events))
                    call.record = await PlacedCall(caller).run(
                        script() if gateway.scripted else SHORT_SCRIPT
                    )
                    losing.cancel()
    call.log = read_log(log)
    return call


def _settings(gateway: Gateway) -> dict[str, str]:
    headers = [f"{name}: {value}" for name, value in gateway.headers.items()]
    return {
        "BRIDGE_INSECURE": "1",
        "BRIDGE_AGENT": f"{AGENT}:AGENT",
        "BRIDGE_GREETING": "Say hello.",
        "BRIDGE_MODEL": gateway.model,
        "BRIDGE_MODEL_HEADERS": "\n".join(headers),
        "BRIDGE_LOG": "json",
    }


async def _lose(
    call: Call,
    turns: Script,
    model: ModelServer,
    events: Mapping[Direction, list[Json]],
) -> None:
    """Drops the first session when the tool's result was spoken about."""

    def spoken() -> bool:
        return turns.begun == AFTER_TOOL and not model.sessions[0].active_response

    await until(spoken, CALL_SECONDS * 2)  # the end of the call cancels it
    await asyncio.sleep(SECONDS_BEFORE_DROP)
    call.sent, call.received = list(events["sent"]), list(events["received"])
    first = call.tap.connections[0]
    call.tapped_bytes = len(first.client), len(first.server)
    model.inject(faults.drop)


# --- judging ------------------------------------------------------------------------


def checks(call: Call) -> Iterator[tuple[str, str]]:
    """(what is checked, what was found; empty: as without a gateway)"""
    record, sessions = call.record, call.sessions
    if not sessions:
        yield "session", "the model has seen no session"
        return
    first, last = sessions[0], sessions[-1]
    errors = [it for session in sessions for it in session.errors_sent]
    yield "nothing refused", "; ".join(str(it["message"]) for it in errors)
    yield "model's name", "" if first.model == MODEL else first.model
    audio = first.session["audio"]
    formats = {audio[side]["format"]["type"] for side in ("input", "output")}
    yield "mu-law", "" if formats == {"audio/pcmu"} else f"{formats}"
    yield "caller is heard", _fault(first.caller_input.turns == 2, "turns missing")
    heard = read_ruler(record.heard)
    yield "agent is heard", _fault(bool(heard.spans) and heard.in_order, "no audio")
    yield "no gaps", _fault(not record.underruns.count, f"{record.underruns}")
    yield "truncate", _truncate_fault(first, sum(heard.heard_ms.values()))
    outputs = [it.output for it in first.items.values() if it.output]
    yield "tool", _fault(outputs == [RESULT], f"{outputs}")
    remembered = " ".join(it.text for it in last.conversation)
    resumed = len(sessions) == 2 and RESULT in remembered
    yield "lost session", _fault(resumed, f"{len(sessions)} sessions")
    yield "guardrail", _guardrail_fault(call)
    ended = f"{record.ended_by} {record.error or ''}"
    yield "whole call", _fault(record.ended_by == "caller", ended)


def _fault(good: bool, fault: str) -> str:
    return "" if good else fault


def _truncate_fault(session: ModelSession, heard_ms: float) -> str:
    cut = [it for it in session.items.values() if it.truncated_ms is not None]
    if len(cut) != 1:
        return f"{len(cut)} truncated items"
    error = abs((cut[0].truncated_ms or 0) - heard_ms)
    return _fault(error <= TRUNCATE_TOLERANCE_MS, f"{error:.0f} ms off")


def _guardrail_fault(call: Call) -> str:
    """The forbidden answer was cut, and another one followed."""
    said = [it for it in call.sessions[-1].items.values() if it.role == "assistant"]
    stopped = [it for it in said if FORBIDDEN in it.generated_text]
    if not stopped:
        return "the answer was not generated"
    cut = stopped[0].deleted or stopped[0].truncated_ms is not None
    if not cut or len(call.record.clears) != 2:
        return "the answer was not cut"
    return _fault(said[-1] is not stopped[0], "no other answer")


def changes(call: Call) -> Iterator[str]:
    """What the gateway changed, in both directions, before the session was lost."""
    client_bytes, server_bytes = call.tapped_bytes
    if not call.tap.connections:
        return
    first = call.tap.connections[0]
    del first.client[client_bytes:], first.server[server_bytes:]
    client, server = first.client_sent(), first.server_sent()
    yield from _differences(
        "to the model", map(json.loads, client.texts), call.received
    )
    yield from _differences("to the bridge", call.sent, map(json.loads, server.texts))
    for side, control in (("bridge", client.control), ("gateway", server.control)):
        if control:
            yield f"frames of the {side}: {dict(control)}"


def _differences(
    where: str, before: Iterable[Json], after: Iterable[Json]
) -> Iterator[str]:
    """Events that differ, by type. Not the caller's audio: some of it is on the way."""
    left, right = (
        Counter(
            json.dumps(it, sort_keys=True)
            for it in events
            if it["type"] != "input_audio_buffer.append"
        )
        for events in (before, after)
    )
    gone, new = _types(left - right), _types(right - left)
    for kind in sorted(gone.keys() | new.keys()):
        changed = min(gone[kind], new[kind])
        for word, count in (
            ("changed", changed),
            ("dropped", gone[kind] - changed),
            ("added", new[kind] - changed),
        ):
            if count:
                yield f"{where}: {kind} {word} ({count})"


def _types(events: Counter[str]) -> Counter[str]:
    types: Counter[str] = Counter()
    for text, count in events.items():
        types[json.loads(text)["type"]] += count
    return types


# --- handshakes ---------------------------------------------------------------------


async def probes(gateway: Gateway, folder: Path, files: Path) -> dict[str, str]:
    """What a client sees of a gateway when a session cannot be had."""
    wrong_key = {**gateway.headers, "Authorization": "Bearer wrong"}
    behaviour = Behaviour(refuse_model=[UNKNOWN_MODEL])
    seen: dict[str, str] = {}
    async with (
        ModelServer(behaviour, api_key=UPSTREAM_KEY) as model,
        running(gateway, folder, files, model.port) as port,
        asyncio.TaskGroup() as tasks,
    ):
        look = partial(_look, port, gateway.headers)
        seen["a session"] = await look(gateway.model)
        seen["subprotocol offered"] = await look(gateway.model, ["realtime"])
        seen["beta header"] = await _look(
            port, {**gateway.headers, "OpenAI-Beta": "realtime=v1"}, gateway.model
        )
        seen["wrong key"] = await _look(port, wrong_key, gateway.model)
        seen["unknown model"] = await look(UNKNOWN_MODEL)
        if not gateway.scripted:
            return seen
        for status in (401, 429, 500):
            model.handshakes.answer(status)
            seen[f"model says {status}"] = await look(gateway.model)
        model.handshakes.leave_unanswered()
        seen["model does not answer"] = await look(gateway.model)
        model.handshakes.reset()
        tasks.create_task(model.refuse_tcp(PROBE_SECONDS + 1), name="away")
        await asyncio.sleep(0.1)
        seen["model is away"] = await look(gateway.model)
    return seen


async def _look(
    port: int,
    headers: Mapping[str, str],
    model: str,
    subprotocols: list[str] | None = None,
) -> str:
    """Opens a session and says what comes in PROBE_SECONDS."""
    seen: list[str] = []
    began = monotonic()
    try:
        async with (
            asyncio.timeout(PROBE_SECONDS),
            connect(
                f"ws://127.0.0.1:{port}{PATH}?model={model}",
                additional_headers=headers,
                subprotocols=subprotocols,  # type: ignore[arg-type]
                compression=None,
                open_timeout=None,
            ) as socket,
        ):
            seen.append("101" + (f" {it}" if (it := socket.subprotocol) else ""))
            while True:
                event = json.loads(await socket.recv())
                error = event["type"] == "error"
                seen.append(json.dumps(event) if error else event["type"])
                if not error and model != UNKNOWN_MODEL:
                    break
    except InvalidStatus as refused:
        seen.append(f"HTTP {refused.response.status_code}")
    except ConnectionClosed as end:
        close = end.rcvd
        seen.append(
            f"close {close.code} {close.reason}" if close else "connection lost"
        )
    except TimeoutError:
        seen.append("nothing more")
    except OSError as error:
        seen.append(type(error).__name__)
    return f"{', '.join(seen)} ({monotonic() - began:.1f} s)"


# --- calls that cannot be had -------------------------------------------------------


async def failed_calls(gateway: Gateway, folder: Path, files: Path) -> dict[str, str]:
    """What the bridge makes of it: the outcome of the call in its log, and when the
    caller has heard the apology."""
    found: dict[str, str] = {}
    behaviour = Behaviour(refuse_model=[UNKNOWN_MODEL])
    async with (
        ModelServer(behaviour, api_key=UPSTREAM_KEY) as model,
        running(gateway, folder, files, model.port) as port,
    ):
        place = partial(_failed_call, gateway, port, files)
        found["unknown model"] = await place(UNKNOWN_MODEL)
        model.handshakes.answer(401, times=100)
        found["model says 401"] = await place(gateway.model)
        model.handshakes.reset()
        model.handshakes.leave_unanswered(times=100)
        found["model does not answer"] = await place(gateway.model)
    return found


async def _failed_call(gateway: Gateway, port: int, files: Path, model: str) -> str:
    log = files / "failed.log"
    with log.open("wb") as stderr:
        async with bridge_process(
            f"ws://127.0.0.1:{port}{PATH}",
            more=_settings(gateway) | {"BRIDGE_MODEL": model},
            stderr=stderr.fileno(),
        ) as bridge:
            caller = Caller(webhook_url=bridge.webhook_url, max_seconds=CALL_SECONDS)
            record = await caller.call([steps.WaitStep(CALL_SECONDS)])
    return outcome(record, read_log(log))


def outcome(record: CallRecord, log: list[Json]) -> str:
    """How a call ended, by the bridge's log and by what Twilio said."""
    ended = [str(it["outcome"]) for it in log if it["event"] == "call_ended"]
    seconds = (record.ended_at or 0.0) - (record.answered_at or record.started_at)
    apology = "an" if record.said_by_twilio else "no"
    return f"{''.join(ended)}, {apology} apology, ended after {seconds:.1f} s"


def read_log(file: Path) -> list[Json]:
    lines = file.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


# --- the report ---------------------------------------------------------------------


async def report(gateway: Gateway, folder: Path) -> dict[str, str]:
    """Prints what a gateway changes; returns the results of the checks."""
    print(f"\n{gateway.name} (BRIDGE_MODEL={gateway.model})", flush=True)
    with tempfile.TemporaryDirectory() as made:
        files = Path(made)
        call = await place_call(gateway, folder, files)
        seen = await probes(gateway, folder, files)
        failed = await failed_calls(gateway, folder, files) if gateway.scripted else {}
    results = dict(checks(call)) if gateway.scripted else {}
    for name, fault in results.items():
        if fault:
            print(f"  {name}: {fault}")
    for change in changes(call):
        print(f"  {change}")
    events = [it for it in call.log if it.get("level") in ("warning", "error")]
    print(f"  log of the bridge: {', '.join(str(it['event']) for it in events)}")
    print(f"  the call: {outcome(call.record, call.log)}")
    for name, found in seen.items():
        print(f"  client, {name}: {found}")
    for name, found in failed.items():
        print(f"  call, {name}: {found}")
    return results


def print_table(results: Mapping[str, Mapping[str, str]]) -> None:
    """One line for each check, one column for each gateway."""
    print("\n" + " " * 18 + "".join(f"{name:15}" for name in results))
    checked = dict.fromkeys(name for column in results.values() for name in column)
    for check in checked:
        cells = ("FAILED" if column.get(check) else "ok" for column in results.values())
        print(f"{check:18}" + "".join(f"{cell:15}" for cell in cells))


async def main(folder: Path, only: list[str]) -> int:
    chosen = [it for it in GATEWAYS if not only or it.name in only]
    results = {it.name: await report(it, folder) for it in chosen}
    print_table({name: column for name, column in results.items() if column})
    return 1 if any(any(column.values()) for column in results.values()) else 0


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--install", action="store_true")
    options.add_argument("--only", action="append", default=[])
    given = options.parse_args()
    if given.install:
        install(given.folder.resolve())
    else:
        sys.exit(asyncio.run(main(given.folder.resolve(), given.only)))
