"""What user code may change in a running call: muting, editing, other rules."""

import base64

from tests.core.phone import (
    STREAM,
    Phone,
    appended,
    asks,
    ends,
    events,
    payload,
    pressed,
    said_to_model,
    to_model,
    told,
)


def test_a_muted_caller_is_silence_of_the_same_length() -> None:
    """The model does not hear a card number read out, and its clock runs on."""
    phone = Phone().talking()
    phone.mute(True)

    for ms in (20, 40):
        [sent] = to_model(phone.frame(ms=ms))
        assert base64.b64decode(sent["audio"]) == b"\xff" * (8 * ms)
    phone.mute(False)
    assert to_model(phone.frame())[0]["audio"] == payload(20)


def test_a_caller_muted_before_the_model_is_ready_is_not_heard_later() -> None:
    """Audio that is held while muted is held as silence."""
    phone = Phone()
    phone.start()
    phone.frame()
    phone.mute(True)
    phone.frame()

    assert appended(phone.ready()) == b"\x55" * 160 + b"\xff" * 160


def test_keys_act_while_the_caller_is_muted() -> None:
    """Muting applies to audio: keys still act."""
    phone = Phone(key_actions=("0",)).talking()
    phone.mute(True)

    assert pressed(phone.presses("0")) == ["0"]


def test_the_model_forgets_a_removed_item() -> None:
    """An item that the application removes is deleted at the model."""
    phone = Phone().talking()
    phone.item_added("u1", "user", {"type": "input_text", "text": "my secret"})

    assert told(phone.edit(["u1"], {})) == [("delete", "u1", None)]


def test_the_text_of_an_item_is_replaced() -> None:
    """The new text stands where the old one stood, with the same role."""
    phone = Phone().talking()
    phone.item_added("u1", "user", {"type": "input_text", "text": "my card is 4111"})

    create, delete = to_model(phone.edit([], {"u1": "my card is (hidden)"}))

    assert create["previous_item_id"] == "u1"
    assert create["item"]["role"] == "user"
    assert create["item"]["content"][0]["text"] == "my card is (hidden)"
    assert (delete["type"], delete["item_id"]) == ("conversation.item.delete", "u1")


def test_items_without_text_are_not_replaced() -> None:
    """A tool call, or an unknown item, has no text to correct."""
    phone = Phone().talking()
    call = {"id": "t1", "type": "function_call", "call_id": "c1"}
    phone.model("conversation.item.added", item=call)

    assert phone.edit([], {"t1": "x", "unknown": "x"}) == []


def test_rules_come_when_the_call_is_known() -> None:
    """The route of the number decides how the call is led from then on."""
    phone = Phone()
    phone.start()
    phone.follow(greeting="Say ahoy.", key_actions=("9",))

    commands = phone.ready()

    assert said_to_model(commands) == [("system", "Say ahoy.")]
    assert asks(commands) == 1
    assert pressed(phone.presses("9")) == ["9"]


def test_an_application_stops_the_agent() -> None:
    """Silence at once, and the model is told to stop; a later message works as
    before."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000)

    commands = phone.interrupt()

    assert events(commands) == ["clear", "mark"]
    assert [it["type"] for it in to_model(commands)] == ["response.cancel"]
    assert asks(phone.tell("Leave a message.", "system")) == 0
    assert asks(phone.done(status="cancelled")) == 0
    assert [it["type"] for it in to_model(phone.echoes())] == [
        "conversation.item.delete",
        "response.create",
    ]


def test_inputs_after_the_end_are_ignored() -> None:
    """A call that is over takes no orders."""
    phone = Phone().talking()
    assert ends(phone.caller(event="stop", streamSid=STREAM))

    assert phone.tell("x") == phone.ask() == phone.busy(1) == phone.presses("1#") == []
    assert phone.edit(["u1"], {}) == phone.mute(True) == phone.goodbye("cost") == []
