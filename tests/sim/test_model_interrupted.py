"""Interruptions of the fake model, and what the model believes was heard."""

import base64

from bridge.sim.model import (
    Behaviour,
    ModelSession,
    PlayRuler,
)
from bridge.sim.voice import ruler
from tests.sim.realtime_client import (
    QUICK,
    Client,
    Event,
    speech,
    talking,
)


async def interrupted(behaviour: Behaviour) -> tuple[Client, ModelSession]:
    async with talking(behaviour) as (client, session):
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        await client.say(speech())
        await client.until("response.done")
        await client.until("response.done")
        return client, session


async def test_speech_cancels_the_answer_in_progress() -> None:
    """The caller's speech ends the generation at once."""
    behaviour = Behaviour(
        turns=[[PlayRuler(20000)], [PlayRuler(40)]], think_seconds=0.02
    )
    client, session = await interrupted(behaviour)

    types = client.types()
    at = types.index("input_audio_buffer.speech_started")
    assert types[at + 1 : at + 7] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    done = client.events[at + 6]["response"]
    assert done["status_details"]["reason"] == "turn_detected"
    assert done["output"][0]["status"] == "incomplete"
    assert [r.status for r in session.responses] == ["cancelled", "completed"]
    first = next(iter(session.items.values()))
    assert 0 < first.sent_ms < 20000 and not first.complete


async def test_late_audio_and_a_late_item_follow_the_cut() -> None:
    """Audio that was on its way at the interruption still arrives."""
    behaviour = Behaviour(
        turns=[[PlayRuler(20000)], [PlayRuler(40)]],
        think_seconds=0.02,
        late_deltas=2,
        late_item=True,
    )
    client, session = await interrupted(behaviour)

    types = client.types()
    cut = types.index("input_audio_buffer.speech_started")
    done = types.index("response.done")
    assert types[cut:done].count("response.output_audio.delta") == 4
    assert types[cut:done].count("response.output_item.added") == 1
    ruled = [item.ruler_number for item in session.items.values() if item.chunks]
    assert [number for number in ruled if number] == [1, 2, 3]
    assert session.responses[1].status == "completed"


async def test_after_response_done_speech_cancels_nothing() -> None:
    """The model does not know that its answer may still be playing on the phone."""
    behaviour = Behaviour(turns=[[PlayRuler(2000)], [PlayRuler(40)]], **QUICK)
    async with talking(behaviour) as (client, session):
        await client.send(type="response.create")
        await client.until("response.done")
        await client.say(speech())
        await client.until("response.done")

    assert [r.status for r in session.responses] == ["completed", "completed"]
    assert next(iter(session.items.values())).believed_ms == 2000


async def test_interruption_can_be_off() -> None:
    """With interrupt_response false the answer is finished, and a second one is
    refused."""
    vad = {"type": "server_vad", "interrupt_response": False}
    behaviour = Behaviour(turns=[[PlayRuler(6000)]], speed=4, think_seconds=0)
    async with talking(behaviour, input={"turn_detection": vad}) as (client, session):
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        await client.say(speech())
        error = await client.until("error")
        done = await client.until("response.done")

    assert error["error"]["code"] == "conversation_already_has_active_response"
    assert done["response"]["status"] == "completed"
    assert next(iter(session.items.values())).believed_ms == 6000


async def test_truncation_is_what_the_model_believes() -> None:
    """The model remembers only what was heard of its answer."""
    async with talking(Behaviour(turns=[[PlayRuler(1000)]], **QUICK)) as (
        client,
        session,
    ):
        await client.send(type="response.create")
        done = await client.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        cut = {"type": "conversation.item.truncate", "item_id": item_id}
        cut["content_index"] = 0
        too_long = await client.refused(**cut, audio_end_ms=1001)
        await client.send(**cut, audio_end_ms=1000)
        await client.send(**cut, audio_end_ms=400)
        await client.until("conversation.item.truncated", audio_end_ms=400)
        longer = await client.refused(**cut, audio_end_ms=401)
        other_part = await client.refused(**cut | {"content_index": 1}, audio_end_ms=1)
        await client.send(type="conversation.item.retrieve", item_id=item_id)
        shown = (await client.until("conversation.item.retrieved"))["item"]
        item = session.items[item_id]
        believed = item.believed_ms
        await client.send(type="conversation.item.delete", item_id=item_id)
        await client.until("conversation.item.deleted")

    assert too_long["message"].endswith("1000ms is already shorter than 1001ms")
    assert too_long["code"] is None
    assert longer["message"] == "Audio content of 400ms is already shorter than 401ms"
    assert other_part["param"] == "content_index"
    assert shown["content"][0]["transcript"] is None
    assert base64.b64decode(shown["content"][0]["audio"]) == ruler(1, 400)
    assert (item.text, item.generated_text) == ("", "word word word word")
    assert believed == 400 and item.believed_ms == 0 and item.deleted


async def test_an_item_without_audio_cannot_be_truncated() -> None:
    """Truncating an item before its first audio is refused, as by the real server."""
    async with talking(Behaviour(turns=[[PlayRuler(200)]], think_seconds=0.4)) as (
        client,
        _,
    ):
        await client.send(type="response.create")
        part = await client.until("response.content_part.added")
        cut = {"type": "conversation.item.truncate", "audio_end_ms": 0}
        cut |= {"item_id": part["item_id"], "content_index": 0}
        too_early = await client.refused(**cut)
        await client.until("response.done")
        text: Event = {"type": "message", "role": "user", "id": "u1"}
        text["content"] = [{"type": "input_text", "text": "hello"}]
        await client.send(type="conversation.item.create", item=text)
        not_hers = await client.refused(**cut | {"item_id": "u1"})
        await client.send(**cut)
        await client.until("conversation.item.truncated", audio_end_ms=0)

    for error in (too_early, not_hers):
        assert error["code"] == "unsupported_content_type"
        assert error["message"] == "Only model output audio messages can be truncated"
