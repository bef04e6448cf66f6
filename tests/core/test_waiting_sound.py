"""The sound that a caller hears who waits: when it begins, what stops it, what it is
not counted as."""

import base64
from typing import Any

import pytest

from bridge.audio import g711
from bridge.core.waiting_sound import (
    AHEAD_SECONDS,
    PART_BYTES,
    TONE_EVERY_SECONDS,
    WAIT_SECONDS,
)
from tests.core.phone import (
    Phone,
    SipPhone,
    asks,
    ends,
    events,
    heard,
    notes,
    to_caller,
    told,
)

WAIT_MS = int(1000 * WAIT_SECONDS)
SOUND = bytes(range(256)) * 100  # 3.2 s
MUSIC = base64.b64encode(SOUND).decode()


def waiting(sound: str | None = "", **rules: Any) -> Phone:
    """A quiet caller on a line with a model."""
    phone = Phone(waiting_sound=sound, **rules)
    phone.sound = g711.SILENCE
    return phone.talking()


def asked(sound: str | None = "") -> Phone:
    """The caller has asked something; the model has not answered yet."""
    phone = waiting(sound)
    phone.speaks(400)
    phone.created()
    return phone


def sounds(phone: Phone, ms: int) -> list[str]:
    """What Twilio is sent in this time, without marks."""
    return [it for it in events(phone.frames(ms)) if it != "mark"]


def audio(messages: list[dict[str, Any]]) -> bytes:
    media = [it["media"] for it in messages if it["event"] == "media"]
    return b"".join(base64.b64decode(it["payload"]) for it in media)


# --- when it begins ---


def test_a_slow_answer_has_a_tone() -> None:
    """After 3 s of silence the caller hears that the line works, and again."""
    phone = asked()
    assert sounds(phone, WAIT_MS - 100) == []

    tone = phone.frames(200)

    assert events(tone)[0] == "mark" and "media" in events(tone)
    [note] = notes(tone, "waiting_sound")
    assert note.data["seconds"] == pytest.approx(WAIT_SECONDS, abs=0.05)
    assert audio(to_caller(tone)) == base64.b64decode(g711.comfort_tone())
    again = phone.frames(int(1000 * TONE_EVERY_SECONDS))
    assert audio(to_caller(again)) == audio(to_caller(tone))
    assert not notes(again, "waiting_sound"), "the same wait"


def test_a_slow_tool_has_a_tone() -> None:
    """The time of the call, of the tool and of the next answer is one silence."""
    phone = asked()
    phone.calls_tool("c1")
    phone.done()
    phone.busy(-1, "c1")
    phone.frames(400)
    phone.busy(1, "c1")  # the tool begins a moment after the response
    assert sounds(phone, WAIT_MS - 500) == []

    assert "media" in sounds(phone, 200)
    phone.busy(-1, "c1")
    phone.ask()
    assert sounds(phone, 500) == [], "the tone does not begin again"


def test_the_tone_waits_for_the_end_of_what_the_agent_says() -> None:
    """A caller who still hears the agent hears no tone in its words."""
    phone = asked()
    phone.says(2000)
    phone.calls_tool("c1")
    phone.done()
    assert sounds(phone, 2000 + WAIT_MS - 100) == []

    assert "media" in sounds(phone, 300)


def test_an_answer_that_stalls_in_the_middle_has_a_tone() -> None:
    """Audio that came meanwhile puts the tone off; a stall after it does not last."""
    phone = asked()
    phone.frames(1000)
    phone.says(1500)
    assert sounds(phone, 1500 + WAIT_MS - 200) == []

    assert "media" in sounds(phone, 400)


def test_a_caller_who_waits_for_a_model_hears_tones() -> None:
    """While the model is lost, and none once it is back and owes nothing."""
    phone = waiting()
    phone.loses_model()
    assert sounds(phone, WAIT_MS - 100) == []
    assert "media" in sounds(phone, 200)

    phone.model_back()
    assert sounds(phone, 5000) == []


def test_a_caller_who_waits_for_the_first_model_hears_a_tone() -> None:
    """Twilio has answered the call, so the caller hears no ringing."""
    phone = Phone()
    phone.sound = g711.SILENCE
    phone.start()
    phone.tell("Something.", respond=False)

    assert "media" in sounds(phone, WAIT_MS + 100)


def test_a_failed_answer_that_waits_for_its_retry_has_a_tone() -> None:
    """A rate limit that lasts long is no dead air."""
    phone = asked()
    message = "Please try again in 10s."
    error = {"type": "x", "code": "rate_limit_exceeded", "message": message}
    details = {"type": "failed", "error": error}
    head = {"id": "r1", "status": "failed", "status_details": details}
    phone.model("response.done", response=head)

    assert "media" in sounds(phone, WAIT_MS + 100)


# --- when it does not ---


def test_no_tone_when_nothing_is_owed() -> None:
    """Neither while the caller thinks, nor while the caller speaks."""
    phone = waiting()
    phone.answers(500)
    assert sounds(phone, 5000) == []

    phone.barges_in()
    assert sounds(phone, 5000) == []


def test_each_turn_is_a_silence_of_its_own() -> None:
    """A caller who speaks again, however shortly, is not met by a tone at once."""
    phone = asked()
    phone.frames(WAIT_MS - 200)
    phone.barges_in()
    phone.frames(100)
    phone.falls_silent()
    assert sounds(phone, WAIT_MS - 100) == []

    assert "media" in sounds(phone, 200)


def test_a_caller_who_speaks_to_no_model_is_not_disturbed() -> None:
    """Without a session, no event says that the caller speaks: their audio does."""
    phone = waiting()
    phone.loses_model()
    phone.sound = b"\x55"
    assert sounds(phone, WAIT_MS + 2000) == []

    phone.sound = g711.SILENCE
    assert "media" in sounds(phone, 1000)


def test_no_tone_on_a_lost_stream() -> None:
    """Nobody hears it; the next stream has a silence of its own."""
    phone = asked()
    phone.loses_line()
    assert "media" not in events(phone.wait(WAIT_SECONDS + 1))

    phone.line_back()
    assert "media" not in events(phone.wait(WAIT_SECONDS - 0.5))
    assert "media" in events(phone.wait(0.6))


def test_a_route_without_a_sound() -> None:
    phone = asked(None)

    assert sounds(phone, 9000) == []


# --- what stops it ---


def test_the_answer_stops_it() -> None:
    """What is left of the sound is cleared, so the answer is heard at once, and how
    much was heard of it is known to the frame."""
    phone = asked(MUSIC)
    phone.frames(WAIT_MS + 400)

    first = phone.says(500)

    assert events(first)[:4] == ["clear", "mark", "mark", "media"]
    assert told(first) == []
    more = phone.says(500)
    assert "clear" not in events(more), "once"
    phone.frames(300)
    assert told(phone.barges_in() + phone.echoes()) == [("truncate", "i1", 300)]


def test_the_answer_is_not_put_off_by_a_sound_that_has_ended() -> None:
    phone = asked()
    phone.frames(WAIT_MS + 1000)

    assert events(phone.says(500))[:2] == ["mark", "media"]


def test_the_clear_removes_no_audio_of_the_agent() -> None:
    """If Twilio has not confirmed what the agent said before, the sound is played to
    its end."""
    phone = asked(MUSIC)
    phone.says(500)
    phone.wait(0.5)
    assert "media" in events(phone.wait(WAIT_SECONDS + 0.1)), "and no mark returns"

    assert "clear" not in events(phone.says(500))


def test_an_answer_around_a_tone_is_heard_to_its_end() -> None:
    """The caller hears 400 ms, a tone, and 600 ms: the model believes just that."""
    phone = asked(MUSIC)
    phone.says(400)
    phone.frames(400 + WAIT_MS + 600)
    phone.says(1000)
    phone.frames(600)

    assert told(phone.barges_in() + phone.echoes()) == [("truncate", "i1", 1000)]


@pytest.mark.parametrize("interrupts", [True, False])
def test_the_callers_speech_stops_it(interrupts: bool) -> None:
    """Nobody speaks against music; the model is told of no truncation."""
    phone = asked(MUSIC)
    detection = {"type": "server_vad", "interrupt_response": interrupts}
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.frames(WAIT_MS + 400)

    speech = phone.barges_in()

    assert events(speech) == ["clear", "mark"]
    assert told(speech + phone.echoes()) == []
    assert sounds(phone, 5000) == []


def test_key_tones_stop_it() -> None:
    """A phone menu that listens to keys hears nothing else."""
    phone = asked(MUSIC)
    phone.frames(WAIT_MS + 400)

    assert events(phone.play(100))[:2] == ["clear", "mark"]


def test_a_new_stream_has_none_of_it() -> None:
    phone = asked(MUSIC)
    phone.frames(WAIT_MS + 400)
    phone.loses_line()
    phone.line_back()

    assert "clear" not in events(phone.says(100, response="r2"))


# --- what it is not counted as ---


def test_a_wait_for_the_agents_audio_does_not_include_it() -> None:
    """A tool that waits until the caller has heard the agent must not wait for the
    sound that is played because of the tool."""
    phone = asked(MUSIC)
    phone.says(200)
    phone.item_done()
    phone.calls_tool("c1")
    phone.done()
    phone.frames(200 + WAIT_MS + 400)

    assert heard(phone.when_heard(1) + phone.frames(40)) == [(1, True)]


def test_the_caller_counts_as_silent_only_after_the_wait() -> None:
    """The agent does not ask a caller who waits whether they are still there."""
    phone = waiting("", silent_seconds=2.0)
    phone.busy(1, "c1")
    assert asks(phone.frames(8000)) == 0

    phone.busy(-1, "c1")
    assert asks(phone.frames(1500)) == 0
    assert asks(phone.frames(1000)) == 1


def test_a_call_ends_during_it() -> None:
    phone = asked(MUSIC)
    phone.frames(WAIT_MS + 400)

    assert ends(phone.hangs_up()) == [("caller", "hung_up")]


# --- a file ---


def test_a_file_is_played_again_and_again() -> None:
    """In parts, each sent before the one before it ends: little is cleared, and the
    caller hears no gap."""
    phone = asked(MUSIC)

    sent = audio(to_caller(phone.frames(WAIT_MS + 9000)))

    assert sent == (SOUND * 3)[: len(sent)]
    ahead = 8 * 1000 * AHEAD_SECONDS + PART_BYTES
    assert 9 * 8000 - 8000 < len(sent) <= 9 * 8000 + ahead


def test_a_sip_call_has_no_sound() -> None:
    """The model's server plays the audio, and plays nothing else."""
    phone = SipPhone().talking()
    detection = {"type": "server_vad", "interrupt_response": False}
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.busy(1, "c1")

    assert "media" not in events(phone.wait(WAIT_SECONDS + 1))
    assert events(phone.barges_in()) == []
