"""A greeting that cannot be cut: heard to its end; what the caller says is kept."""

import base64
from typing import Any

from bridge.core.commands import Command, Interrupted, ToCaller
from bridge.core.rules import BROKEN_OFF, CUT_OFF, Recording
from tests.core.phone import (
    Phone,
    SipPhone,
    appended,
    asks,
    events,
    given,
    notes,
    said_to_model,
    to_caller,
    told,
)


def protected(**rules: Any) -> Phone:
    return Phone("Say it.", greeting_interruptible=False, **rules).talking()


def greeted(ms: int = 1000) -> Phone:
    """The greeting has been generated and is to be heard."""
    phone = protected()
    phone.answers(ms)
    return phone


def kept(phone: Phone, ms: int) -> list[Command]:
    """The caller's audio of this time does not reach the model."""
    commands = phone.frames(ms)
    assert appended(commands) == b""
    return commands


def test_the_model_hears_the_caller_after_the_greeting() -> None:
    """All of it, in order: also what was said before the session was ready."""
    phone = greeted(1000)
    kept(phone, 980)

    heard = phone.frames(40)

    assert len(appended(heard)) == 8 * (100 + 1000 + 20)
    [note] = notes(heard, "greeting_heard")
    assert note.data["held_ms"] == 1080
    assert len(appended(phone.frames(20))) == 8 * 20, "from then on at once"
    assert "clear" in events(phone.answers(500, "i2", "r2") + phone.barges_in())


def test_a_key_does_not_cut_it() -> None:
    """The keys are answered after it."""
    phone = greeted()
    keys = phone.presses("1#")

    assert "clear" not in events(keys)
    assert said_to_model(keys)[0][0] == "user" and asks(keys) == 1
    kept(phone, 500)


def test_what_the_agent_says_next_can_be_cut() -> None:
    """The greeting ends where its own audio ends, not when nothing more is queued."""
    phone = greeted()
    phone.tell("Go on.")
    phone.answers(3000, "i2", "r2")
    kept(phone, 980)

    assert appended(phone.frames(40))


def test_a_greeting_that_failed_is_said_again_and_protected() -> None:
    phone = protected()
    error = {"type": "x", "code": "server_error", "message": ""}
    details = {"type": "failed", "error": error}
    head = {"id": "r1", "status": "failed", "status_details": details}
    phone.created("r1")
    assert asks(phone.model("response.done", response=head)) == 1
    phone.answers(1000, "i2", "r2")
    kept(phone, 980)

    assert appended(phone.frames(40))


def test_a_greeting_that_never_comes_holds_nobody_back() -> None:
    """A guardrail has stopped it, and nothing else is owed."""
    phone = protected()
    phone.created("r1")
    phone.says(200)

    assert appended(phone.interrupt() + phone.done("r1") + phone.echoes())


def test_a_session_that_is_lost_meanwhile() -> None:
    """The next session gets the caller's audio, once the greeting was heard."""
    phone = greeted()
    kept(phone, 500)
    phone.loses_model()
    phone.frames(600)

    assert len(appended(phone.model_back())) == 8 * 1200


def test_a_greeting_may_be_cut_by_default() -> None:
    phone = Phone("Say it.").talking()
    phone.answers(1000)

    assert appended(phone.frames(20))


def test_a_resumed_call_is_not_greeted_again() -> None:
    phone = protected(word="Go on.")

    assert appended(phone.frames(20))


def test_the_audio_of_a_sip_call_cannot_be_held() -> None:
    phone = SipPhone("Say it.", greeting_interruptible=False).talking()

    assert not phone.talk._call.caller.held_back


# --- recordings ---

SOUND = base64.b64encode(bytes(range(200)) * 40).decode()
"""One second."""


def recording(interruptible: bool = True, id: str = "rec") -> Recording:
    return Recording(id, SOUND, "One two three four", interruptible)


def called(*recordings: Recording, **rules: Any) -> Phone:
    """A call whose model is not ready yet."""
    phone = Phone(recordings=recordings, **rules)
    phone.start()
    return phone


def sent(commands: list[Command]) -> bytes:
    media = [it["media"] for it in to_caller(commands) if it["event"] == "media"]
    return b"".join(base64.b64decode(it["payload"]) for it in media)


def test_a_recording_is_heard_before_the_model_is_ready() -> None:
    """The model is then told of it, as of its own words, and asked for nothing."""
    phone = Phone(recordings=(recording(),))

    assert sent(phone.start()) == base64.b64decode(SOUND)
    ready = phone.frames(400) + phone.ready()
    assert given(ready) == [("rec", "assistant", "One two three four")]
    assert asks(ready) == 0
    said = phone.frames(1000)
    assert notes(said, "said")[0].data["heard_ms"] == 1000 and told(said) == []
    assert [it.text for it in phone.talk.history.items] == ["One two three four"]


def test_a_recording_that_is_interrupted() -> None:
    """The model is told the words that were heard."""
    phone = called(recording())
    phone.frames(100)
    phone.ready()
    phone.frames(400)

    cut = phone.barges_in() + phone.echoes()

    assert "clear" in events(cut)
    assert said_to_model(cut) == [("assistant", "One two")]
    assert told(cut) == [("delete", "rec", None)]


def test_a_key_interrupts_a_recording_before_the_model_is_ready() -> None:
    """No listener of a session is told: there is no session."""
    phone = called(recording())
    phone.frames(500)

    cut = phone.presses("1#") + phone.echoes()

    assert "clear" in events(cut) and not any(isinstance(it, Interrupted) for it in cut)
    ready = phone.frames(40) + phone.ready()
    assert given(ready)[0] == ("rec", "assistant", "One two")


def test_a_notice_that_cannot_be_cut_before_the_greeting() -> None:
    """The agent greets behind it, and can be interrupted then."""
    phone = called(recording(interruptible=False), greeting="Go.")
    phone.frames(100)
    assert asks(phone.ready()) == 1
    phone.answers(3000)
    kept(phone, 880)

    heard = phone.frames(60)

    assert len(appended(heard)) == 8 * 1040
    assert "clear" in events(phone.barges_in())


def test_a_notice_and_a_greeting_that_cannot_be_cut() -> None:
    phone = called(
        recording(interruptible=False), greeting="Go.", greeting_interruptible=False
    )
    phone.frames(100)
    phone.ready()
    phone.answers(1000)
    kept(phone, 1880)

    assert appended(phone.frames(40))


def test_a_notice_that_ends_before_the_model_is_ready() -> None:
    phone = called(recording(interruptible=False))
    assert notes(phone.frames(1100), "greeting_heard")

    assert len(appended(phone.ready())) == 8 * 1100


def test_recordings_are_sent_in_small_messages() -> None:
    phone = Phone(recordings=(recording(), recording(id="two")))

    started = phone.start()

    assert max(len(it.text) for it in started if isinstance(it, ToCaller)) < 3000
    assert sent(started) == base64.b64decode(SOUND) * 2


def test_a_sip_call_has_no_recording() -> None:
    phone = SipPhone(recordings=(recording(interruptible=False),)).talking()

    assert events(phone.log) == []


# --- the stream is lost meanwhile ---


def test_a_notice_is_heard_to_its_end_on_the_next_stream() -> None:
    """From its beginning. The agent is not told, then or later, that it was cut off
    itself, and greets once."""
    phone = called(recording(interruptible=False), greeting="Go.")
    phone.frames(300)
    phone.loses_line()

    assert sent(phone.line_back()) == base64.b64decode(SOUND)
    ready = phone.frames(100) + phone.ready()
    texts = [("assistant", "One"), ("assistant", "One two three four")]
    assert said_to_model(ready) == [*texts, ("system", "Go.")]
    assert asks(ready) == 1
    phone.answers(500)
    kept(phone, 880)
    assert appended(phone.frames(700))
    assert ("system", BROKEN_OFF) not in said_to_model(phone.another_model())


def test_a_notice_that_is_cut_off_after_the_model_was_ready() -> None:
    """The agent, whose greeting was not heard, knows that; the notice comes first."""
    phone = called(recording(interruptible=False), greeting="Go.")
    phone.frames(100)
    phone.ready()
    phone.answers(500)
    phone.loses_line()
    phone.wait(1.0)

    back = phone.line_back()

    assert sent(back) == base64.b64decode(SOUND)
    assert said_to_model(back) == [("system", CUT_OFF)]
    phone.answers(500, "i2", "r2")
    kept(phone, 980)
    assert appended(phone.frames(40))


def test_a_recording_that_was_heard_is_not_played_again() -> None:
    phone = called(recording(interruptible=False), recording(id="two"))
    phone.frames(1100)
    phone.loses_line()

    assert sent(phone.line_back()) == base64.b64decode(SOUND)
    phone.frames(1100)
    phone.loses_line()
    assert sent(phone.line_back("MZ0002")) == b""
    ids = [it.id for it in phone.talk.history.items]
    assert ids == ["rec", "two", "two_1"]


def test_a_greeting_that_cannot_be_cut_goes_on_after_a_lost_stream() -> None:
    """The agent continues it, and that cannot be cut either."""
    phone = greeted()
    kept(phone, 500)
    phone.loses_line()
    assert said_to_model(phone.line_back()) == [("system", CUT_OFF)]
    phone.answers(500, "i2", "r2")
    kept(phone, 480)

    assert appended(phone.frames(40))
