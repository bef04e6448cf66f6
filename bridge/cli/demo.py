"""`bridge demo`: the real server and one call, with a fake at each end.

Uses real sockets, a signed webhook and handshake, and real time. Compares what the
model believes was heard with what the fake caller really heard.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import set_tracing_disabled
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bridge.app.settings import Settings
from bridge.app.startup import UserCode
from bridge.cli.call_page import HANDOFF, Did, Said, show_delays, show_lines
from bridge.cli.heard_call import experienced_delays
from bridge.http.server import serving
from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import ModelServer, ModelSession
from bridge.sim.played_items import find_items
from bridge.sim.scenario import Scenario
from bridge.sim.text_model import TextModel
from bridge.sim.twilio.network import Network
from bridge.sim.voice import voice_available
from bridge.telemetry import trace

NETWORK = Network(up_ms=60, down_ms=60, jitter_ms=30, seed=1)
"""Delays between Twilio's media edge and a server on the same continent."""

PUBLIC_URL = "https://bridge.example"
"""The origin that the fake caller signs for; it connects to this machine instead."""

KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
"""Variables with which the SDK's `Runner.run` finds its model."""

BYTES_PER_MS = 8

MAX_ERROR_MS = 40
"""The same limit as in `bridge sim accuracy`."""


class DemoFailed(Exception):
    """The call could not be placed; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """One utterance. `at`: seconds from the start of the call's stream."""

    at: float
    who: str
    text: str
    heard_text: str = ""
    generated_ms: int = 0
    heard_ms: float = 0.0
    """What the fake caller really played."""
    believed_ms: float = 0.0
    """What the model believes was heard."""

    @property
    def cut(self) -> bool:
        return self.who != "caller" and self.heard_ms < self.generated_ms - 1

    @property
    def line(self) -> Said:
        return Said(self.at, self.who, self.text, self.heard_text, self.cut)


@dataclass(frozen=True, slots=True)
class Demo:
    """The results of a demo call."""

    record: CallRecord
    session: ModelSession
    said: list[SpokenTurn]
    actions: list[Did]
    wav: Path
    trace: Path
    report: Path


TO = "+15557650002"


def run(user_code: UserCode, scenario: Scenario, folder: Path, to: str = TO) -> Demo:
    """Places the call to the number `to`. Writes a WAV, the trace and the report to
    `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    record, session = asyncio.run(_place_call(user_code, scenario, folder, to))
    wav = folder / f"{record.call_sid}.wav"
    record.write_wav(wav)
    [trace_file] = folder.glob(f"{record.call_sid}.*{trace.SUFFIX}")
    said = [*_caller_said(record, session), *_agent_said(record, session, trace_file)]
    said.sort(key=lambda it: it.at)
    actions = [*_tools(record, session, trace_file), *_handoffs(record, trace_file)]
    report = folder / f"{record.call_sid}.txt"
    demo = Demo(record, session, said, actions, wav, trace_file, report)
    with report.open("w") as file:
        show(demo, Console(file=file, width=100))
    return demo


async def _place_call(
    user_code: UserCode, scenario: Scenario, folder: Path, to: str
) -> tuple[CallRecord, ModelSession]:
    token = secrets.token_hex(16)
    settings = Settings(
        host="127.0.0.1",
        port=0,
        public_url=PUBLIC_URL,
        twilio_auth_token=SecretStr(token),
        record_dir=folder,
    )
    async with (
        _text_model(),
        ModelServer(scenario.behaviour()) as model,
        serving(settings, user_code, model.url) as server,
    ):
        caller = Caller(
            webhook_url=f"http://127.0.0.1:{server.port}/voice",
            auth_token=token,
            signed_origin=PUBLIC_URL,
            network=NETWORK,
            to_number=to,
        )
        record = await caller.call(scenario.script())
    if record.error or not model.sessions:
        raise DemoFailed(record.error or "the bridge opened no session")
    return record, model.sessions[0]


@asynccontextmanager
async def _text_model() -> AsyncIterator[None]:
    """Without an API key, text agents use a fake model too, so a demo needs no
    network."""
    if os.environ.get(KEY):
        yield
        return
    async with TextModel() as model:
        before = {name: os.environ.get(name) for name in (KEY, URL)}
        os.environ.update({KEY: "sk-of-the-demo", URL: model.url})
        set_tracing_disabled(True)  # the SDK would send traces to OpenAI
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def show(demo: Demo, console: Console) -> None:
    """Prints the report."""
    console.print()
    show_lines([*(it.line for it in demo.said), *demo.actions], console)
    console.print()
    console.print(_interruptions(demo))
    show_delays(_delays(demo.record), console)
    errors = demo.session.errors_sent
    ended = f"was ended by the {demo.record.ended_by}"
    console.print(
        f"The call {ended}; {len(errors)} model errors, "
        f"{len(demo.record.warnings)} Twilio warnings, "
        f"{demo.record.underruns.count} gaps in the agent's speech."
    )
    if not voice_available():
        console.print(
            "espeak-ng is not installed (extra `voice`), so both sides speak in tones."
        )
    console.print()
    for what, path in (
        ("Listen", demo.wav),  # left the caller, right the agent
        ("Trace ", demo.trace),
        ("Report", demo.report),
    ):
        console.print(f"{what}  {path}", soft_wrap=True, highlight=False)
    console.print("\nIn the WAV the caller is on the left, the agent on the right.")
    command = f"{escape(_own_name())} demo --agent yours.py:agent"
    console.print(
        f"With your own agent: [bold]{command}[/]", soft_wrap=True, highlight=False
    )


def _own_name() -> str:
    """The command as the user typed it: `make demo` and an installed package differ."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "bridge" else "bridge"


def failures(demo: Demo) -> list[str]:
    """Errors that a demo must not show; empty if all is well."""
    found = [
        f"the model believes that {said.believed_ms:.0f} ms of an item were heard, "
        f"but {said.heard_ms:.0f} ms were"
        for said in demo.said
        if abs(said.believed_ms - said.heard_ms) > MAX_ERROR_MS
    ]
    if not any(said.who != "caller" for said in demo.said):
        found.append("the agent said nothing")
    found += [
        f"Twilio spoke in the agent's place: {text}"
        for text in demo.record.said_by_twilio
    ]
    found += [str(error) for error in demo.session.errors_sent]
    found += [str(warning) for warning in demo.record.warnings]
    return found + [
        f"the caller waited too long: {step}" for step in demo.record.timed_out
    ]


def _caller_said(record: CallRecord, session: ModelSession) -> Iterator[SpokenTurn]:
    # Without the items that were sent as text.
    heard = (it for it in session.items.values() if it.role == "user" and it.chunks)
    texts = [item.text for item in heard]
    for spoken, text in zip(record.spoken, texts, strict=False):
        yield SpokenTurn(spoken.started_at - _stream_start(record), "caller", text)


def _agent_said(
    record: CallRecord, session: ModelSession, trace_file: Path
) -> Iterator[SpokenTurn]:
    """The model's items, each located in the audio that the caller played."""
    heard_words = {
        note["data"]["item"]: note["private"]["heard"]
        for note in _trace_parts(trace_file, "out")
        if note["kind"] == "note" and note["name"] == "said"
    }
    who = _speakers(trace_file)
    items = [it for it in session.items.values() if it.role == "assistant"]
    items = [it for it in items if it.sent_bytes]
    audio = [(b"".join(it.chunks), it.deleted) for it in items]
    for item, (start, heard) in zip(
        items, find_items(record.heard, audio), strict=True
    ):
        at = _time_of(record, start)
        yield SpokenTurn(
            at=at - _stream_start(record),
            who=who.get(item.response_id or "", "agent"),
            text=item.generated_text,
            heard_text=heard_words.get(item.id, ""),
            generated_ms=item.sent_bytes // BYTES_PER_MS,
            heard_ms=heard / BYTES_PER_MS,
            believed_ms=item.believed_ms,
        )


def _speakers(trace_file: Path) -> dict[str, str]:
    """Response id -> name of the agent that gave it, from the handoffs in the trace."""
    speaker = "agent"
    speakers: dict[str, str] = {}
    for line in trace.read(trace_file):
        match line:
            case {"session": {"name": "handoff", "data": {"to": to}}}:
                speaker = to
            case {
                "in": {"event": {"type": "response.created", "response": {"id": id_}}}
            }:
                speakers[id_] = speaker
    return speakers


def _tools(
    record: CallRecord, session: ModelSession, trace_file: Path
) -> Iterator[Did]:
    """The tool calls of the model, those of hosted tools included."""
    items = list(session.items.values())
    outputs = {it.call_id: it.output for it in items if it.type.endswith("_output")}
    called_at: dict[str, float] = {}
    for line in trace.read(trace_file):
        match line:
            case {
                "at": at,
                "in": {"event": {"type": "conversation.item.added", "item": item}},
            }:
                called_at[item["id"]] = at - _stream_start(record)
    for item in items:
        at, arguments = called_at.get(item.id, 0.0), item.arguments or ""
        if item.type == "function_call" and not str(item.name).startswith(HANDOFF):
            output = outputs.get(item.call_id)
            yield Did(at, "tool", str(item.name), arguments, output)
        elif item.type == "mcp_call":
            output = str(item.error["message"]) if item.error else item.output
            name = f"{item.server_label}.{item.name}"
            yield Did(at, "tool", name, arguments, output)


def _handoffs(record: CallRecord, trace_file: Path) -> Iterator[Did]:
    for line in trace.read(trace_file):
        match line:
            case {"at": at, "session": {"name": "handoff", "data": agents}}:
                at -= _stream_start(record)
                yield Did(at, "handoff", f"{agents['agent']} -> {agents['to']}")


def _trace_parts(trace_file: Path, part: str) -> Iterator[dict[str, Any]]:
    """The inputs ("in") or the commands ("out") of a trace."""
    for line in trace.read(trace_file):
        if part in line:
            yield line[part]


def _stream_start(record: CallRecord) -> float:
    assert record.stream_at is not None, "a call without a stream has no report"
    return record.stream_at


def _time_of(record: CallRecord, position: int) -> float:
    """The time at which this byte of the heard audio was played."""
    for run in record.runs():
        if position < len(run.audio):
            return run.start + position / BYTES_PER_MS / 1000
        position -= len(run.audio)
    return record.ended_at or 0.0


def _interruptions(demo: Demo) -> Table:
    table = Table(title="Interruptions", title_justify="left", box=None)
    for column in ("at", "generated", "heard", "the model believes", "off by"):
        table.add_column(column, justify="right")
    for said in demo.said:
        if said.cut:
            table.add_row(
                f"{said.at + said.heard_ms / 1000:.1f} s",
                f"{said.generated_ms} ms",
                f"{said.heard_ms:.0f} ms",
                f"{said.believed_ms:.0f} ms",
                f"{said.believed_ms - said.heard_ms:+.0f} ms",
            )
    return table


def _delays(record: CallRecord) -> list[tuple[str, str]]:
    """Delays as the caller experiences them, over the demo's network."""
    network = f"{NETWORK.up_ms:.0f}/{NETWORK.down_ms:.0f}/{NETWORK.jitter_ms:.0f} ms"
    return [
        *experienced_delays(record),
        ("network (up/down/jitter), included in all of these", network),
    ]
