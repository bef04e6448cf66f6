"""Items that the model was sent and has not shown: sent again to another session."""

import json
from typing import Any

from bridge.core import realtime_requests
from bridge.core.outbox import MAX_PENDING, MAX_UNACKED, Outbox, PendingText
from bridge.core.realtime_events import ConversationItem

STREAM = "MZ" + "0123456789abcdef" * 2


def new_outbox() -> Outbox:
    made = Outbox()
    made.owned_by(STREAM)
    return made


def item_of(text: str) -> dict[str, Any]:
    item: dict[str, Any] = json.loads(text)["item"]
    return item


def words(it: Outbox) -> list[str]:
    return [item_of(text)["content"][0]["text"] for text in it.events]


def test_an_item_gets_an_id_that_a_server_accepts() -> None:
    """It is recognised when the server shows it; ids of two streams differ."""
    it = new_outbox()

    sent = it.sent(realtime_requests.message("user", "hi", "e1"))

    item_id = item_of(sent)["id"]
    assert item_id == "b_456789abcdef_1"
    assert len(item_id) <= 32 and item_id.replace("_", "").isalnum()
    assert json.loads(sent)["event_id"] == "e1", "refusals are known by it"
    assert it.events == [sent]


def test_an_id_given_by_user_code_stays() -> None:
    """User code that names an item finds it under its name."""
    it = new_outbox()
    text = realtime_requests.message("user", "hi", "e1", item_id="mine")

    assert it.sent(text) == text
    it.seen(ConversationItem("mine"))
    assert it.events == []


def test_an_event_without_an_id_gets_one() -> None:
    """Else nothing would tell which item a server has refused."""
    it = new_outbox()
    event = {"type": "conversation.item.create", "item": {"type": "message"}}
    sent = json.loads(it.sent(json.dumps(event)))

    it.refused("somebody else's", "")
    assert len(it.events) == 1
    it.refused(sent["event_id"], "")
    assert it.events == []


def test_a_refused_output_is_known_by_its_call() -> None:
    """Some servers' errors do not name the event that they refuse."""
    it = new_outbox()
    it.sent(realtime_requests.tool_output("call_7", "42", "e1"))
    it.sent(realtime_requests.message("user", "hi", "e2"))

    assert it.refused(None, "Something else went wrong.") == {}
    assert it.refused(None, "Tool call ID 'call_7' not found.") == {"call_7": "42"}
    assert words(it) == ["hi"]


def test_items_shown_or_deleted_are_not_sent_again() -> None:
    """The next session gets each item once: from here, or from the history."""
    it = new_outbox()
    first, second, third = (
        item_of(it.sent(realtime_requests.message("user", text, text)))["id"]
        for text in ("one", "two", "three")
    )
    it.seen(ConversationItem(first))
    it.gone(third)

    assert words(it) == ["two"]
    assert second.endswith("_2")


def test_an_item_sent_again_goes_to_the_end() -> None:
    """The item before it may be gone: a server would refuse it."""
    it = new_outbox()

    sent = it.sent(realtime_requests.message("assistant", "hi", "e1", after="i1"))

    assert json.loads(sent)["previous_item_id"] == "i1"
    assert "previous_item_id" not in json.loads(it.events[0])


def test_deletes_are_kept_until_the_server_has_done_them() -> None:
    """A deleted item does not come back with another session."""
    it = new_outbox()
    it.sent(realtime_requests.delete("i1", "e1"))
    it.sent(realtime_requests.delete("i2", "e2"))
    it.gone("i1")

    assert it.deleted == ["i2"]


def test_other_events_pass_as_they_are() -> None:
    """Only items are remembered; a frame of audio is not parsed."""
    it = new_outbox()
    for text in (
        realtime_requests.append("AAAA"),
        realtime_requests.create_response("e1"),
        realtime_requests.truncate("i1", 0, 100, "e2"),
        '{"type":"conversation.item.create","item":"odd"}',
    ):
        assert it.sent(text) == text
    assert it.events == []


def test_a_server_that_confirms_nothing_takes_bounded_memory() -> None:
    """What is kept is bounded; the newest stays."""
    it = new_outbox()
    for n in range(MAX_UNACKED + 10):
        it.sent(realtime_requests.message("user", str(n), f"e{n}"))

    assert words(it) == [str(n) for n in range(10, MAX_UNACKED + 10)]


def test_texts_wait_in_order_and_within_bounds() -> None:
    """An application that tells much to an absent model costs no memory, and learns of
    it."""
    it = new_outbox()
    kept = [
        it.keep(PendingText("user", str(n), n == 1)) for n in range(MAX_PENDING + 1)
    ]

    assert kept == [True] * MAX_PENDING + [False]
    assert it.to_be_answered
    assert [word.text for word in it.take() if isinstance(word, PendingText)][:2] == [
        "0",
        "1",
    ]
    assert it.take() == [] and not it.to_be_answered


def test_an_approval_is_not_sent_to_another_session() -> None:
    """That session has not asked for it, and would refuse it."""
    memory = new_outbox()
    item = {"type": "mcp_approval_response", "id": "a1", "approve": True}
    text = json.dumps({"type": "conversation.item.create", "item": item})

    assert memory.sent(text) == text
    assert memory.events == []
