"""`bridge demo`: the real server and one call, with the fakes at both ends.

Real sockets, a signed webhook and handshake, real time. Compares what the bridge
believes was heard with what the fake caller knows it heard.
"""

import asyncio
import json
import secrets
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.agent.loader import AgentSource
from bridge.server import serving
from bridge.settings import Settings
from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import ModelServer, ModelSession
from bridge.sim.scenario import Scenario
from bridge.sim.twilio.network import Network
from bridge.sim.voice import voice_available
from bridge.watch import trace

NETWORK = Network(up_ms=60, down_ms=60, jitter_ms=30, seed=1)
"""Twilio's media edge to a server on the same continent."""

PUBLIC_URL = "https://bridge.example"
"""What Twilio signs; the fake caller connects to this machine for it."""

BYTES_PER_MS = 8

MAX_ERROR_MS = 40
"""As `bridge sim accuracy`."""


class DemoFailed(Exception):
    """No call came about; the message says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance, on the clock of the call (seconds from its first sound)."""

    at: float
    who: str
    text: str
    heard_text: str = ""
    generated_ms: int = 0
    heard_ms: float = 0.0
    """The truth: what of it the fake caller played."""
    believed_ms: float = 0.0
    """What the model believes was heard of it."""

    @property
    def cut(self) -> bool:
        return self.who != "caller" and self.heard_ms < self.generated_ms - 1


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo call left behind."""

    record: CallRecord
    session: ModelSession
    said: list[Said]
    wav: Path
    trace: Path
    report: Path


def run(source: AgentSource, scenario: Scenario, folder: Path) -> Demo:
    """Places the call. Leaves a WAV, the trace and the report in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    record, session = asyncio.run(_place(source, scenario, folder))
    wav = folder / f"{record.call_sid}.wav"
    record.write_wav(wav)
    [trace_file] = folder.glob(f"{record.call_sid}.*.trace.jsonl")
    said = [*_caller_said(record, session), *_agent_said(record, session, trace_file)]
    said.sort(key=lambda it: it.at)
    report = folder / f"{record.call_sid}.txt"
    demo = Demo(record, session, said, wav, trace_file, report)
    with report.open("w") as file:
        show(demo, Console(file=file, width=100))
    return demo


async def _place(
    source: AgentSource, scenario: Scenario, folder: Path
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
        ModelServer(scenario.behaviour()) as model,
        serving(settings, source, model.url) as server,
    ):
        caller = Caller(
            webhook_url=f"http://127.0.0.1:{server.port}/voice",
            auth_token=token,
            signed_origin=PUBLIC_URL,
            network=NETWORK,
        )
        record = await caller.call(scenario.script())
    if record.error or not model.sessions:
        raise DemoFailed(record.error or "the bridge opened no session")
    return record, model.sessions[0]


def show(demo: Demo, console: Console) -> None:
    """The report, for a person."""
    console.print()
    console.print(_lines(demo))
    if any(said.cut for said in demo.said):
        console.print(
            "[red]✂[/] the caller spoke; what stands behind it was never heard"
        )
    console.print()
    console.print(_interruptions(demo))
    console.print(_delays(demo))
    errors = demo.session.errors_sent
    ended = f"was ended by the {demo.record.ended_by}"
    console.print(
        f"The call {ended}; {len(errors)} errors of the model, "
        f"{len(demo.record.warnings)} warnings of Twilio, "
        f"{demo.record.underruns.count} gaps in the agent's speech."
    )
    if not voice_available():
        console.print("No espeak-ng here, so both speak in tones (extra `voice`).")
    console.print()
    for what, path in (
        ("Listen", demo.wav),  # left the caller, right the agent
        ("Trace ", demo.trace),
        ("Report", demo.report),
    ):
        console.print(f"{what}  {path}", soft_wrap=True, highlight=False)
    console.print(
        "\nIn the WAV the caller is on the left, the agent on the right. With your own "
        "agent: [bold].venv/bin/bridge demo --agent yours.py:agent[/]"
    )


def failures(demo: Demo) -> list[str]:
    """What a demo must not show; empty when all is well."""
    found = [
        f"the model believes {said.believed_ms:.0f} ms were heard of what was heard "
        f"for {said.heard_ms:.0f} ms"
        for said in demo.said
        if abs(said.believed_ms - said.heard_ms) > MAX_ERROR_MS
    ]
    if not any(said.who != "caller" for said in demo.said):
        found.append("the agent said nothing")
    found += [f"Twilio had to say: {text}" for text in demo.record.said_by_twilio]
    found += [str(error) for error in demo.session.errors_sent]
    found += [str(warning) for warning in demo.record.warnings]
    return found + [f"waited in vain: {step}" for step in demo.record.timed_out]


def _caller_said(record: CallRecord, session: ModelSession) -> Iterator[Said]:
    texts = [item.text for item in session.items.values() if item.role == "user"]
    for spoken, text in zip(record.spoken, texts, strict=False):
        yield Said(spoken.started_at - _zero(record), "caller", text)


def _agent_said(
    record: CallRecord, session: ModelSession, trace_file: Path
) -> Iterator[Said]:
    """The model's items, each found again in what the caller played."""
    heard_words = {
        line["value"][1]["item"]: line["value"][2]["heard"]
        for line in trace.read(trace_file)
        if line.get("out") == "note" and line["value"][0] == "said"
    }
    who = _speakers(trace_file)
    audio = record.heard
    position = 0
    for item in session.items.values():
        if item.role != "assistant" or not item.sent_bytes:
            continue
        heard = _common_prefix(audio[position:], b"".join(item.chunks))
        at = _time_of(record, position)
        position += heard
        yield Said(
            at=at - _zero(record),
            who=who.get(item.response_id or "", "agent"),
            text=item.generated_text,
            heard_text=heard_words.get(item.id, ""),
            generated_ms=item.sent_bytes // BYTES_PER_MS,
            heard_ms=heard / BYTES_PER_MS,
            believed_ms=item.believed_ms,
        )


def _speakers(trace_file: Path) -> dict[str, str]:
    """Which agent gave which answer, from the handoffs in the trace."""
    speaker = "agent"
    speakers: dict[str, str] = {}
    for line in trace.read(trace_file):
        if line.get("out") == "session" and line["value"][0] == "handoff":
            speaker = line["value"][1]["to"]
        elif line.get("in") == "model" and '"response.created"' in line["value"]:
            event = json.loads(line["value"])
            speakers[event["response"]["id"]] = speaker
    return speakers


def _common_prefix(heard: bytes, generated: bytes) -> int:
    """How much of an item was played: playing is cut at its end, never within."""
    most = min(len(heard), len(generated))
    if heard[:most] == generated[:most]:
        return most
    return next(i for i in range(most) if heard[i] != generated[i])


def _zero(record: CallRecord) -> float:
    assert record.stream_at is not None, "a call without a stream has no report"
    return record.stream_at


def _time_of(record: CallRecord, position: int) -> float:
    """When that byte of the heard audio sounded."""
    for run in record.runs():
        if position < len(run.audio):
            return run.start + position / BYTES_PER_MS / 1000
        position -= len(run.audio)
    return record.ended_at or 0.0


def _lines(demo: Demo) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for said in demo.said:
        clock = f"{int(said.at) // 60}:{said.at % 60:04.1f}"
        style = "cyan" if said.who == "caller" else "green"
        text = Text(said.text or "(words unknown)")
        if said.cut:
            unheard = said.text[len(said.heard_text) :]
            text = Text.assemble(said.heard_text, (" ✂", "red"), (unheard, "dim"))
        table.add_row(clock, Text(said.who, style=style), text)
    return table


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


def _delays(demo: Demo) -> Table:
    """What the caller waits for, over the network of the demo."""
    record = demo.record
    answers = [
        began - spoken.ended_at
        for spoken in record.spoken
        if (began := _next_sound(record, spoken.ended_at)) is not None
    ]
    stops = [
        clear.at - spoken.started_at
        for clear in record.clears
        for spoken in record.spoken
        if spoken.started_at <= clear.at <= spoken.ended_at
    ]
    table = Table(title="Delays", title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if record.first_heard_at:
        greeted = record.first_heard_at - _zero(record)
        table.add_row("answered, then greeted", _seconds(greeted))
    if answers:
        answered = statistics.median(answers)
        table.add_row("caller silent, then an answer", _seconds(answered))
    if stops:
        stopped = statistics.median(stops)
        table.add_row("caller speaks, then silence", _seconds(stopped))
    network = f"{NETWORK.up_ms:.0f}/{NETWORK.down_ms:.0f}/{NETWORK.jitter_ms:.0f} ms"
    table.add_row("network (up/down/jitter), both included", network)
    return table


def _next_sound(record: CallRecord, after: float) -> float | None:
    return next((run.start for run in record.runs() if run.start >= after), None)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"
