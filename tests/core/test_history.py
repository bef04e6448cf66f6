"""What was said in a call: text that was heard, in the server's order, within
bounds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.history import (
    MAX_ALL_CHARS,
    MAX_CHARS,
    MAX_ITEMS,
    History,
    HistoryItem,
    Kind,
)
from tests.core.phone import Phone


def item(id: str, text: str = "", kind: Kind = "user", **more: Any) -> HistoryItem:
    return HistoryItem(id, kind, text, **more)


def names(history: History) -> list[str]:
    return [it.id for it in history.items]


def texts(phone: Phone) -> list[tuple[str, str]]:
    return [(it.kind, it.text) for it in phone.talk.history.items]


def test_items_stand_in_the_servers_order() -> None:
    """The caller's text stands where it was said, though it arrives later."""
    history = History([item("a")])
    history.add(item("c"), after="a")
    history.add(item("b"), after="a")
    history.add(item("d"), after="c")
    history.add(item("e"), after="unknown")
    history.add(item("f"))

    assert names(history) == ["a", "b", "c", "d", "e", "f"]


def test_a_known_item_is_filled_not_doubled() -> None:
    """If the server shows an item again, missing fields are filled and nothing else
    changes."""
    history = History()
    history.add(item("a", kind="tool_call", name="hours"))
    more = item("a", "later", "tool_call", name="x", call_id="c1", arguments="{}")
    history.add(more, after="unknown")
    history.add(item("a", "again", "tool_call", call_id="x", arguments="x"))

    assert history.items == [
        item("a", "later", "tool_call", name="hours", call_id="c1", arguments="{}")
    ]


def test_the_history_of_a_long_call_is_bounded() -> None:
    """The oldest items are forgotten, and no item is a book."""
    history = History()
    book = "x" * (MAX_CHARS + 1)
    for n in range(MAX_ITEMS + 4):
        history.add(item(str(n)))
    history.add(item("last", book, generated=book, arguments=book))
    last = history.items[-1]

    assert len(history.items) == MAX_ITEMS
    assert history.items[0].id == "5"
    assert len(last.text) == len(last.generated) == len(last.arguments) == MAX_CHARS
    history.said(last.id, book, book, cut=False)
    history.transcribed(last.id, book)
    assert len(last.text) == len(last.generated) == MAX_CHARS


def test_long_items_are_forgotten_sooner() -> None:
    """A call in which every response is a book costs no more memory than a long
    call."""
    history = History()
    book = "x" * MAX_CHARS
    for n in range(MAX_ITEMS):
        history.add(item(str(n)))
    for n in range(MAX_ITEMS):
        history.correct(str(n), book)
        history.said(str(n), "", book, cut=False)
        history.add(item(str(n), arguments=book))

    chars = sum(len(it.text + it.generated + it.arguments) for it in history.items)
    assert MAX_ALL_CHARS - 3 * MAX_CHARS < chars <= MAX_ALL_CHARS
    assert history.items[-1].id == str(MAX_ITEMS - 1)
    for it in list(history.items):
        history.remove(it.id)
    for n in range(MAX_ITEMS):
        history.add(item(f"{n} again", book))
    assert len(history.items) == MAX_ALL_CHARS // MAX_CHARS


def test_an_item_that_follows_itself_stands_at_the_end() -> None:
    """An odd event of a server does not end a call."""
    history = History([item("a")])
    history.add(item("b"), after="b")

    assert names(history) == ["a", "b"]


def test_unknown_items_are_ignored() -> None:
    """Events about items that were never shown do no harm."""
    history = History()
    history.said("a", "heard", "generated", cut=True)
    history.transcribed("a", "words")
    history.remove("a")

    assert history.items == []
    assert history.get("a") is None


@given(
    st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 9)))),
    st.lists(st.integers(0, 9)),
)
def test_no_order_of_items_loses_or_doubles_one(
    added: list[tuple[int, int | None]], removed: list[int]
) -> None:
    """Each item stands there once, behind the item that it follows if that was
    known."""
    history = History()
    known: set[str] = set()
    for name, after in added:
        new, follows = str(name) not in known, str(after)
        history.add(item(str(name)), follows)
        known.add(str(name))
        if new and follows in known - {str(name)}:
            assert names(history).index(str(name)) == names(history).index(follows) + 1
    for name in removed:
        history.remove(str(name))

    assert len(names(history)) == len(set(names(history)))
    assert set(names(history)) == known - {str(name) for name in removed}


# --- in a call ---


def test_a_conversation_is_kept_as_it_was_heard() -> None:
    """Question, answer and tool call are there, in order, each with its text."""
    phone = Phone().talking()
    phone.item_added("u1", "user", {"type": "input_audio", "transcript": None})
    phone.answers(400, words="We open at nine.")
    transcript = "conversation.item.input_audio_transcription.completed"
    phone.model(transcript, item_id="u1", transcript="When do you open?")
    phone.frames(500)

    assert texts(phone) == [
        ("user", "When do you open?"),
        ("assistant", "We open at nine."),
    ]
    [question, answer] = phone.talk.history.items
    assert answer.generated == "We open at nine."
    assert not answer.cut and answer.spoken and question.spoken
    assert answer.at == pytest.approx(0.1)


def test_text_that_was_not_heard_is_not_in_the_history() -> None:
    """The report of a call shows what the caller knows, and what was cut."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("one two three four")
    phone.says(2000)
    phone.frames(1000)
    phone.barges_in()
    phone.echoes()

    [answer] = phone.talk.history.items
    assert (answer.text, answer.generated) == ("one two", "one two three four")
    assert answer.cut and answer.spoken


def test_what_the_model_forgets_is_not_in_the_history() -> None:
    """A response that nobody heard is deleted on both sides."""
    phone = Phone().talking()
    phone.item_added("i1", "assistant")
    phone.item_added("i2", "assistant")

    phone.model("conversation.item.deleted", item_id="i1")

    assert [it.id for it in phone.talk.history.items] == ["i2"]


def test_an_item_that_the_server_adds_between_others_stands_there() -> None:
    """previous_item_id says where."""
    phone = Phone().talking()
    phone.item_added("a", "user")
    phone.item_added("c", "assistant")
    phone.item_added("b", "system", after="a")

    assert [it.id for it in phone.talk.history.items] == ["a", "b", "c"]


def test_an_item_that_is_neither_text_nor_a_tool_call_is_not_kept() -> None:
    """Items that only the server uses are no part of what was said."""
    phone = Phone().talking()
    listed = {"id": "m1", "type": "mcp_list_tools"}

    assert phone.model("conversation.item.added", item=listed) == []
    assert phone.talk.history.items == []


def test_a_tool_call_does_not_count_as_spoken() -> None:
    """Only people and agents speak."""
    assert not item("a", "{}", "tool_output").spoken
    assert not item("a").spoken
    assert item("a", kind="assistant", generated="unheard").spoken


def test_what_was_removed_does_not_come_back() -> None:
    """A secret that the application removed stays out, whatever arrives of it later;
    and a call that removes much costs no memory."""
    history = History([item("a"), item("b")])
    history.remove("a")
    history.add(item("a", "again"))
    assert names(history) == ["b"]

    for n in range(MAX_ITEMS):
        history.remove(str(n))
    history.add(item("a"))
    assert names(history) == ["b", "a"]


def test_late_words_of_an_item_that_is_unknown_or_has_several_parts() -> None:
    """The words of one part are corrected, the others stay; a removed item does not
    come back."""
    history = History([item("a")])
    for said in ("One two", " three"):
        history.said("a", said, f"{said}!", cut=True)

    history.said_again("a", ("One two", "One"), ("One two!", "One two three!"))
    history.said_again("b", ("", "lost"), ("", "lost"))

    assert [(it.id, it.text) for it in history.items] == [("a", "One three")]
    assert history.items[0].generated == "One two three! three!"
