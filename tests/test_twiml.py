"""The TwiML documents, parsed as Twilio would parse them."""

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twilio.twiml.voice_response import VoiceResponse  # type: ignore[import-untyped]

import twiml
from tests.support.locks import ROOT
from twiml import spoken_texts
from twiml.phone_numbers import PhoneNumber

STREAM = "wss://bridge.example.com/media/abc"
HOSTILE = "\"><Dial>+900</Dial><!-- & ' ]]> \t\n é 🚪"

# All characters that XML can contain. A bare carriage return must arrive too.
XML_TEXT = st.text(
    st.characters(
        exclude_categories=("Cs", "Cc"),
        include_characters="\t\n\r",
        exclude_characters="\ufffe\uffff",
    ),
    max_size=200,
)


def parsed(document: str) -> ElementTree.Element:
    root = ElementTree.fromstring(document)
    assert root.tag == "Response"
    return root


def verbs(document: str) -> list[str]:
    return [verb.tag for verb in parsed(document)]


def parameters(document: str) -> dict[str, str]:
    return {
        p.attrib["name"]: p.attrib["value"] for p in parsed(document).iter("Parameter")
    }


def test_connect_streams_the_call_and_sets_the_action() -> None:
    """An incoming call is streamed, and `action_url` is requested when the stream
    ends."""
    document = twiml.connect(
        STREAM,
        action_url="/voice/next",
        status_callback_url="https://bridge.example.com/stream-status",
        parameters={"token": "t1", "From": "+14155550100"},
    )

    (verb,) = parsed(document)
    assert (verb.tag, verb.attrib) == (
        "Connect",
        {"action": "/voice/next", "method": "POST"},
    )
    (stream,) = verb
    assert stream.attrib == {
        "url": STREAM,
        "statusCallback": "https://bridge.example.com/stream-status",
        "statusCallbackMethod": "POST",
    }
    assert parameters(document) == {"token": "t1", "From": "+14155550100"}


def test_no_verb_follows_the_connect() -> None:
    """The caller never hears a silent open line after the agent has gone."""
    assert verbs(twiml.connect(STREAM, action_url="/voice/next")) == ["Connect"]


def test_markup_in_a_value_is_escaped() -> None:
    """A caller's name that contains markup cannot make Twilio dial a number."""
    document = twiml.connect(STREAM, action_url=None, parameters={HOSTILE: HOSTILE})

    assert [element.tag for element in parsed(document).iter()] == [
        "Response",
        "Connect",
        "Stream",
        "Parameter",
    ]
    assert parameters(document) == {HOSTILE: HOSTILE}


@settings(deadline=None)  # a busy machine may be slow
@given(name=XML_TEXT.filter(bool), value=XML_TEXT.filter(bool))
def test_every_parameter_arrives_as_it_was_given(name: str, value: str) -> None:
    """The agent gets the webhook's values unchanged, in any script."""
    document = twiml.connect(STREAM, action_url=None, parameters={name: value})

    assert parameters(document) == {name: value}


@settings(deadline=None)
@given(text=XML_TEXT.filter(str.strip))
def test_every_sentence_arrives_as_text(text: str) -> None:
    """Plan B speaks its sentence, whatever characters a user put into it."""
    say = parsed(twiml.busy(text))[0]

    # XML reads a bare carriage return as a line feed; both sound the same.
    assert say.text == text.replace("\r\n", "\n").replace("\r", "\n")


def test_an_empty_parameter_is_left_out() -> None:
    """A withheld number gives no parameter instead of an empty one."""
    document = twiml.connect(
        STREAM, action_url=None, parameters={"From": "", "To": "+1"}
    )

    assert parameters(document) == {"To": "+1"}


@pytest.mark.parametrize("length", [1, 489])
def test_a_parameter_of_the_maximum_length_is_sent(length: int) -> None:
    """A long parameter still arrives with the call."""
    document = twiml.connect(
        STREAM, action_url=None, parameters={"n" * 10: "v" * length}
    )

    assert len(parameters(document)["n" * 10]) == length


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("n" * 10, "v" * 490, "500 characters"),
        ("", "v", "no name"),
        ("n", "a\x00b", "XML cannot carry"),
        ("n\x01", "v", "XML cannot carry"),
        ("n", "\ud800", "XML cannot carry"),
    ],
)
def test_parameters_that_twilio_would_refuse(name: str, value: str, told: str) -> None:
    """The developer gets an error, instead of a caller whose call is dropped."""
    with pytest.raises(ValueError, match=told):
        twiml.connect(STREAM, action_url=None, parameters={name: value})


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://bridge.example.com/media", "not of the form wss://"),
        ("wss:///media", "not of the form wss://"),
        ("bridge.example.com/media", "not of the form wss://"),
        ("wss://bridge.example.com/media?token=1", "query string"),
        ("wss://bridge.example.com/media?", "query string"),
        ("wss://bridge.example.com/media#a", "fragment"),
        ("wss://bridge.example.com/me dia", "space"),
        ("", "not of the form wss://"),
    ],
)
def test_stream_urls_that_twilio_would_not_dial(url: str, told: str) -> None:
    """Twilio would drop a query string; the mistake is reported before any call."""
    with pytest.raises(ValueError, match=told):
        twiml.connect(url, action_url=None)


def test_a_ws_url_is_allowed() -> None:
    """`make demo` places its call over ws:// on this machine."""
    document = twiml.connect("ws://127.0.0.1:8080/media", action_url=None)

    assert 'url="ws://127.0.0.1:8080/media"' in document


@pytest.mark.parametrize("url", ["next", "//host/next", "ftp://host/next", "/a b", ""])
def test_action_urls_that_twilio_could_not_request(url: str) -> None:
    """A mistyped action URL would leave the caller on a dead line after the stream."""
    with pytest.raises(ValueError, match="url"):
        twiml.connect(STREAM, action_url=url)


def test_a_status_callback_is_absolute() -> None:
    """Twilio accepts no relative status callback."""
    with pytest.raises(ValueError, match="status callback"):
        twiml.connect(STREAM, action_url=None, status_callback_url="/stream-status")


def test_the_bin_document_has_placeholders_for_the_numbers() -> None:
    """With a TwiML Bin the agent still gets both numbers."""
    document = twiml.bin_document(STREAM)

    assert parameters(document) == {"From": "{{From}}", "To": "{{To}}"}
    assert verbs(document) == ["Connect"]
    assert "action" not in parsed(document)[0].attrib


def test_hang_up() -> None:
    """The document does nothing but hang up."""
    assert verbs(twiml.hang_up()) == ["Hangup"]


def test_reject_plays_the_busy_tone() -> None:
    """Twilio's own busy tone: the call is never answered, so it costs nothing."""
    theirs = VoiceResponse()
    theirs.reject(reason="busy")

    assert twiml.reject() == str(theirs)
    (reject,) = parsed(twiml.reject())
    assert (reject.tag, reject.attrib) == ("Reject", {"reason": "busy"})


def test_a_transfer_rings_until_it_is_answered() -> None:
    """The caller hears ringing instead of silence while the other phone rings."""
    document = twiml.transfer(
        "+1 (415) 555-0199", caller_id="+14155550100", action_url="/voice/next"
    )

    (dial,) = parsed(document)
    assert dial.attrib == {
        "answerOnBridge": "true",
        "timeout": "20",
        "callerId": "+14155550100",
        "action": "/voice/next",
        "method": "POST",
    }
    assert [(noun.tag, noun.text) for noun in dial] == [("Number", "+14155550199")]


def test_a_transfer_shows_the_callers_number_unless_told_otherwise() -> None:
    """The person called sees the caller's number."""
    (dial,) = parsed(twiml.transfer("+14155550199", timeout_seconds=30))

    assert dial.attrib == {"answerOnBridge": "true", "timeout": "30"}


@pytest.mark.parametrize(
    "number", ["", "911", "4155550199", "+0155550199", "+1415555x199", "+" + "1" * 16]
)
def test_a_transfer_needs_a_valid_number(number: str) -> None:
    """A tool call with an invented number fails before the caller is moved."""
    with pytest.raises(ValueError, match=r"E\.164"):
        twiml.transfer(number)


@pytest.mark.parametrize(
    "number", ["+1415555010", "+141555501001", "+44 20 7183", "+999 123456789"]
)
def test_a_number_that_no_country_has_is_refused(number: str) -> None:
    """A digit that is missing or too many is found where the number is written, not
    when a caller is to be put through. The form alone lets it pass."""
    assert PhoneNumber.of_caller(number.replace(" ", "")) is not None
    with pytest.raises(ValueError, match=r"E\.164"):
        twiml.transfer(number)


@pytest.mark.parametrize("seconds", [0, 4, 601, -1])
def test_ringing_has_limits(seconds: int) -> None:
    """No caller listens to ringing for ever."""
    with pytest.raises(ValueError, match="5 to 600"):
        twiml.transfer("+14155550199", timeout_seconds=seconds)


@pytest.mark.parametrize("document", [twiml.busy, twiml.sorry])
def test_busy_and_sorry_speak_then_hang_up(document: Callable[[], str]) -> None:
    """A caller who cannot be served hears the reason before the call ends."""
    assert verbs(document()) == ["Say", "Hangup"]


def test_sorry_dials_the_fallback_number() -> None:
    """If the agent fails, the caller hears so and is connected to a person."""
    document = twiml.sorry(fallback_number="+14155550199")

    root = parsed(document)
    assert [verb.tag for verb in root] == ["Say", "Dial", "Hangup"]
    assert root[0].text == spoken_texts.SORRY_CONNECTING
    assert root[1][0].text == "+14155550199"


def test_sorry_without_a_fallback_promises_no_connection() -> None:
    """Without a fallback number no connection is promised."""
    assert parsed(twiml.sorry())[0].text == spoken_texts.SORRY


def test_busy_dials_the_fallback_number() -> None:
    """If no instance takes the call, the caller hears so and is connected to a
    person."""
    document = twiml.busy(fallback_number="+14155550199", language="en-GB")

    say, dial, hangup = parsed(document)
    assert (say.text, say.attrib) == (
        spoken_texts.BUSY_CONNECTING,
        {"language": "en-GB"},
    )
    assert (dial[0].text, hangup.tag) == ("+14155550199", "Hangup")


def test_hold_speaks_pauses_and_redirects() -> None:
    """The caller hears that they must wait. After a pause Twilio asks again, with the
    place in the queue unchanged."""
    url = "https://bridge.example.com/voice?a=b&waiting=1-2"
    document = twiml.hold("Un instant.", ask_url=url, pause_seconds=8, language="fr-FR")

    say, pause, redirect = parsed(document)
    assert (say.text, say.attrib) == ("Un instant.", {"language": "fr-FR"})
    assert (pause.tag, pause.attrib) == ("Pause", {"length": "8"})
    assert (redirect.tag, redirect.text) == ("Redirect", url)
    assert redirect.attrib == {"method": "POST"}


def test_hold_without_a_sentence_is_silent() -> None:
    """Between two sentences there is silence."""
    document = twiml.hold(None, ask_url="/voice", pause_seconds=1)

    assert verbs(document) == ["Pause", "Redirect"]


@pytest.mark.parametrize(
    ("text", "url", "seconds"),
    [
        ("", "/voice", 5),
        ("Wait.", "voice", 5),
        ("Wait.", "https:///voice", 5),
        ("Wait.", "/voice", 0),
        ("Wait.", "/voice", 61),
    ],
)
def test_invalid_holds_are_errors(text: str, url: str, seconds: int) -> None:
    """No caller is left on a line that is silent for ever."""
    with pytest.raises(ValueError, match=r"text|url|seconds"):
        twiml.hold(text, ask_url=url, pause_seconds=seconds)


def test_texts_in_another_language() -> None:
    """A French number apologises in French."""
    say = parsed(twiml.sorry("Toutes nos excuses.", language="fr-FR"))[0]

    assert (say.text, say.attrib) == ("Toutes nos excuses.", {"language": "fr-FR"})


@pytest.mark.parametrize("text", ["", " \n", "x" * 4097, "bell\x07"])
def test_texts_that_cannot_be_spoken(text: str) -> None:
    """The caller never hears an error tone instead of a sentence."""
    with pytest.raises(ValueError, match="text"):
        twiml.busy(text)


def test_a_transfer_reaches_an_extension_or_a_sip_uri() -> None:
    """The caller reaches a desk behind a switchboard, or a phone without a number."""
    extension = twiml.transfer("+14155550100", digits="ww12#", screen_url="/screen")
    sip = twiml.transfer("sip:desk@pbx.example;transport=tls")

    assert 'sendDigits="ww12#"' in extension and 'url="/screen"' in extension
    assert ">sip:desk@pbx.example;transport=tls</Sip>" in sip


@pytest.mark.parametrize(
    ("number", "digits"),
    [
        ("sip:desk@pbx.example", "1"),
        ("sip:desk@pbx.example?X-A=1&B=2", ""),
        ("sip:desk", ""),
        ("sip:d@" + "a" * 300, ""),
        ("+14155550100", "1x"),
        ("+14155550100", "1" * 33),
    ],
)
def test_a_target_that_twilio_would_refuse(number: str, digits: str) -> None:
    """The mistake is reported before the caller waits for a leg that cannot exist."""
    with pytest.raises(ValueError):
        twiml.transfer(number, digits=digits)


def test_the_person_who_answers_hears_a_text_first() -> None:
    """With a key to press, silence ends the leg; without, the caller is connected."""
    asked = twiml.whisper("", accept_url="/accept", language="de-DE")

    assert asked.index("<Gather") < asked.index("Press 1") < asked.index("<Hangup")
    assert "Hangup" not in twiml.whisper("Ann is on the line.")
    assert "<Response />" in twiml.put_through()


def test_the_conference_of_a_warm_transfer() -> None:
    """It is silent until both are there, and ends when one leaves; then the next step
    is asked for, or the call ends."""
    caller = twiml.conference("warm-1", action_url="/voice/next?once=a")
    person = twiml.conference("warm-1")

    for document in (caller, person):
        assert 'beep="false"' in document and 'waitUrl=""' in document
        assert 'startConferenceOnEnter="true"' in document
        assert 'endConferenceOnExit="true"' in document
        assert ">warm-1</Conference>" in document
    assert 'action="/voice/next?once=a"' in caller and "action" not in person


def test_a_person_is_told_who_calls() -> None:
    """Without a text, the next document follows at once."""
    told = twiml.tell("Ann calls.", then_url="/answer", language="en-GB")

    assert told.index("Ann calls.") < told.index("<Redirect")
    assert "<Say" not in twiml.tell("", then_url="/answer")


def test_the_form_of_a_number_is_written_once() -> None:
    """A second copy would accept other numbers after the next change of the first. The
    fakes share no code with the bridge."""
    form = "[1-9][0-9]{6,14}"
    files = [it for name in ("bridge", "twiml") for it in (ROOT / name).rglob("*.py")]
    own = [it for it in files if "sim" not in it.parts]
    found = [it.name for it in own if form in it.read_text("utf-8")]
    assert found == ["phone_numbers.py"]
