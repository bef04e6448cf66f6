"""What BRIDGE_RECORD and a route keep of a call, over real sockets."""

import json
import os
import re
import wave
from io import BytesIO
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.agent.live import LiveCall
from bridge.app.routes import Route
from bridge.audio import g711
from bridge.picture import reading, recording
from bridge.privacy.redaction import Redaction
from bridge.records import recorder
from bridge.sim.model import Behaviour, PlayRuler, SayText
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallRecord
from tests.e2e.bridge import HELLO, WAIT, RunningBridge, bridge
from tests.support.traces import text_of
from tests.support.waiting import until

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=10)
TALK = [
    steps.SayStep(HELLO),
    steps.HearStep(900),
    steps.SayStep(WAIT),
    LISTEN,
    steps.HangUpStep(),
]


ALL = ("trace.jsonl.zst", "call.wav", "call.html", "call.json")


def interrupted() -> Behaviour:
    return Behaviour(turns=[[PlayRuler(6000)], [PlayRuler(700)]])


async def talk(place: RunningBridge) -> CallRecord:
    record = await place.caller().call(TALK)
    await place.empty()
    return record


async def only(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Waits until the folder has these files of one call and no others. A busy machine
    runs a process of the lowest priority late, so the bridge must not be closed."""
    await until(lambda: kept(folder).keys() == {*suffixes}, seconds=240)
    return kept(folder)


def kept(folder: Path) -> dict[str, Path]:
    """Suffix -> file, of the one call that is kept."""
    found = {it.name.partition(".")[2].partition(".")[2]: it for it in folder.iterdir()}
    return found


async def test_audio_alone_is_the_recording_of_what_was_heard(tmp_path: Path) -> None:
    """The WAV is that of `bridge show --wav`, with the interruption where the caller
    heard it. The trace that it was made from is gone."""
    calls, copy = tmp_path / "calls", tmp_path / "copy.trace.jsonl.zst"

    async def keep_a_link(live: LiveCall) -> None:
        # The writer's thread makes the file.
        await until(lambda: calls.exists() and any(calls.iterdir()))
        [trace] = calls.iterdir()
        os.link(trace, copy)

    async with bridge(
        interrupted(),
        record_dir=calls,
        record=frozenset({"audio"}),
        route=Route(on_call="linked"),
        functions={"linked": keep_a_link},
    ) as place:
        record = await talk(place)
        files = await only(calls, "call.wav")

    written = files["call.wav"].read_bytes()
    view = reading.view(copy)
    assert written == recording.stereo_wav(view)
    assert files["call.wav"].stat().st_mode & 0o777 == 0o600
    # The truth: the caller's own recording.
    truth = read_ruler(record.heard_timeline()).heard_ms
    heard = read_ruler(view.agent).heard_ms
    assert heard.keys() == truth.keys()
    assert all(abs(heard[it] - ms) <= 40 for it, ms in truth.items())


async def test_everything_is_kept_if_it_is_wanted(tmp_path: Path) -> None:
    """The report says what was heard, and all files are private."""
    route = Route(record=frozenset({"trace", "audio", "page", "report"}))
    async with bridge(interrupted(), record_dir=tmp_path, route=route) as place:
        record = await talk(place)
        files = await only(tmp_path, *ALL)

    report = json.loads(files["call.json"].read_bytes())
    assert report["call_sid"] == record.call_sid
    assert [it["cut"] for it in report["transcript"] if it["who"] == "agent"] == [
        True,
        False,
    ]
    assert files["call.html"].read_text().startswith("<!doctype html>")
    assert {it.stat().st_mode & 0o777 for it in files.values()} == {0o600}


async def test_a_route_with_off_leaves_nothing(tmp_path: Path) -> None:
    """Not even the folder."""
    calls = tmp_path / "calls"
    route = Route(record=frozenset())
    everything = frozenset({"trace", "audio", "page", "report"})
    async with bridge(
        interrupted(), record_dir=calls, record=everything, route=route
    ) as place:
        await talk(place)
        assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1

    assert not calls.exists()


async def test_a_line_that_broke_has_one_recording(tmp_path: Path) -> None:
    """Two streams on one instance are one trace, and its files have one name."""
    behaviour = Behaviour(turns=[[PlayRuler(3000)], [PlayRuler(900)]])
    script = [
        steps.SayStep(HELLO),
        steps.HearStep(700),
        steps.DropStep(),
        LISTEN,
        steps.HangUpStep(),
    ]
    parts = frozenset({"audio", "report"})
    async with bridge(behaviour, record_dir=tmp_path, record=parts) as place:
        record = await place.caller().call(script)
        await place.empty()
        await only(tmp_path, "call.wav", "call.json")

    assert len(record.streams) == 2
    assert len({it.name.split(".")[1] for it in tmp_path.iterdir()}) == 1


async def test_a_failed_process_is_counted_and_the_call_does_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names the call and nothing else."""
    monkeypatch.setattr(recorder.sys, "executable", "/bin/false")
    with capture_logs() as logs:
        async with bridge(
            interrupted(), record_dir=tmp_path, record=frozenset({"page"})
        ) as place:
            record = await talk(place)
            await until(lambda: place.metric("bridge_records_failed_total"))

    [line] = [it for it in logs if it["event"] == "record_failed"]
    assert line == {
        "event": "record_failed",
        "log_level": "error",
        "call_sid": record.call_sid,
        "why": "bridge show ended with 1",
    }
    assert kept(tmp_path).keys() == {"trace.jsonl.zst"}


VISA = "4111 1111 1111 1111"


async def test_no_file_has_what_a_route_redacts(tmp_path: Path) -> None:
    """Neither the words nor the keys, and the WAV is silent: a number is also
    spoken."""
    behaviour = Behaviour(
        turns=[[SayText(f"I heard {VISA}.")], [SayText("Thank you.")]],
        user_texts=[f"My card is {VISA}."],
    )
    route = Route(
        redact=Redaction(cards=True),
        record=frozenset({"trace", "audio", "page", "report"}),
    )
    script = [
        steps.SayStep(HELLO),
        LISTEN,
        steps.PressStep("4111#"),
        LISTEN,
        steps.HangUpStep(),
    ]
    async with bridge(behaviour, record_dir=tmp_path, route=route) as place:
        await place.caller().call(script)
        await place.empty()
        files = await only(tmp_path, *ALL)

    trace, page = text_of(files["trace.jsonl.zst"]), files["call.html"].read_text()
    for text in (trace, page, files["call.json"].read_text()):
        assert "[card number]" in text
        assert not re.search(r"4111[ ,.-]*1111", text)
        assert not re.search(r'digit[\\": ]+[0-9#]', text)
        assert "phone: 4111" not in text
    with wave.open(BytesIO(files["call.wav"].read_bytes())) as file:
        sound = file.readframes(file.getnframes())
    assert len(sound) > 4 * 8000
    assert set(sound) == set(g711.linear(b"\xff"))
