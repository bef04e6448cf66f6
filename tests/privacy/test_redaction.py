"""What a route removes from the texts of a call: cards, keys, digits, patterns."""

import base64
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.history import HistoryItem, Playing
from bridge.privacy import redaction
from bridge.privacy.redaction import (
    MAX_CHARS,
    MAX_MESSAGE_CHARS,
    MAX_PATTERN_CHARS,
    SLOW_CHARS,
    WINDOW,
    Copies,
    Redaction,
    pattern,
)
from tests.core.phone import Phone, payload

CARDS = Redaction(cards=True)
DIGITS = Redaction(digits=True)
KEYS = Redaction(keys=True)
ALL = Redaction(cards=True, keys=True, digits=True)
SECRET = Redaction(patterns=(pattern(r"(?i)secret \w{1,20}"),))

# Numbers that the schemes give out for tests.
VISA = "4111111111111111"
AMEX = "378282246310005"
MAESTRO = "6759649826438453"


# --- cards ---


@pytest.mark.parametrize(
    "said",
    [
        VISA,
        AMEX,
        MAESTRO,
        "4222222222222",  # 13 digits
        "6304000000000000000",  # 19 digits
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4111. 1111. 1111. 1111",
        "4111, 1111,\n1111, 1111",
        "4111\u00a01111\u20131111\u20111111",
        "4111... 1111... 1111\u2026 1111",
        "4111 1111  -  1111 1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "four one one one one one one one one one one one one one one one",
        "Four, one, one, one. One one one one; ".replace(";", ",") + "one " * 8,
        "FOUR triple one, double one double one, one one one one triple one one",
        "four one 1 1, 1111 one one one one 1 1 1 1",
        "\u0664111 1111 1111 1111",  # an Arabic four
        f"{VISA} 12 27 123",  # its date and its code behind it
        f"{VISA}1227123",
        f"555 {VISA}",  # something before it
    ],
)
def test_a_card_number_is_removed(said: str) -> None:
    """In every form in which a caller says it or a transcription writes it."""
    kept = CARDS.text(f"It is {said.strip()} I think.")

    assert kept == "It is [card number] I think."


@pytest.mark.parametrize(
    "said",
    [
        "4111 1111 1111 1112",  # no card has it
        "411111111111",  # too short
        "9111111111111111",  # begins as none does
        "My number is +1 415 555 0100, or 030 1234567.",
        "order 1763749924123, at 18:32:04 on 2026-11-21",
        "one, two, three, four",
        "anyone for tennis at nine or ten, someone asked",
        "phonefour one one one one one one one one one one one one one one one",
    ],
)
def test_other_numbers_are_kept(said: str) -> None:
    """A report stays readable: phone numbers, times, order numbers."""
    assert CARDS.text(said) == said


@given(st.text(alphabet="0123456789 -", min_size=0, max_size=40), st.data())
def test_no_card_gets_through(around: str, data: st.DataObject) -> None:
    """A card number in any grouping is removed, whatever text surrounds it."""
    digits = data.draw(st.sampled_from([VISA, AMEX, MAESTRO]))
    gaps = data.draw(st.lists(st.sampled_from(["", " ", "-", ", "]), min_size=19))
    written = "".join(it + gap for it, gap in zip(digits, gaps, strict=False))

    kept = CARDS.text(f"{around}; {written}; {around}")

    assert written.strip(" -,") not in kept


# --- digits, keys, patterns ---


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("My PIN is 4711.", "My PIN is [digits]."),
        ("It is four seven one one!", "It is [digits]!"),
        ("double four double one", "[digits]"),
        ("4, 7, 1, 1", "[digits]"),
        ("Room 471 at 12", "Room 471 at 12"),
        (VISA, "[digits]"),
    ],
)
def test_four_or_more_digits_are_removed(said: str, kept: str) -> None:
    """A PIN is removed, a room number is kept."""
    assert DIGITS.text(said) == kept


def test_a_card_number_is_labelled_as_card() -> None:
    """With `cards` and `digits` a reader of the report still sees which it was."""
    assert ALL.text(f"{VISA} and 4711") == "[card number] and [digits]"


def test_keys_are_hidden_by_any_setting() -> None:
    """A card number that is keyed in comes one digit at a time."""
    for named in (CARDS, DIGITS, KEYS, SECRET):
        phone = Phone().talking()
        before = len(phone.log)
        for digit in "4111#":
            dtmf = {"digit": digit}
            phone.caller(event="dtmf", streamSid="MZ0000", dtmf=dtmf)
        told = str(phone.log[before:])
        assert "keys on the phone: 4111)" in told  # what the agent is told

        kept = named.text(told)

        assert "keys on the phone: [keys])" in kept
        message = named.message({"event": "dtmf", "dtmf": {"digit": "4"}})
        assert message == {"event": "dtmf", "dtmf": {"digit": "[keys]"}}


def test_a_match_of_a_pattern_is_removed() -> None:
    """Operators can name what only they know about."""
    assert SECRET.text("a Secret word, a public one") == "a [removed], a public one"


def test_a_pattern_matches_anywhere_in_a_long_text() -> None:
    """Also across the windows in which a long text is searched."""
    for at in range(0, 3 * WINDOW, 7):
        text = "x" * at + " secret word " + "y" * WINDOW
        assert SECRET.text(text) == text.replace("secret word", "[removed]"), at


def test_the_rest_of_a_very_long_text_is_removed() -> None:
    """A bounded length is searched, and nothing that was not searched is kept. A number
    at the end of that length is found."""
    for named in (SECRET, CARDS, DIGITS):
        kept = named.text("x" * (MAX_CHARS + 1000))
        assert kept == "x" * MAX_CHARS + "[removed]"
    at_the_end = "x" * (MAX_CHARS - 12) + VISA + "x" * 1000
    assert CARDS.text(at_the_end) == "x" * (MAX_CHARS - 12) + "[card number]"


def test_a_slow_pattern_is_matched_against_less() -> None:
    """A caller who knows the pattern cannot stop all calls for a second with a text
    that makes it slow."""
    slow = Redaction(patterns=(pattern(r"a.*b.*c"),))
    quick = Redaction(patterns=(pattern(r"[\w.]+@[\w.]+"),))

    assert slow.text("a" * 5000) == "a" * SLOW_CHARS + "[removed]"
    assert quick.text("a" * 5000) == "a" * 5000


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("(", "is no regular expression"),
        ("a{3,2}", "is no regular expression"),
        ("(" * 400 + ")" * 99, "is no regular expression"),
        ("x" * (MAX_PATTERN_CHARS + 1), "characters"),
        ("a*", "matches an empty text"),
        (r"\b", "matches an empty text"),
        ("(a+)+b", "may take too long"),
        ("(a|aa)+b", "may take too long"),
        ("(?:1|1){16}x", "may take too long"),  # 25 s for 8,000 characters
        ("(?:1|11|111){1,8}x", "may take too long"),
        (r"(\w+\s?)*x", "may take too long"),
        (r".*a.*b.*c", "may take too long"),
        ("((a{1,9}){1,9}){1,9}b", "may take too long"),
        ("x(?=(a+)+b)", "may take too long"),
        ("(?:(a+)+|b)c", "may take too long"),
        ("(a)?(?(1)(b+)+c|d)", "may take too long"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(written: str, why: str) -> None:
    """A pattern that may backtrack without bound is refused at start."""
    with pytest.raises(ValueError, match=why):
        pattern(written)


@pytest.mark.parametrize(
    "written",
    [
        r"\d{3}-\d{2}-\d{4}",
        r"[\w.]+@[\w.]+",
        r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}",
        r"(?i)my password is .{1,40}",
        "(?:foo|bar)baz",
        "(?:foo|bar|baz ){1,5}",
        "(?>a+)b",
    ],
)
def test_common_patterns_are_accepted(written: str) -> None:
    """Typical patterns of operators need no special care."""
    assert pattern(written).pattern == written


# --- pieces ---


def test_a_number_across_deltas_is_removed() -> None:
    """The text of an answer comes in deltas, none of which holds a whole number."""
    pieces = ["Your card ", "4111 11", "11 1111", " 1111", ", right?"]

    kept = ALL.pieces(pieces)

    assert kept == ["Your card ", "[card number]", "", "", ", right?"]
    assert CARDS.pieces(["", "no number"]) == ["", "no number"]


@given(st.lists(st.sampled_from(["4", "111", " ", "1111", "x", "one ", ""])))
def test_pieces_are_redacted_like_the_whole_text(pieces: list[str]) -> None:
    """The result does not depend on where a text is split."""
    assert "".join(ALL.pieces(pieces)) == ALL.text("".join(pieces))


def test_text_that_is_still_playing_is_redacted() -> None:
    """The instance that continues the call still knows which words were heard when."""
    words = ((0, "It is "), (800, "4111 1111 "), (1600, "1111 1111"), (2400, "."))
    part = Playing("i1", words, received=3000, heard=100, complete=True)

    kept = CARDS.playing(part)

    assert kept.words == (
        (0, "It is "),
        (800, "[card number]"),
        (1600, ""),
        (2400, "."),
    )
    assert (kept.received, kept.heard) == (3000, 100)


def test_an_interrupted_number_is_removed() -> None:
    """A caller interrupts the agent within their card number after twelve digits: none
    of them is kept."""
    said = "I charge 4111 1111 1111 1111 now"
    heard = "I charge 4111 1111 1111"
    item = HistoryItem("a1", "assistant", heard, said, cut=True)
    note = {"heard": heard, "generated": said}

    kept = CARDS.item(item)

    assert kept.text == "I charge [card number]"
    assert kept.generated == "I charge [card number] now"
    assert CARDS.message(note) == {"heard": kept.text, "generated": kept.generated}
    assert CARDS.message({"text": heard, "generated": said})["text"] == kept.text
    assert CARDS.heard(heard, "something else") == heard
    assert CARDS.message({"heard": heard, "generated": 5})["heard"] == heard


# --- JSON ---


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('{"card": "4111 1111 1111 1111"}', '{"card":"[card number]"}'),
        (f'{{"card": {VISA}, "ok": true}}', '{"card":"[card number]","ok":true}'),
        (f'{{"{VISA}": [null, 1.5]}}', '{"[card number]":[null,1.5]}'),
        (f'["{VISA}", {VISA}.0]', '["[card number]","[card number]"]'),
        ("[4,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", '"[[card number]]"'),
        ('{"untouched":  1}', '{"untouched":  1}'),
        (f"no JSON: {VISA}", "no JSON: [card number]"),
        ("", ""),
        ("[" * 5000, "[" * 5000),
        (
            "[" * 500 + f'"\\u0034{VISA[1:]}"' + "]" * 500,
            "[" * 500 + '"[card number]"' + "]" * 500,
        ),
    ],
)
def test_redacted_tool_arguments_stay_json(written: str, kept: str) -> None:
    """A reader of tool arguments can still parse them as JSON."""
    assert CARDS.json(written) == kept


def test_a_redacted_message_keeps_its_structure() -> None:
    """A trace without texts can still be followed: it has ids, times and lengths."""
    message = {
        "type": "response.output_item.done",
        "event_id": "event_471147114711",
        "item": {
            "id": "item_4711",
            "type": "function_call",
            "call_id": "call_4711",
            "name": "pay_4711",
            "arguments": '{"pin":4711}',
            "content": [{"type": "audio", "transcript": "4711", "audio": payload(20)}],
        },
        "usage": {"total_tokens": 4711, "seconds": 0.4711, "done": True},
        "card": int(VISA),
        "logprobs": [{"token": "4711"}],
    }

    kept = ALL.message(message)

    item = kept["item"]
    assert item["arguments"] == '{"pin":"[digits]"}'
    [content] = item["content"]
    assert content["transcript"] == "[digits]"
    assert base64.b64decode(content["audio"]) == b"\xff" * 160
    assert kept["card"] == "[card number]"
    assert kept["logprobs"] == []
    for name in ("type", "event_id", "usage"):
        assert kept[name] == message[name]
    for name in ("id", "type", "call_id"):
        assert item[name] == message["item"][name]  # type: ignore[index]
    assert item["name"] == "pay_[digits]"
    assert DIGITS.message({"card": int(VISA)}) == {"card": int(VISA)}
    assert CARDS.message({"at": 10**12}) == {"at": 10**12}
    assert CARDS.message({"card": float(VISA)}) == {"card": "[card number]"}


@pytest.mark.parametrize("field", ["customParameters", "metadata", "variables"])
def test_parameters_are_redacted_whatever_their_names(field: str) -> None:
    """A parameter may be called `code` like one of our own fields: its value is
    searched."""
    kept = CARDS.message({"start": {field: {"code": VISA, "id": 4, VISA: "x"}}})

    assert kept["start"][field] == {
        "code": "[card number]",
        "id": 4,
        "[card number]": "x",
    }


@pytest.mark.parametrize("field", ["name", "tool", "code", "status", "voice", "item"])
def test_a_name_or_a_code_may_hold_words(field: str) -> None:
    """A card number is removed from a field whose usual values are ids or codes."""
    kept = ALL.message({field: "4111 1111 1111 1111"})

    assert kept == {field: "[card number]"}
    assert ALL.message({field: "item_AbC"}) == {field: "item_AbC"}


def test_the_name_of_a_mark_is_an_id() -> None:
    """A trace with redacted digits can be replayed: the marks are known again."""
    message = {"event": "mark", "mark": {"name": "m4711"}}
    forged = {"event": "mark", "mark": {"name": VISA}}

    assert ALL.message(message) == message
    assert ALL.message(forged)["mark"] == {"name": "[card number]"}


def test_the_texts_of_one_message_have_a_limit() -> None:
    """A hostile model cannot stop all calls with a message of many long texts. What was
    not searched is removed; ids and types stay."""
    texts = ["x" * MAX_CHARS] * (MAX_MESSAGE_CHARS // MAX_CHARS)
    content = [{"type": "text", "id": "i1", "text": text} for text in texts]
    last = {"text": "y", "generated": "yy", "arguments": "{}", "type": "t", "id": "i2"}

    kept = CARDS.message([*content, last])

    assert kept[:-1] == content
    assert kept[-1] == last | dict.fromkeys(
        ("text", "generated", "arguments"), "[removed]"
    )
    assert CARDS.value([*texts, 5, None]) == [*texts, "[removed]", None]
    assert len(set(CARDS.value(["x"] * MAX_CHARS))) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["type", "delta", "text", "generated", "digit", "audio"])
            | st.text(),
            inner,
        )
    ),
)


@given(JSON)
def test_any_message_can_be_redacted(message: Any) -> None:
    """No message of either side raises while it is redacted."""
    kept = ALL.message(message)

    assert type(kept) is type(message) or isinstance(kept, str | list)
    msgspec.json.encode(ALL.value(message))


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (
            {"type": "response.output_audio_transcript.delta", "delta": "41"},
            {"type": "response.output_audio_transcript.delta", "delta": ""},
        ),
        (
            {"type": "response.function_call_arguments.delta", "delta": "11"},
            {"type": "response.function_call_arguments.delta", "delta": ""},
        ),
        (
            {"type": "x.transcription.segment", "text": "4111"},
            {"type": "x.transcription.segment", "text": ""},
        ),
        ({"type": "message", "text": "4111"}, {"type": "message", "text": "4111"}),
        ({"type": "odd", "delta": 5}, {"type": "odd", "delta": 5}),
        ({"type": 5, "delta": "x"}, {"type": 5, "delta": "x"}),
    ],
)
def test_text_deltas_are_removed(message: Any, kept: Any) -> None:
    """A single delta cannot be judged; the complete text follows later."""
    assert CARDS.message(message) == kept


def test_audio_becomes_silence_of_the_same_length() -> None:
    """A spoken number is in the audio, too."""
    delta = payload(100)
    message = {"type": "response.output_audio.delta", "delta": delta}

    kept = KEYS.message(message)["delta"]

    assert base64.b64decode(kept) == b"\xff" * len(base64.b64decode(delta))
    assert KEYS.message({"media": {"payload": delta}}) == {"media": {"payload": kept}}


# --- items ---


def test_the_call_keeps_its_original_items() -> None:
    """The agent still knows the card number that it has to charge."""
    said = HistoryItem("u1", "user", text=VISA)
    called = HistoryItem("c1", "tool_call", arguments=f'{{"card":{VISA}}}')
    output = HistoryItem("o1", "tool_output", text=f'{{"charged":{VISA}}}')
    answer = HistoryItem("a1", "assistant", text="", generated=f"It is {VISA}.")
    copies = Copies(CARDS)

    kept = copies.of([said, called, output, answer])

    assert [it.text for it in kept] == ["[card number]", "", kept[2].text, ""]
    assert kept[1].arguments == '{"card":"[card number]"}'
    assert kept[2].text == '{"charged":"[card number]"}'
    assert kept[3].generated == "It is [card number]."
    assert said.text == VISA


def test_only_changed_items_are_redacted_again() -> None:
    """A conversation is stored twice a second, however long it is."""
    items = [HistoryItem("u1", "user", text="hello"), HistoryItem("u2", "user")]
    copies = Copies(CARDS)
    first = copies.of(items)
    items[1].text = VISA

    again = copies.of(items)

    assert again[0] is first[0]
    assert [it.text for it in again] == ["hello", "[card number]"]


def test_without_settings_nothing_is_removed() -> None:
    """An operator who names nothing gets every word."""
    nothing = Redaction()
    item = HistoryItem("u1", "user", text=VISA)
    message = {"dtmf": {"digit": "4"}, "delta": VISA}

    assert not nothing
    assert nothing.names == []
    assert nothing.text(VISA) == VISA
    assert nothing.json(f'{{"a": {VISA}}}') == f'{{"a": {VISA}}}'
    assert nothing.message(message) is message
    assert nothing.item(item) is item
    assert Copies(nothing).of([item]) == (item,)


def test_a_trace_names_what_was_removed() -> None:
    """A trace says which settings were applied, but not the pattern."""
    assert ALL.names == ["cards", "keys", "digits"]
    assert SECRET.names == ["pattern"]


@pytest.mark.parametrize("named", [CARDS, ALL])
@pytest.mark.parametrize("piece", ["4 ", "1", "one ", "3 7 ", "x", "o.....", "\u0663 "])
def test_hostile_texts_are_redacted_quickly(named: Redaction, piece: str) -> None:
    """A tool or model that returns very many digits delays no call: 600,000 characters
    in which no card number is found took 5 s."""
    text = piece * (600_000 // len(piece))
    begun = time.process_time()

    kept = named.text(text)

    assert time.process_time() - begun < 0.5
    assert len(kept) < len(text)


def test_many_pieces_with_many_matches_are_redacted_quickly() -> None:
    """A model that sends its answer in thousands of pieces delays no call."""
    begun = time.process_time()

    kept = DIGITS.pieces(["4711", "x"] * 2000)

    assert time.process_time() - begun < 0.5
    assert kept == ["[digits]", "x"] * 2000


def test_a_long_tool_output_stays_json() -> None:
    """A reader of a stored tool output can parse it, and sees its beginning. Digits
    that are written as escapes are found, too."""
    output = msgspec.json.encode({"card": VISA, "text": "x" * MAX_CHARS}).decode()
    escaped = output.replace("4", "\\u0034")

    for written in (output, escaped):
        kept = msgspec.json.decode(CARDS.json(written))
        assert kept.startswith('{"card":"[card number]","text":"xxx')
        assert kept.endswith("xxx[removed]")


def test_the_positions_of_card_numbers_are_found() -> None:
    """The log scrubber checks the characters around them, too."""
    assert list(redaction.card_runs(f"a {VISA} b 1234 c {AMEX}")) == [(2, 18), (28, 43)]


def test_a_key_of_a_sip_call_is_hidden() -> None:
    """It comes as an event of the model's server, and may be a digit of a card."""
    pressed = {"type": "input_audio_buffer.dtmf_event_received", "event": "4"}

    assert CARDS.message(pressed) == pressed | {"event": "[keys]"}
    assert Redaction().message(pressed) == pressed
