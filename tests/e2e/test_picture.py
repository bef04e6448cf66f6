"""The picture of a call, made from its trace, against what the caller recorded.

Calls over real sockets, with interruptions, a lost model and a lost line. The fake
Twilio's own recording is the truth.
"""

import asyncio
import wave
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from bridge.picture import reading, recording
from bridge.picture.problems import problems
from bridge.picture.view import CallView
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.realtime import faults
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.record import CallRecord
from tests.e2e.bridge import HELLO, WAIT, RunningBridge, bridge
from tests.support.waiting import until

CLOSE_MS = 40
"""Two frames: on a busy machine, the fake Twilio plays and answers late."""

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=10)
HANG_UP = steps.HangUpStep()
NETWORK = Network(60, 60, 30, 3)


def view_of(folder: Path) -> CallView:
    [trace] = folder.glob("*.zst")
    return reading.view(trace)


def starts_ms(audio: bytes) -> dict[tuple[int, int], float]:
    """(item, ms of the item) -> ms of the recording, of each 100 ms of the ruler."""
    found: dict[tuple[int, int], float] = {}
    at = 0
    for span in read_ruler(audio).spans:
        first = audio.find(span_bytes(audio, span.item, at), at)
        found[span.item, span.start // 8] = first / 8
        at = first + span.end - span.start
    return found


def span_bytes(audio: bytes, item: int, at: int) -> bytes:
    """The first bytes behind `at` that are no silence: a span begins with them."""
    begin = next(n for n in range(at, len(audio)) if audio[n] != 0xFF)
    return audio[begin : begin + 8]


def assert_same_recording(view: CallView, record: CallRecord) -> None:
    """The same bytes of each item, and each where the caller heard it."""
    ours, theirs = read_ruler(view.agent), read_ruler(record.heard_timeline())
    assert ours.stray == 0
    heard, truth = ours.heard_ms, theirs.heard_ms
    assert heard.keys() == truth.keys()
    for item, ms in truth.items():
        assert abs(heard[item] - ms) <= CLOSE_MS, (item, heard[item], ms)
    placed, true_places = starts_ms(view.agent), starts_ms(record.heard_timeline())
    for place, ms in true_places.items():
        assert place in placed
        assert abs(placed[place] - ms) <= CLOSE_MS, (place, placed[place], ms)


async def test_the_recording_is_what_the_caller_heard(tmp_path: Path) -> None:
    """Two interruptions over a network with jitter: the cut positions of the picture
    are the heard ones, and the recording is the caller's own."""
    behaviour = Behaviour(
        turns=[[PlayRuler(6000)], [PlayRuler(5000)], [PlayRuler(700)]]
    )
    async with bridge(behaviour, record_dir=tmp_path) as place:
        record = await place.caller(network=NETWORK).call(
            [
                steps.SayStep(HELLO),
                steps.HearStep(900),
                steps.SayStep(WAIT),
                steps.HearStep(700),
                steps.SayStep(WAIT),
                LISTEN,
                HANG_UP,
            ]
        )
        await place.empty()

    view = view_of(tmp_path)
    truth = read_ruler(record.heard).heard_ms
    assert [part.cut for part in view.parts] == [True, True, False]
    for part, heard in zip(view.parts, truth.values(), strict=True):
        assert abs(part.heard_ms - heard) <= CLOSE_MS
    assert_same_recording(view, record)

    # The model was told what the picture shows.
    items = place.session.items
    for part in view.parts:
        assert part.generated_ms == items[part.item].sent_ms
    for part in view.parts[:2]:
        told = items[part.item].truncated_ms
        assert told is not None and abs(told - part.heard_ms) <= 1
    assert not view.gaps and view.replays_as_recorded
    assert (view.ended_by, view.ended_why) == ("caller", "hung_up")


async def test_the_caller_s_side_is_whole(tmp_path: Path) -> None:
    """Left is the caller, to the sample; the WAV has both sides, of the same length."""
    async with bridge(
        Behaviour(turns=[[PlayRuler(600)]]), record_dir=tmp_path
    ) as place:
        record = await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])
        await place.empty()

    view = view_of(tmp_path)
    [spoken] = record.spoken
    begin = round(spoken.start * 8000)
    assert view.caller[begin : begin + len(HELLO)] == HELLO
    with wave.open(BytesIO(recording.stereo_wav(view))) as file:
        assert file.getnchannels() == 2 and file.getframerate() == 8000
        assert file.getnframes() == len(view.caller) == len(view.agent)


async def _lose_the_model(place: RunningBridge) -> None:
    await until(lambda: bool(place.model.sessions) and _sent_ms(place) > 900)
    place.model.inject(faults.drop)


def _sent_ms(place: RunningBridge) -> float:
    return sum(it.sent_ms for it in place.session.items.values())


async def test_a_lost_model_is_in_the_picture(tmp_path: Path) -> None:
    """The gap, what the caller heard around it, and the problem in plain words."""
    behaviour = Behaviour(turns=[[PlayRuler(4000)], [PlayRuler(700)]], speed=2.0)
    async with bridge(behaviour, record_dir=tmp_path) as place:
        async with asyncio.TaskGroup() as tasks:
            script = [steps.SayStep(HELLO), LISTEN, HANG_UP]
            call = tasks.create_task(place.caller(network=NETWORK).call(script))
            await _lose_the_model(place)
        await place.empty()

    view = view_of(tmp_path)
    [gap] = view.gaps
    assert gap.kind == "model" and gap.end_ms is not None
    assert_same_recording(view, call.result())
    [problem] = [it for it in problems(view) if "lost" in it.title]
    assert problem.title.startswith("The connection to the model was lost at 0:0")


async def test_a_lost_line_is_in_the_picture(tmp_path: Path) -> None:
    """Two streams on one time axis: the second is where the caller heard it."""
    behaviour = Behaviour(turns=[[PlayRuler(3000)], [PlayRuler(900)]])
    async with bridge(behaviour, record_dir=tmp_path) as place:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(700),
            steps.DropStep(),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    assert len(record.streams) == 2
    view = view_of(tmp_path)
    [gap] = view.gaps
    assert gap.kind == "stream" and gap.end_ms is not None
    away = record.streams[1].began_at - record.streams[0].began_at
    [first, second] = [it.at_ms for it in view.events if it.kind == "stream"]
    assert abs(second - first - 1000 * away) < 100
    assert_same_recording(view, record)
    assert [it.title for it in problems(view) if "stream" in it.title]


def test_starts_are_found_in_order() -> None:
    """The measure itself: a ruler behind 50 ms of silence."""
    from bridge.sim.ruler import ruler

    audio = b"\xff" * 400 + ruler(1, 100) + b"\xff" * 80 + ruler(2, 50)
    found = starts_ms(audio)

    assert found == {(1, 0): 50.0, (2, 0): 160.0}
    assert all(a < b for a, b in pairwise(found.values()))
