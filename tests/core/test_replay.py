"""A conversation given back to a new session: text that was heard, complete tool
calls."""

import itertools
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

from bridge.core.history import HistoryItem, Kind
from bridge.core.realtime_events import ConversationItem
from bridge.core.replay import recorded, replayed
from tests.core.phone import Phone, asks, said_to_model, to_model

CALL = HistoryItem("t1", "tool_call", call_id="c1", name="hours", arguments="{}")
RESULT = HistoryItem("t2", "tool_output", "nine to five", call_id="c1")


def given_back(*history: HistoryItem) -> list[dict[str, Any]]:
    serial = itertools.count(1)
    events = replayed(history, lambda: f"e{next(serial)}")
    return [json.loads(event) for event in events]


@pytest.fixture(scope="module")
def client_events() -> TypeAdapter[Any]:
    """Built once: it takes longer than Hypothesis allows for an example."""
    return TypeAdapter(RealtimeClientEvent)


def test_what_was_said_is_given_back_in_order() -> None:
    """A caller who was put through and comes back need not tell their story again."""
    events = given_back(
        HistoryItem("s1", "system", "They are a regular."),
        HistoryItem("u1", "user", "When do you open?"),
        CALL,
        RESULT,
        HistoryItem("a1", "assistant", "At nine."),
    )

    assert [event["item"]["id"] for event in events] == ["s1", "u1", "t1", "t2", "a1"]
    assert [event["event_id"] for event in events] == ["e1", "e2", "e3", "e4", "e5"]
    assert events[0]["item"]["content"] == [
        {"type": "input_text", "text": "They are a regular."}
    ]
    assert events[4]["item"] == {
        "id": "a1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "At nine."}],
    }
    assert events[2]["item"] == {
        "id": "t1",
        "type": "function_call",
        "call_id": "c1",
        "name": "hours",
        "arguments": "{}",
    }
    assert events[3]["item"] == {
        "id": "t2",
        "type": "function_call_output",
        "call_id": "c1",
        "output": "nine to five",
    }


def test_only_what_was_heard_is_given_back() -> None:
    """The new session does not believe that it said what never left the buffer."""
    half = HistoryItem("a1", "assistant", "At", generated="At nine.", cut=True)
    unheard = HistoryItem("a2", "assistant", generated="And on Sundays", cut=True)

    [event] = given_back(half, unheard)

    assert event["item"]["content"][0]["text"] == "At"


def test_a_tool_call_goes_with_its_result_or_not_at_all() -> None:
    """A model does not wait for a result that will never come."""
    assert given_back(CALL) == []
    assert given_back(RESULT) == []
    assert len(given_back(CALL, RESULT)) == 2


@given(
    st.lists(
        st.builds(
            HistoryItem,
            id=st.sampled_from("abcdef"),
            kind=st.sampled_from(get_args(Kind)),
            text=st.text(max_size=9),
            call_id=st.sampled_from(["", "c1", "c2"]),
            name=st.just("hours"),
        )
    )
)
def test_any_history_gives_events_that_openai_accepts(
    client_events: TypeAdapter[Any], history: list[HistoryItem]
) -> None:
    """No history makes a session that begins with an error."""
    for event in given_back(*history):
        taken = client_events.validate_python(event)
        assert taken.model_dump(mode="json", exclude_unset=True) == event


# --- in a call ---


def test_a_call_that_goes_on_begins_with_what_was_said() -> None:
    """First the old conversation, then the message about why it goes on (in place of a
    greeting), then one response."""
    earlier = (
        HistoryItem("u1", "user", "Put me through."),
        HistoryItem("a1", "assistant", "Gladly.", at=3.0),
    )
    phone = Phone()
    phone.start()
    phone.follow(greeting="Say hello.", history=earlier, word="Nobody answered.")
    phone.frame()

    commands = phone.ready()

    assert said_to_model(commands) == [
        ("user", "Put me through."),
        ("assistant", "Gladly."),
        ("system", "Nobody answered."),
    ]
    assert asks(commands) == 1
    assert to_model(commands)[-1]["type"] == "input_audio_buffer.append"
    assert [it.id for it in phone.talk.history.items] == ["u1", "a1"]


def test_replayed_items_are_not_added_twice() -> None:
    """The old conversation is not in the new history twice."""
    phone = Phone(history=(HistoryItem("a1", "assistant", "Gladly."),)).talking()
    part = {"type": "output_text", "text": "Gladly."}

    phone.item_added("a1", "assistant", part)

    assert [(it.id, it.text) for it in phone.talk.history.items] == [("a1", "Gladly.")]


# --- items of the server ---


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            ConversationItem("i", "message", "assistant"),
            HistoryItem("i", "assistant", at=2.0),
        ),
        (
            ConversationItem(
                "i",
                "message",
                "assistant",
                [{"type": "output_audio", "transcript": "unheard as yet"}],
            ),
            HistoryItem("i", "assistant", at=2.0),
        ),
        (
            ConversationItem(
                "i", "message", "assistant", [{"type": "output_text", "text": "known"}]
            ),
            HistoryItem("i", "assistant", "known", at=2.0),
        ),
        (
            ConversationItem(
                "i",
                "message",
                "user",
                [{"type": "input_text", "text": "a"}, {"transcript": "b"}],
            ),
            HistoryItem("i", "user", "a b", at=2.0),
        ),
        (
            ConversationItem("i", "message", "system", [{"text": "word"}]),
            HistoryItem("i", "system", "word", at=2.0),
        ),
        (
            ConversationItem("i", "message", None, "no list"),
            HistoryItem("i", "system", at=2.0),
        ),
        (
            ConversationItem(
                "i", "function_call", call_id="c", name="n", arguments="{}"
            ),
            HistoryItem(
                "i", "tool_call", at=2.0, call_id="c", name="n", arguments="{}"
            ),
        ),
        (ConversationItem("i", "function_call"), HistoryItem("i", "tool_call", at=2.0)),
        (
            ConversationItem("i", "function_call_output", call_id="c", output="o"),
            HistoryItem("i", "tool_output", "o", at=2.0, call_id="c"),
        ),
        (
            ConversationItem("i", "function_call_output"),
            HistoryItem("i", "tool_output", at=2.0),
        ),
        (ConversationItem("i", "mcp_list_tools"), None),
        (ConversationItem("i"), None),
    ],
)
def test_an_item_of_the_server_is_kept_as_text(
    item: ConversationItem, expected: HistoryItem | None
) -> None:
    """The agent's spoken text counts when it was heard, all other text as it is."""
    assert recorded(item, 2.0) == expected
