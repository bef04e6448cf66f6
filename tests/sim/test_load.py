"""`bridge sim load`: any server can be loaded, and its figures are its own."""

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli.commands import app
from bridge.sim.load import LoadPlan, LoadTarget, measure
from bridge.sim.load_burst import Burst
from bridge.sim.load_delays import Delays, delays, down_delays, up_delays
from bridge.sim.load_page import page
from bridge.sim.load_report import WORTHLESS, Lateness, LoadReport, as_json, rows
from bridge.sim.model import Behaviour, ModelServer, ModelSession, PlayRuler
from bridge.sim.ports import free_port
from bridge.sim.realtime.items import ModelItem
from bridge.sim.ruler import ruler
from bridge.sim.server_process import ProcessTree, bridge_process
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallerSpeech, CallRecord
from tests.bench.ratio import relay_process
from tests.support.waiting import until

pytestmark = pytest.mark.slow

SILENT_FRAME = b"\xff" * 160


async def loaded(**target: str) -> LoadReport:
    """Two calls on the bare relay, which has no code of the bridge."""
    behaviour = Behaviour(fallback=[PlayRuler(2000)], think_seconds=0.05)
    async with (
        ModelServer(behaviour, record_appends=True) as model,
        relay_process(model.url, uvloop=False) as relay,
    ):
        given = target or {"webhook_url": relay.webhook_url}
        if "stream_url" in given:
            origin = relay.webhook_url.removesuffix("/voice")
            given["stream_url"] = origin.replace("http", "ws") + "/media"
        return await measure(
            LoadTarget(name="relay", pid=relay.pid, **given),
            model,
            LoadPlan(calls=2, seconds=3, ramp_seconds=0.2),
        )


async def test_a_server_that_is_not_the_bridge_is_loaded_by_its_webhook() -> None:
    """Without this, nobody could tell whether the bridge or the machine is slow."""
    report = await loaded()
    assert report.failed == []
    assert (report.answers, report.lost_or_repeated_bytes) == (2, 0)
    assert report.caller_to_model.count > 2 * 6 * 50
    assert report.model_to_caller.count == 2 * 10  # 2 s in deltas of 200 ms
    assert report.cost.cpu_ms_per_call_second is not None
    assert report.cost.memory_before_mb and report.cost.memory_full_mb


async def test_a_media_websocket_without_a_webhook_is_loaded_by_its_url() -> None:
    report = await loaded(stream_url="")
    assert report.failed == []
    assert report.answers == 2


def test_a_load_on_a_foreign_server_by_the_command(tmp_path: Path) -> None:
    """The model listens where the server expects it, and both files are written."""
    port = free_port()
    relay = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.bench.relay"),
            *("--model-url", f"ws://127.0.0.1:{port}/v1/realtime"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert relay.stdout is not None
        webhook = relay.stdout.readline().split()[0]
        figures, plots = tmp_path / "load.json", tmp_path / "load.html"
        result = CliRunner().invoke(
            app,
            [
                *("sim", "load", "--calls", "1", "--seconds", "5", "--ramp", "0"),
                *("--webhook", webhook, "--model-port", str(port)),
                *("--pid", str(relay.pid), "--barge-in-every", "0"),
                *("--json", str(figures), "--html", str(plots)),
            ],
        )
    finally:
        relay.terminate()
        relay.wait()
        if relay.stdout is not None:
            relay.stdout.close()
    assert result.exit_code in (0, WORTHLESS), result.output
    written = json.loads(figures.read_text())
    assert written["failed"] == [] and written["answers"] == 1
    assert written["cost"]["memory_before_mb"] > 10
    html = plots.read_text()
    assert "<svg" in html and "<script" not in html
    assert not [it for it in ("src=", "href=", "url(", "@import") if it in html]


# --- a burst ------------------------------------------------------------------------


async def test_the_calls_of_a_burst_are_measured_apart_from_the_others() -> None:
    """Whether new calls hurt those that run can be seen only if both are counted for
    themselves."""
    behaviour = Behaviour(fallback=[PlayRuler(2000)], think_seconds=0.05)
    plan = LoadPlan(
        calls=1,
        seconds=4.5,
        ramp_seconds=0.1,
        settle_seconds=0.2,
        burst=Burst.parse("4x1x2"),
    )
    async with (
        ModelServer(behaviour, record_appends=True) as model,
        relay_process(model.url, uvloop=False) as relay,
    ):
        target = LoadTarget(name="r", webhook_url=relay.webhook_url, pid=relay.pid)
        report = await measure(target, model, plan)
    burst = report.burst
    assert burst is not None
    assert (report.failed, burst.failed) == ([], [])
    assert (report.calls, burst.calls, report.answers) == (1, 4, 1)
    # Of 100 frames, those of the first second are left out, unless the fakes are late.
    assert 0 < burst.caller_to_model.count < 4 * 75
    assert burst.setup.count == 4
    assert 0 < burst.others_caller_to_model.count <= 160 + 10
    assert burst.others_caller_to_model.count < report.caller_to_model.count
    assert report.cost.cpu_ms_per_call_second is not None
    assert burst.cpu_ms_per_call is not None
    assert "Delays of the burst" in page(report)
    assert json.loads(as_json(report))["burst"]["calls"] == 4
    assert dict(rows(report))["burst"].startswith("4 calls: 4 a second for 1 s")


async def test_a_refused_call_of_a_burst_is_no_failure_of_the_others() -> None:
    """A full server refuses new calls; those that run are not hurt by that."""
    async with (
        ModelServer(record_appends=True) as model,
        bridge_process(model.url, max_calls=1) as bridge,
    ):
        target = LoadTarget(name="bridge", webhook_url=bridge.webhook_url)
        plan = LoadPlan(
            calls=1, seconds=4, ramp_seconds=0.1, burst=Burst.parse("2x1x1")
        )
        report = await measure(target, model, plan)
    assert report.failed == [] and report.burst is not None
    assert {it.split(":")[0] for it in report.burst.failed} == {"call 2", "call 3"}
    assert set(report.burst.failed) <= set(report.broken)


def test_the_command_has_room_for_the_burst_and_a_model_with_tls(
    tmp_path: Path,
) -> None:
    """Its own bridge has a BRIDGE_MAX_CALLS for all calls, and trusts the model."""
    figures = tmp_path / "load.json"
    result = CliRunner().invoke(
        app,
        [
            *("sim", "load", "--calls", "1", "--seconds", "5", "--ramp", "0"),
            *("--burst", "3x1x1", "--json", str(figures)),
            *(["--tls"] if shutil.which("openssl") else []),
        ],
    )
    assert result.exit_code in (0, WORTHLESS), result.output
    written = json.loads(figures.read_text())
    assert (written["failed"], written["burst"]["failed"]) == ([], [])
    assert written["burst"]["setup"]["count"] == 3


@pytest.mark.parametrize("text", ["50x10", "50x10x2s", "0x10x2", "5x5x0", "-1x1x1"])
def test_a_burst_that_cannot_be_read_is_a_mistake(text: str) -> None:
    """Not a load without a burst, whose report looks good."""
    result = CliRunner().invoke(app, ["sim", "load", f"--burst={text}"])
    assert result.exit_code == 1 and text in result.output
    assert "such as 50x10x2" in result.output


def test_a_burst_that_is_longer_than_the_load_is_a_mistake() -> None:
    words = ["sim", "load", "--seconds", "12", "--burst", "50x10x2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "needs a load of 13 s at least" in result.output


# --- the verdict --------------------------------------------------------------------


async def test_a_server_that_hangs_up_makes_calls_fail() -> None:
    """A load whose calls all failed must not look like a fast server."""
    async with ModelServer(record_appends=True) as model:
        target = LoadTarget(name="nothing", webhook_url="http://127.0.0.1:9/voice")
        plan = LoadPlan(calls=1, seconds=0.5, ramp_seconds=0)
        report = await measure(target, model, plan)
    assert any("11205" in text for text in report.failed)
    assert any("the model got none" in text for text in report.broken)


@pytest.mark.parametrize(
    ("late", "worthless"),
    [
        (Delays(1000, 0.1, 4.9, 99.0), False),
        (Delays(1000, 0.1, 5.1, 9.0), True),
        (Delays(1000, 0.1, 1.0, 101.0), True),
    ],
)
async def test_a_result_of_late_fakes_says_that_it_is_worthless(
    late: Delays, worthless: bool
) -> None:
    """The delays of a busy machine must not be published as those of the bridge."""
    async with ModelServer(record_appends=True) as model:
        target = LoadTarget(name="<nothing>", webhook_url="http://127.0.0.1:9/voice")
        plan = LoadPlan(calls=1, seconds=0.1, ramp_seconds=0)
        report = await measure(target, model, plan)
    in_time = Delays(1000, 0.1, 0.2, 0.3)
    for fakes in (Lateness(late, in_time, 1.0), Lateness(in_time, late, 1.0)):
        judged = replace(report, fakes=fakes)
        assert bool(judged.worthless) == worthless
        assert ("worthless" in page(judged)) == worthless
    assert "&lt;nothing&gt;" in page(report)


# --- the workload -------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 50])
def test_every_call_lasts_until_the_end_of_the_load(number: int) -> None:
    """Otherwise the last seconds would be measured with fewer calls."""
    plan = LoadPlan(calls=50, seconds=40, ramp_seconds=10)
    script = plan.script(number)
    seconds = sum(
        it.seconds if isinstance(it, steps.WaitStep) else 1.0 for it in script[:-1]
    )
    end = plan.starts_at(number) + seconds
    assert 50 <= end <= 58
    waits = [it.seconds for it in script if isinstance(it, steps.WaitStep)]
    assert set(waits) == {3.0, 7.0}
    assert waits[-1] == 7.0  # the last answer is heard to its end


# --- the delays ---------------------------------------------------------------------


def a_session(deltas: list[tuple[float, str, bytes]]) -> ModelSession:
    """What the delays read of a session."""
    session = object.__new__(ModelSession)

    class Out:
        pass

    class Input:
        pass

    class History:
        pass

    session.out = Out()  # type: ignore[assignment]
    session.out.deltas = deltas
    session.caller_input = Input()  # type: ignore[assignment]
    session.history = History()  # type: ignore[assignment]
    session.history.items = {
        f"item_{n}": ModelItem(f"item_{n}", "message", ruler_number=n) for n in (1, 2)
    }
    return session


def test_a_delta_that_is_cut_in_pieces_is_late_by_its_last_piece() -> None:
    first, second = ruler(1, 200), ruler(2, 200)
    session = a_session([(1.0, "item_1", first), (2.0, "item_2", second)])
    pieces = [(1.001, first[:500]), (1.005, first[500:]), (2.002, second)]
    record = CallRecord("CA", 0.0)
    record.media_in = [(at, len(audio)) for at, audio in pieces]
    record.media_heads = [audio[:16] for _, audio in pieces]
    found = [round(ms, 3) for _, ms in down_delays(record, session)]
    assert found == [5.0, 2.0]


def test_a_delta_of_a_cut_answer_that_is_never_sent_has_no_delay() -> None:
    """The bridge drops it. Without the item's number, every later delta would be paired
    with the wrong message."""
    first, second = ruler(1, 200), ruler(2, 200)
    session = a_session([(1.0, "item_1", first), (2.0, "item_2", second)])
    record = CallRecord("CA", 0.0)
    record.media_in = [(2.002, len(second))]
    record.media_heads = [second[:16]]
    assert [round(ms, 3) for _, ms in down_delays(record, session)] == [2.0]


@pytest.mark.parametrize("dropped", [0, 10])
@pytest.mark.parametrize("joined", [1, 5])
def test_frames_that_are_dropped_or_joined_by_a_server_keep_their_delays(
    dropped: int, joined: int
) -> None:
    """Another server may send one append for five frames, or drop the first ones."""
    speech = ruler(7, 1000)
    frames = [SILENT_FRAME] * 60
    frames += [speech[at : at + 160] for at in range(0, 8000, 160)]
    record = CallRecord("CA", 0.0)
    record.spoken = [CallerSpeech("MZ", 1.2, 2.2, 1.2, 2.2, speech)]
    record.frame_sent_at = [0.02 * (n + 1) for n in range(len(frames))]
    session = a_session([])
    given = session.caller_input
    given.append_at, given.append_ends, given.caller_audio = [], [], bytearray()
    for n in range(dropped, len(frames), joined):
        given.caller_audio += b"".join(frames[n : n + joined])
        given.append_ends.append(len(given.caller_audio))
        given.append_at.append(record.frame_sent_at[n + joined - 1] + 0.003)
    found = delays([ms for _, ms in up_delays(record, session, 7)])
    assert found.count == 60
    assert round(found.most, 3) == 3.0 + 20 * (joined - 1)
    assert round(min(ms for _, ms in up_delays(record, session, 7)), 3) == 3.0


# --- the process tree ---------------------------------------------------------------

BUSY = """
import time
end = time.process_time() + 0.5
while time.process_time() < end: pass
"""
PARENT = """
import subprocess, sys, time
command = [sys.executable, "-c", sys.argv[1] + "time.sleep(60)"]
child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
sys.stdin.readline()
child.kill()
child.wait()
print("ended", flush=True)
time.sleep(60)
"""


async def test_the_cpu_of_a_worker_process_counts_as_that_of_the_server() -> None:
    """A server with workers would otherwise look as if it cost nothing."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, BUSY),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None
    try:
        tree = ProcessTree(parent.pid)

        def busy() -> bool:
            tree.find()
            return (tree.cpu_seconds() or 0) >= 0.5

        await until(busy)
        running = tree.memory_mb()
        # After the worker has ended, its time is that of its parent.
        parent.stdin.write(b"end\n")
        assert await parent.stdout.readline() == b"ended\n"
        assert busy()
        assert (tree.memory_mb() or 0) < (running or 0)
    finally:
        parent.kill()
        await parent.wait()


def test_a_server_whose_process_does_not_exist_has_no_cpu_and_no_memory() -> None:
    tree = ProcessTree(2**22 + 1)
    tree.find()
    assert tree.cpu_seconds() is None and tree.memory_mb() is None
