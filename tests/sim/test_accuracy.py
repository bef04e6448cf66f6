"""`bridge sim accuracy` finds wrong beliefs and accepts right ones."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect

from bridge.sim.accuracy import BridgeFactory, as_json, measure, render
from bridge.sim.belief import BeliefReport, Verdict, judge, percentile, report
from bridge.sim.realtime.input_audio_buffer import (
    InputAudioBuffer,
    VadSpeechStarted,
    VadSpeechStopped,
)
from bridge.sim.realtime.items import ModelItem, ResponseRecord
from bridge.sim.ruler import ruler
from bridge.sim.scenes import NETWORKS, SCENES, Scene, burst, hole, script
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.steps import HangUpStep, HearStep, ListenStep, SayStep, WaitStep
from tests.sim.tiny_bridge import TinyBridgeStream, tiny_bridge

# ------------------------------------------------------------------ calls made by hand


def item(number: int, sent_ms: int, truncated_ms: int | None = None) -> ModelItem:
    made = ModelItem(f"item_{number}", "message", "assistant", ruler_number=number)
    made.sent_bytes = sent_ms * 8
    made.truncated_ms = truncated_ms
    return made


def answer(*items: ModelItem, status: str = "completed") -> ResponseRecord:
    made = ResponseRecord("resp", 1, "speech", 0.0)
    made.items, made.status = list(items), status
    return made


def played(number: int, end_ms: float, start_ms: float = 0) -> bytes:
    return ruler(number, 10_000)[round(start_ms * 8) : round(end_ms * 8)]


def call(heard: bytes, *answers: ResponseRecord, errors: Sequence[str] = ()) -> Verdict:
    return judge(heard, answers, len(answers) - 1, errors)


def one_cut(believed_ms: int, heard_ms: float) -> Verdict:
    """A call of two answers; the first is cut."""
    heard = played(1, heard_ms) + played(2, 1000)
    return call(heard, answer(item(1, 6000, believed_ms)), answer(item(2, 1000)))


def broken(*verdicts: Verdict) -> str:
    return "\n".join(report(verdicts).broken)


# ------------------------------------------------------------------------ what is right


def test_a_bridge_with_right_positions_breaks_no_limit() -> None:
    """A call whose model knows to a frame what was heard breaks no limit."""
    deleted = item(3, 4000)
    deleted.deleted = True
    verdict = call(
        played(1, 1234.5) + played(2, 2000) + played(4, 1000),
        answer(item(1, 6000, 1240)),
        answer(item(2, 2000), deleted),
        answer(item(4, 1000)),
    )

    found = report([verdict])

    assert not found.broken
    assert (found.total.items, found.total.cut, found.total.unheard) == (4, 1, 1)
    assert found.total.worst == found.total.bias == pytest.approx(5.5)
    assert found.total.interrupted == 2 and found.total.while_generating == 0


def test_a_pause_that_was_interrupted_counts() -> None:
    """A caller who speaks while the model pauses has interrupted it, even if all
    audio so far had been heard."""
    cancelled = answer(item(1, 1500), status="cancelled")
    verdict = call(played(1, 1500) + played(2, 900), cancelled, answer(item(2, 900)))

    assert verdict.interrupted == verdict.while_generating == 1
    assert not verdict.faults


# ------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("believed_ms", [1059, 941])
def test_a_wrong_belief_is_found(believed_ms: int) -> None:
    """One model that is wrong by two frames, in either direction, is found among
    many good calls."""
    good = [one_cut(1000, 1000)] * 30

    found = report([*good, one_cut(believed_ms, 1000)])

    assert found.total.p95 == 0
    assert broken(*found.verdicts) == "the worst item is 59.0 ms off, above 40"
    assert found.worst(1)[0][1].believed_ms == believed_ms


def test_many_small_errors_are_found() -> None:
    """A bridge with small but permanent errors does not pass as exact."""
    text = broken(*[one_cut(1000 + 25, 1000)] * 20)

    assert text == "p95 of the cut items is 25.0 ms, above 20"


def test_items_that_were_not_cut_do_not_dilute() -> None:
    """Items heard in full, or not at all, do not prove that positions are known."""
    wrong = one_cut(1030, 1000)
    whole = call(played(1, 1000), answer(item(1, 1000)))

    assert report([wrong, *[whole] * 50]).total.p95 == pytest.approx(30)


def test_a_cut_that_the_model_was_not_told_of_is_found() -> None:
    """A model that was not told of an interruption is found, whether part of the
    item was heard or none."""
    in_part = call(
        played(1, 5990) + played(2, 500), answer(item(1, 6000)), answer(item(2, 500))
    )
    not_at_all = call(
        played(1, 10) + played(3, 500),
        answer(item(1, 10), item(2, 10)),
        answer(item(3, 500)),
    )

    assert "not told what was heard of item 1" in broken(in_part)
    assert "not told what was heard of item 2" in broken(not_at_all)


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        (played(1, 100) + played(1, 500, 120), "20.0 ms of audio lost"),
        (played(1, 500, 30), "30.0 ms of audio lost"),
        (played(1, 500) + played(1, 500, 460), "40.0 ms of audio repeated"),
        (played(1, 500, 100) + played(1, 100), "audio out of order"),
        (played(1, 500) + b"\x01" * 80, "10.0 ms of audio outside all items"),
        (played(1, 500) + played(7, 30), "30.0 ms of audio outside all items"),
    ],
)
def test_damaged_audio_is_found(heard: bytes, text: str) -> None:
    """Gaps, repetitions, jumps and noise in the agent's speech are reported."""
    assert text in broken(call(heard, answer(item(1, 500))))


def test_errors_of_the_model_are_found() -> None:
    """A bridge that causes errors of the model does not pass."""
    verdict = call(played(1, 5), answer(item(1, 5)), errors=["already shorter"])

    assert "sent an error: already shorter" in broken(verdict)


def test_a_call_without_its_interruptions_is_reported() -> None:
    """Each planned interruption that did not happen is named."""
    whole = [answer(item(n, 100)) for n in (1, 2, 3)]
    heard = played(1, 100) + played(2, 100) + played(3, 100)

    assert "not interrupted: answer 1, 2" in broken(call(heard, *whole))
    assert "nothing was measured" in broken(call(heard, *whole))
    assert "2 answers instead of 3" in broken(judge(heard, whole[:2], 2))
    assert "nothing was measured" in broken()


def test_the_last_answer_must_be_heard_to_its_end() -> None:
    """A bridge that loses the end of an answer is found."""
    verdict = call(played(1, 900), answer(item(1, 1000, 900)))

    assert "the last answer was not heard to its end" in broken(verdict)


def test_a_report_can_be_read_by_people_and_machines() -> None:
    """The terminal and the JSON file say which limit is broken, and where."""
    bad = Verdict(scene="stall", network="60/60/30", call=2, faults=("it rained",))
    found = report([bad, one_cut(1100, 1000)], late_ms=80)
    console = Console(width=200, file=io.StringIO(), record=True)

    console.print(render(found))
    shown = console.export_text()
    document = json.loads(as_json(found))

    assert "BROKEN: stall 60/60/30 call 2: it rained" in shown
    assert "believed 1100, heard 1000.0 of 6000" in shown
    assert "too busy for exact results" in shown
    assert document["broken"] == list(found.broken)
    assert document["calls"][1]["beliefs"][0]["believed_ms"] == 1100
    assert document["total"]["worst"] == 100


def test_percentiles_are_values_that_were_measured() -> None:
    """p95 of a few values is a measured value, not an interpolation."""
    assert percentile([1, 2, 3, 4], 50) == 2
    assert percentile([1, 2, 3, 4], 95) == percentile([1, 2, 3, 4], 100) == 4
    assert percentile(range(1, 101), 95) == 95
    assert percentile([], 95) == 0


# -------------------------------------------------------------------------- the caller


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_caller_interrupts_before_the_answer_is_over(
    scene: Scene, network: Network
) -> None:
    """On the network with the longest delay, part of the answer is left to be cut."""
    for seed in range(50):
        behaviour = scene.behaviour(Random(seed))
        steps = list(script(scene, behaviour, network, 8, Random(seed)))
        waits = [step.seconds for step in steps if isinstance(step, WaitStep)][1:]
        away = (network.up_ms + network.down_ms + 2 * network.jitter_ms) / 1000

        assert len(waits) == 8 and min(waits) >= 0.2
        assert max(waits) + away + 0.29 < scene.seconds + hole(behaviour)
        assert [type(step) for step in steps[1:4]] == [SayStep, HearStep, WaitStep]
        assert [type(step) for step in steps[-3:]] == [SayStep, ListenStep, HangUpStep]


def test_the_stall_makes_the_caller_wait() -> None:
    """Some pauses of the model are silence on the phone, some are just too short for
    that."""
    (scene,) = (scene for scene in SCENES if scene.stall_seconds)
    holes = [hole(scene.behaviour(Random(seed))) for seed in range(100)]

    assert min(holes) == 0 and max(holes) > 1
    assert any(0 < each < 0.3 for each in holes)


@pytest.mark.parametrize("kind", ["server_vad", "semantic_vad"])
def test_the_burst_is_one_turn(kind: str) -> None:
    """The VAD detects the caller's sound at its start and as one turn."""
    buffer = InputAudioBuffer(400)
    buffer.configure("audio/pcmu", {"type": kind})

    heard = list(buffer.append(burst() + b"\xff" * 8000))

    assert [type(each) for each in heard] == [VadSpeechStarted, VadSpeechStopped]
    assert isinstance(heard[1], VadSpeechStopped)
    assert heard[1].seconds == pytest.approx(0.6, abs=0.02)


# --------------------------------------------------------------- a bridge that is wrong

UPDATE = {
    "type": "session.update",
    "session": {
        "type": "realtime",
        "audio": {
            "input": {
                "format": {"type": "audio/pcmu"},
                "turn_detection": {"type": "server_vad"},
            },
            "output": {"format": {"type": "audio/pcmu"}},
        },
    },
}


async def relay(talk: TinyBridgeStream, model_url: str) -> None:
    """A naive bridge: it believes that all sent audio was heard."""
    async with connect(model_url) as model, asyncio.TaskGroup() as group:
        await model.send(json.dumps(UPDATE))
        speaking = group.create_task(speak(talk, model))
        taken = 0
        while not talk.messages("stop"):
            talk.arrived.clear()
            for each in talk.received[taken:]:
                await hear(each.message, model)
            taken = len(talk.received)
            async with asyncio.timeout(5):
                await talk.arrived.wait()
        speaking.cancel()


async def hear(message: dict[str, Any], model: ClientConnection) -> None:
    if message["event"] == "media":
        audio = message["media"]["payload"]
        event = {"type": "input_audio_buffer.append", "audio": audio}
        await model.send(json.dumps(event))


async def speak(talk: TinyBridgeStream, model: ClientConnection) -> None:
    sent: dict[str, int] = {}
    async for frame in model:
        event = json.loads(frame)
        if event["type"] == "response.output_audio.delta":
            audio = base64.b64decode(event["delta"])
            await talk.media(audio)
            sent[event["item_id"]] = sent.get(event["item_id"], 0) + len(audio)
        elif event["type"] == "input_audio_buffer.speech_started" and sent:
            await talk.send("clear")
            item_id, size = sent.popitem()
            truncate = {"type": "conversation.item.truncate", "item_id": item_id}
            cut = {"content_index": 0, "audio_end_ms": size // 8}
            await model.send(json.dumps(truncate | cut))


@asynccontextmanager
async def relay_for(model_url: str) -> AsyncIterator[tuple[str, str | None]]:
    async with tiny_bridge(partial(relay, model_url=model_url)) as bridge:
        yield f"{bridge.origin}/voice", None


@asynccontextmanager
async def engaged(model_url: str) -> AsyncIterator[tuple[str, str | None]]:
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = "<Response><Reject/></Response>"
        yield f"{bridge.origin}/voice", None


async def measured(bridge_for: BridgeFactory) -> BeliefReport:
    scene = Scene(name="short", items_ms=(1000,), speed=8.0)
    return await measure(
        bridge_for, scenes=[scene], networks=[Network()], calls=1, interruptions=1
    )


async def test_a_bridge_that_guesses_positions_is_found() -> None:
    """Over real sockets: a model that believes in all audio it sent is wrong by
    exactly what the caller did not hear."""
    found = await measured(relay_for)

    first, last = found.verdicts[0].beliefs
    assert first.believed_ms == first.sent_ms == 1000
    # The caller speaks after 0.2 to 0.7 s; then the VAD must detect it and the bridge
    # act.
    assert 250 < first.heard_ms < 900
    assert last.heard_ms == last.sent_ms == 1000
    assert found.broken == (
        f"p95 of the cut items is {first.error_ms:.1f} ms, above 20",
        f"the worst item is {first.error_ms:.1f} ms off, above 40",
    )


async def test_a_bridge_that_accepts_no_call_does_not_pass() -> None:
    """A measurement without a call says so, instead of reporting an error of 0 ms."""
    found = await measured(engaged)

    text = "\n".join(found.broken)
    assert "nothing was measured" in text
    assert "0 sessions on the model" in text and "0 answers instead of 2" in text
    assert "ended by bridge" in text
