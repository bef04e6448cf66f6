"""What an attack on a call's survival found: each mistake as a test.

Scripts of the caller, the model and what breaks; test_lost_model.py has all phases.
"""

from typing import Any

import pytest

from bridge.core.commands import Command, Note
from bridge.core.conversation import LATE_SECONDS
from bridge.core.model_side import PROBE_ID
from bridge.core.redial import AWAY_SECONDS, WAITS
from bridge.core.sessions import (
    CONFIGURE_SECONDS,
    EXPECTED_EVERY_SECONDS,
    EXPECTED_SECONDS,
    PROBE_AFTER_SECONDS,
    PROBE_ANSWER_SECONDS,
)
from tests.core.phone import (
    Phone,
    answering,
    asks,
    dials,
    ends,
    given,
    heard,
    notes,
    only,
    to_caller,
    to_model,
    told,
)

SILENCE = b"\xff"
MANUAL = {
    "audio": {"input": {"format": {"type": "audio/pcmu"}, "turn_detection": None}}
}
HANG_UP, TRANSFER = ("agent", "hung_up"), ("agent", "transferred")
NUMBERS = "One two three four five six seven eight."


def passes(phone: Phone, seconds: float) -> list[Command]:
    """Time passes until something is to be dialled or the call ends."""
    commands: list[Command] = []
    until = phone.now + seconds
    while phone.now < until and not (ends(commands) or dials(commands)):
        commands += phone.wait(0.05)
    return commands


# --- a server that accepts connections, without a session ---


@pytest.mark.parametrize("holds", [0.05, CONFIGURE_SECONDS + 0.1])
def test_a_server_that_accepts_connections_and_nothing_else(holds: float) -> None:
    """It closes at once, or says nothing: the caller hears the fallback after the
    limit, and the server is not dialled without a pause."""
    phone = Phone().talking()
    phone.wait(12.0)
    lost_at = phone.now
    waits: list[float] = []
    commands = phone.loses_model()
    while not ends(phone.log):
        [(seconds, _)] = dials(commands)
        waits.append(seconds)
        commands = passes(phone, seconds) + phone.dialled() + passes(phone, holds)
        if not (ends(commands) or dials(commands)):
            commands = phone.loses_model()

    assert ends(phone.log) == [("model", "lost")]
    waited = phone.now - lost_at
    assert waited == pytest.approx(AWAY_SECONDS, abs=0.2), "plan B is late, or early"
    assert waits == [WAITS[min(n, len(WAITS) - 1)] for n in range(len(waits))]


# --- a response, while an unrelated tool runs ---


def test_a_response_broken_off_while_an_unrelated_tool_runs() -> None:
    """The caller asked something else meanwhile: they get the rest of that response
    when the model is back, and not when the tool is done."""
    phone = Phone().talking()
    phone.calls_tool("c1", response="r0")
    phone.speaks(400)
    phone.created("r2")
    phone.item_added("i2", "assistant")
    phone.words("Our hours are nine ", "i2", "r2")
    phone.says(1000, "i2", "r2")

    back = phone.another_model()

    assert asks(back) == 1, "the caller sits in silence until the tool is done"
    assert only("i2", back) == ["Our hours are nine "]


def test_a_response_that_does_not_come_while_a_tool_runs() -> None:
    """A tool of ours may take minutes, and a mute model is noticed all the same; a tool
    of the model's own server is a part of the response, and may take its time."""
    ours, theirs = Phone().talking(), Phone().talking()
    for phone, call in ((ours, "c1"), (theirs, "")):
        phone.busy(1, call)
        phone.ask()
        phone.frames(int(1000 * LATE_SECONDS) + 100)

    assert notes(ours.log, "answer_late"), "nobody notices while the tool works"
    assert dials(ours.log) == [(0.0, False)]
    assert not notes(theirs.log, "answer_late") and dials(theirs.log) == []


# --- inputs while the stream is lost ---


@pytest.mark.parametrize("then", [None, HANG_UP, TRANSFER])
def test_a_hang_up_while_the_stream_is_lost(then: tuple[str, str] | None) -> None:
    """Nobody has heard the goodbye: the agent is told so, and a caller who comes back
    finds the call."""
    phone = Phone().talking()
    phone.answers(300, words="Goodbye.")
    phone.frames(1000)
    phone.loses_line()
    phone.now += 0.2

    asked = phone.when_heard(1, then=then)
    waited = phone.wait(2.0)

    assert heard(asked) == [(1, False)]
    assert ends(asked + waited) == [], "the caller is back to a call that has ended"
    assert asks(phone.line_back()) == 1


def test_tones_that_nobody_hears() -> None:
    """A tool that sends keys learns that they did not arrive, whether the stream was
    lost before them or during them."""
    before, amidst = Phone().talking(), Phone().talking()
    before.loses_line()
    played = before.play(300) + before.when_heard(1, stoppable=False)
    amidst.play(2000)
    amidst.when_heard(2, stoppable=False)
    lost = amidst.frames(500) + amidst.loses_line()

    assert to_caller(played) == [] and heard(played) == [(1, False)]
    assert heard(lost) == [(2, False)]


# --- moved to another instance ---


@pytest.mark.parametrize("away", ["model", "line"])
def test_a_call_moved_while_a_side_is_away(away: str) -> None:
    """The caller noticed that, so the next instance does not go on in silence."""
    phone = Phone().talking()
    phone.answers(300, words="Hello.")
    phone.frames(1500)
    commands = phone.loses_model() if away == "model" else phone.loses_line()
    phone.wait(1.0)

    commands = phone.hand_over()
    while not ends(commands):
        assert away == "model", "who is away is not waited for"
        commands = phone.wait(0.5)

    assert ends(commands) == [("bridge", "handed_over")]
    assert not phone.talk.ended_quietly, "nobody speaks to a caller who has waited"


# --- probes ---


@pytest.mark.parametrize("answer", ["session.updated", "error", None])
def test_a_server_that_goes_mute(answer: str | None) -> None:
    """A server that has answered a probe, even with an error, is replaced after 5 + 4 s
    of silence; one that never did is kept, and probed once."""
    phone = Phone()
    phone.gives_signs, phone.sound = False, SILENCE
    phone.talking()
    if answer == "error":
        assert phone.refused("unknown_parameter", PROBE_ID) == []
    elif answer:
        phone.model(answer, session=phone.session)
    mute_at = phone.now
    commands: list[Command] = []
    while not dials(commands) and phone.now < mute_at + 30:
        commands += phone.frames(20)

    probed = probes(commands)
    if answer is None:
        assert dials(commands) == [] and probed == [], "a session that works is left"
    else:
        mute = phone.now - mute_at
        assert dials(commands) == [(0.0, False)], "the caller speaks to nobody"
        assert mute == pytest.approx(
            PROBE_AFTER_SECONDS + PROBE_ANSWER_SECONDS, abs=0.1
        )
        assert len(probed) == 1


@pytest.mark.parametrize("expected", ["loud", "asked", "speaks", "manual"])
def test_a_server_that_goes_mute_when_an_event_is_due(expected: str) -> None:
    """Portkey keeps its side open when it has lost the model. A caller who speaks to
    nobody, or an answer that was requested, is noticed sooner: after 2 + 4 s. A server
    that hears the caller, or that does not detect turns, is silent for good reason."""
    phone = Phone().talking()
    phone.frames(200)
    if expected == "manual":
        phone.model("session.updated", session=MANUAL)
    if expected == "speaks":
        phone.barges_in()
    phone.gives_signs = False
    if expected == "asked":
        phone.sound = SILENCE
        phone.ask()
    mute_at = phone.now
    commands: list[Command] = []
    while not dials(commands) and phone.now < mute_at + 30:
        commands += phone.frames(20)

    due = EXPECTED_SECONDS if expected in ("loud", "asked") else PROBE_AFTER_SECONDS
    mute = phone.now - mute_at
    assert mute == pytest.approx(due + PROBE_ANSWER_SECONDS, abs=EXPECTED_EVERY_SECONDS)


def test_a_caller_who_becomes_loud_is_noticed() -> None:
    """It is checked again and again."""
    phone = Phone().talking()
    phone.gives_signs, phone.sound = False, SILENCE
    phone.frames(int(1000 * EXPECTED_SECONDS) + 500)
    before = len(probes(phone.log))
    phone.sound = b"\x55"

    phone.frames(int(1000 * EXPECTED_EVERY_SECONDS) + 100)
    assert len(probes(phone.log)) == before + 1


def probes(commands: list[Command]) -> list[Any]:
    asked = [event.get("event_id") for event in to_model(commands)]
    return [event_id for event_id in asked if event_id == PROBE_ID]


# --- texts ---


def test_a_replayed_response_shown_between_its_cut_and_the_fence() -> None:
    """The server shows an item that it was given when the caller has just cut it: what
    they heard is recorded once, and the next session is given that."""
    phone = Phone().talking()
    phone.answers(4000, words=NUMBERS)
    phone.frames(500)
    phone.another_model()
    phone.frames(1000)

    cut = phone.interrupt()
    phone.item_added("i1", "assistant", {"type": "output_text", "text": NUMBERS})
    cut += phone.frames(200)

    [said] = notes(cut, "said")
    words = said.private["heard"]
    assert 0 < len(words) < len(NUMBERS) and NUMBERS.startswith(words)
    item = phone.talk.history.get("i1")
    assert item is not None and (item.text, item.cut) == (words, True)
    assert ("delete", "i1", None) in told(cut)
    assert only("i1", phone.another_model()) == [words], "words are doubled"


def test_items_edited_while_the_model_is_away() -> None:
    """No session gets what user code has removed or replaced."""
    phone = Phone().talking()
    for item, text in (("u1", "My card is 4242."), ("u2", "Bye"), ("u3", "Hello.")):
        phone.item_added(item, "user", {"type": "input_text", "text": text})
    phone.loses_model()

    assert phone.edit(["u1"], {"u2": "By"}) == []

    back = phone.model_back()
    assert given(back) == [("u2", "user", "By"), ("u3", "user", "Hello.")]
    assert given(phone.another_model()) == given(back), "what was removed is back"


def test_unheard_text_that_was_cut_is_known_as_cut() -> None:
    """An instance may die between a barge-in and its fence: no more was heard of the
    response than at the barge-in, however long ago that is."""
    phone = answering(4000, NUMBERS)
    phone.frames(1000)
    phone.now += 0.1
    phone.barges_in()
    [then] = phone.talk.playing(phone.now)
    phone.now += 0.8

    assert phone.talk.playing(phone.now) == [then] and then.cut
    assert then.heard < then.received
    assert not [it for it in phone.log if isinstance(it, Note) and it.name == "said"]


def test_a_call_is_not_moved_before_its_session_has_understood_the_audio() -> None:
    """What the caller said while the model was away is with a session that must still
    understand it; no other instance has the audio."""
    phone = Phone().talking()
    phone.loses_model()
    phone.frames(2000)
    phone.model_back()

    assert ends(phone.hand_over()) == []
    phone.frames(3200)

    assert ends(phone.log) == [("bridge", "handed_over")]
