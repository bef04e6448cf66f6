"""The routes file: which route a call gets, and every mistake with its line."""

import base64
import wave
from pathlib import Path
from typing import Any

import pytest

from bridge.agent.approvals import ApprovalRule
from bridge.agent.live import CallFacts, Transfer
from bridge.app import routes, yaml_lines
from bridge.app.recordings import OFF, TONE, Sound
from bridge.app.route_types import Notice, RouteGreeting
from bridge.app.routes import (
    Cost,
    HangUpAction,
    ReportTarget,
    Route,
    Routes,
    RoutesError,
    Silence,
    TellAction,
    WhenFull,
)
from bridge.core.rules import SILENT, Prices
from bridge.model.session_settings import SessionSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OURS, OTHER, THEIRS = "+14155550100", "+14155550101", "+14155550177"


def load(folder: Path, text: str) -> Routes:
    path = folder / "routes.yaml"
    path.write_text(text, "utf-8")
    return routes.load(path)


def one(folder: Path, text: str) -> Route:
    """The only route of a file with these lines below `- name: a`."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    [route] = load(folder, f"routes:\n  - name: a\n{body}").routes
    return route


def mistakes(folder: Path, text: str) -> list[str]:
    """The mistakes of a file, without the name of the file."""
    with pytest.raises(RoutesError) as refused:
        load(folder, text)
    lines = refused.value.mistakes
    assert str(refused.value) == "\n".join(lines)
    name = f"{folder / 'routes.yaml'}:"
    assert all(line.startswith(name) for line in lines)
    return [line.removeprefix(name) for line in lines]


def session(**settings: Any) -> SessionSettings:
    return SessionSettings.read(settings)


def inbound(ours: str = OURS, **parameters: str) -> CallFacts:
    return CallFacts("CA1", from_number=THEIRS, to_number=ours, parameters=parameters)


def outbound(ours: str = OURS, **parameters: str) -> CallFacts:
    return CallFacts(
        "CA1",
        from_number=ours,
        to_number=THEIRS,
        direction="outbound",
        parameters=parameters,
    )


# ----------------------------------------------------------- which route a call gets

PICKING = f"""
routes:
  - name: spring
    number: "{OURS}"
    when: {{campaign: spring, year: 2026}}
  - name: out
    number: any
    direction: outbound
  - name: both
    number: [{OURS}, (415) 555 0102]
  - number: {OTHER}
    direction: inbound
"""


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (inbound(campaign="spring", year="2026", more="x"), "spring"),
        (inbound(campaign="spring"), "both"),
        (inbound(campaign="autumn", year="2026"), "both"),
        (outbound(campaign="spring", year="2026"), "spring"),
        (outbound(OTHER), "out"),
        (outbound(""), "out"),
        (inbound(), "both"),
        (inbound("+14155550102"), "both"),
        (inbound(OTHER), "route-4"),
        (inbound("+14155550199"), ""),
        (inbound("sip:desk@example.com"), ""),
    ],
)
def test_the_first_matching_route_is_used(
    tmp_path: Path, facts: CallFacts, name: str
) -> None:
    """A call reaches the agent of its number, direction and campaign."""
    text = PICKING.replace("(415)", "+1 (415)")

    assert load(tmp_path, text).pick(facts).name == name


def test_a_route_is_found_by_its_name(tmp_path: Path) -> None:
    """An outbound call can name its route."""
    found = load(tmp_path, "routes: [{name: a}, {agent: x:y}]")

    assert [route.name for route in found.routes] == ["a", "route-2"]
    assert found.named("route-2") is found.routes[1]
    assert found.named("b") is None and found.named("") is None


def test_without_a_routes_file_the_settings_apply() -> None:
    """A deployment without a routes file works with its settings alone."""
    found = Routes.none()

    assert found.pick(inbound()) == Route()
    assert found.agents() == {} and found.functions() == {} and found.warnings == ()


# --------------------------------------------------------------------------- the values

FULL = """
number: +14155550100
direction: inbound
when: {campaign: spring, tries: 3, on: yes}
agent: examples/hello.py:agent
greeting: Say 'hello'.
language: de-DE
session: {voice: cedar, speed: 1.5, turn_detection: off}
fallback: +1 415 555 0101
busy: Busy.
sorry: Sorry.
keys:
  0: {transfer: +1 415 555 0101}
  "#1": {hang_up: yes}
  "*": {tell: off}
key_pause_seconds: 1.5
tone_ms: 250
tone_gap_ms: 120
key_stops_agent: off
resume_after_noise: off
waiting_sound: off
slow_tool_seconds: off
one_moment: off
silence: {seconds: 20, ask: 1, tell: Ask!}
longest_seconds: 600
cost:
  limit: 1.5
  input_text: 4
  input_audio: 32.0
  input_cached: 0.4
  output_text: 16
  output_audio: 64
approval: {seconds: 10, default: approve, message: No.}
tool_seconds: 5
transfers:
  billing: +1 415 555 0101
  sales:
    {number: "+14155550102", caller_id: "+14155550100", ring_seconds: 25,
     description: orders}
on_call: hooks:begin
report: {to: hooks.py:report, url: "https://example.com/r?key=x"}
"""


def test_every_key_of_a_route_is_read(tmp_path: Path) -> None:
    """Numbers, texts and times of the file become the rules of the call."""
    assert one(tmp_path, FULL) == Route(
        name="a",
        numbers=(OURS,),
        direction="inbound",
        when={"campaign": "spring", "tries": "3", "on": "yes"},
        agent="examples/hello.py:agent",
        greeting="Say 'hello'.",
        language="de-DE",
        session=session(
            voice="cedar",
            speed=1.5,
            turn_detection=None,
            transcription={"language": "de"},
        ),
        fallback=OTHER,
        busy="Busy.",
        sorry="Sorry.",
        keys={"0": Transfer(OTHER), "#1": HangUpAction(), "*": TellAction("off")},
        key_pause_seconds=1.5,
        tone_ms=250,
        tone_gap_ms=120,
        key_stops_agent=False,
        resume_after_noise=False,
        waiting_sound=OFF,
        slow_tool_seconds=0.0,
        one_moment="",
        silence=Silence(20.0, 1, "Ask!"),
        longest_seconds=600.0,
        cost=Cost(Prices(4.0, 32.0, 0.4, 16.0, 64.0), 1.5),
        approval=ApprovalRule(10.0, "approve", "No."),
        tool_seconds=5.0,
        transfers={
            "billing": Transfer(OTHER),
            "sales": Transfer("+14155550102", OURS, 25, "orders"),
        },
        on_call="hooks:begin",
        report=ReportTarget("hooks.py:report", "https://example.com/r?key=x"),
    )


def test_a_greeting_that_cannot_be_cut(tmp_path: Path) -> None:
    """A text alone is a greeting that callers may interrupt."""
    text = "greeting: {text: Go., interruptible: off}"

    assert one(tmp_path, text).greeting == RouteGreeting("Go.", interruptible=False)
    assert one(tmp_path, "greeting: {text: Go.}").greeting == RouteGreeting("Go.")


def wav_file(folder: Path, samples: int = 2) -> Path:
    """Silence."""
    file = folder / "hold.wav"
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(2 * samples))
    return file


def test_recordings_of_a_route(tmp_path: Path) -> None:
    """Their words are known, so that the agent knows what the caller was told."""
    file = str(wav_file(tmp_path))
    text = "greeting: {file: FILE, words: Hi.}\nnotice: {file: FILE, words: R.}"

    route = one(tmp_path, text.replace("FILE", file))

    assert route.greeting == RouteGreeting(file=file, words="Hi.")
    assert route.notice == Notice(file, "R.")


def test_a_waiting_sound_of_a_route(tmp_path: Path) -> None:
    """The file is converted when the routes are read, not in a call."""
    file = wav_file(tmp_path, 8000)
    sound = Sound(str(file), base64.b64encode(b"\xff" * 8000).decode())

    assert one(tmp_path, f"waiting_sound: {file}").waiting_sound == sound
    assert one(tmp_path, "waiting_sound: tone").waiting_sound == TONE


def test_a_waiting_sound_that_is_repeated_too_often(tmp_path: Path) -> None:
    """Each repetition is work for the call: a file of two samples took a whole core,
    and calls stuttered, as long as one caller waited."""
    file = wav_file(tmp_path, 7999)

    with pytest.raises(routes.RoutesError, match="shorter than 1 s: add silence"):
        one(tmp_path, f"waiting_sound: {file}")


def test_a_missing_key_has_a_default(tmp_path: Path) -> None:
    """A route of one line limits silence and duration of its calls."""
    route = one(tmp_path, "agent: a:b")

    assert one(tmp_path, "agent: a:b\nresume_after_noise: on") == route
    assert route == Route(name="a", agent="a:b")
    assert route.silence == Silence(15.0, 2, SILENT)
    assert (route.tool_seconds, route.key_pause_seconds) == (60.0, 2.0)
    assert (route.approval.seconds, route.approval.default) == (30.0, "reject")
    assert route.longest_seconds == 4 * 60 * 60
    assert (route.greeting, route.fallback, route.cost) == (None, None, None)


def test_a_key_of_a_route_overrides_the_defaults(tmp_path: Path) -> None:
    """A value of `defaults` can be changed for one route."""
    found = load(
        tmp_path,
        """
defaults:
  agent: a:b
  silence: off
  transfers: {desk: +14155550101}
  language: fr
  session: {voice: ash, speed: 1.2, turn_detection: {type: server_vad, threshold: 0.3}}
routes:
  - name: own
    agent: c:d
    silence: {ask: 1}
    transfers: {}
    session: {voice: cedar, turn_detection: {type: server_vad, silence_duration_ms: 9}}
  - name: plain
""",
    )
    own, plain = found.routes

    assert (own.agent, own.silence, own.transfers) == ("c:d", Silence(ask=1), {})
    assert own.session == session(
        voice="cedar",
        speed=1.2,
        turn_detection={
            "type": "server_vad",
            "threshold": 0.3,
            "silence_duration_ms": 9,
        },
        transcription={"language": "fr"},
    )
    assert (plain.agent, plain.silence) == ("a:b", None)
    assert plain.transfers == {"desk": Transfer(OTHER)}
    assert found.defaults == Route(
        agent="a:b",
        silence=None,
        transfers=plain.transfers,
        language="fr",
        session=plain.session,
    )


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("language: en-GB", {"language": "en"}),
        ("language: EN", {"language": "en"}),
        ("language: cmn-Hans-CN", "nothing"),
        ("", "nothing"),
        ("language: en\nsession: {transcription: off}", None),
        ("language: en\nsession: {transcription: {language: de}}", {"language": "de"}),
        (
            "language: en\nsession: {transcription: {languages: [de, no]}}",
            {"languages": ["de", "no"]},
        ),
        (
            "language: en\nsession: {transcription: gpt-transcribe}",
            {"model": "gpt-transcribe", "language": "en"},
        ),
    ],
)
def test_the_transcription_gets_the_language_of_the_route(
    tmp_path: Path, text: str, heard: Any
) -> None:
    """`language` of the route also applies to the transcription, unless the session has
    its own."""
    settings = {} if heard == "nothing" else {"transcription": heard}

    assert one(tmp_path, text).session == session(**settings)


def test_values_of_unknown_fields_are_read_as_json(tmp_path: Path) -> None:
    """A field without a known type arrives as the number or boolean that was meant."""
    route = one(
        tmp_path,
        """session:
  extra: {a: [1, -2.5, true, "3", no, ~], b: {c: 007}, d: 1.5e3}
  tracing: {metadata: {team: 1, id: "1"}}
  prompt: {id: p, version: 3, variables: {metadata: 5}}""",
    )

    raw = route.session.raw_session()
    assert raw == {
        "a": [1, -2.5, True, "3", "no", None],
        "b": {"c": "007"},
        "d": 1500.0,
    }
    settings: dict[str, Any] = dict(route.session.sdk_settings())
    assert settings["tracing"] == {"metadata": {"team": 1, "id": "1"}}
    assert settings["prompt"]["variables"] == {"metadata": "5"}
    assert settings["prompt"]["version"] == "3"


def test_every_yaml_form_of_a_text_is_read(tmp_path: Path) -> None:
    """An empty greeting stays empty; a long one may have several lines."""
    assert one(tmp_path, 'greeting: ""').greeting == ""
    assert one(tmp_path, "greeting: 'off'").greeting == "off"
    assert one(tmp_path, "greeting: |\n  One.\n  Two.").greeting == "One.\nTwo.\n"


@pytest.mark.parametrize(
    ("text", "when_full"),
    [
        ("", None),
        ("when_full: busy", WhenFull("busy")),
        ("when_full: queue", WhenFull("queue")),
        ("when_full: {answer: queue}", WhenFull("queue")),
        (
            "when_full:\n  answer: fallback\n  say: One moment.",
            WhenFull("fallback", "One moment."),
        ),
    ],
)
def test_when_full_is_read_in_both_forms(
    tmp_path: Path, text: str, when_full: WhenFull | None
) -> None:
    """Callers of a full deployment wait or are connected to a number, as the route
    says."""
    assert one(tmp_path, text).when_full == when_full


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """A byte order mark and CRLF line ends make no difference."""
    path = tmp_path / "routes.yaml"
    path.write_bytes(b"\xef\xbb\xbfroutes:\r\n  - name: a\r\n    agent: a:b\r\n")

    assert routes.load(path).routes[0].agent == "a:b"


# ------------------------------------------------ agents and functions to load at start


def test_agents_and_functions_are_found_with_their_lines(tmp_path: Path) -> None:
    """The error about an agent that cannot be loaded gives the line that names the
    agent."""
    found = load(
        tmp_path,
        """defaults:
  agent: a:b
  report: {to: h:r}
routes:
  - name: one
    on_call: h:c
  - name: two
    agent: c:d
    report: {url: https://x.example}
  - agent: a:b
""",
    )
    one, two, three = found.routes
    file = tmp_path / "routes.yaml"

    assert found.agents() == {
        "a:b": [one, three, found.defaults],
        "c:d": [two],
    }
    assert found.functions() == {
        "h:c": [(one, "on_call")],
        "h:r": [(one, "report"), (three, "report"), (found.defaults, "report")],
    }
    assert found.where(one, "agent") == f"{file}:2"
    assert found.where(two, "agent") == f"{file}:8"
    assert found.where(three, "agent") == f"{file}:10"
    assert found.where(found.defaults, "agent") == f"{file}:2"
    assert found.where(one, "on_call") == f"{file}:6"
    assert found.where(one, "report") == f"{file}:3"
    assert found.where(two, "report") == f"{file}:9"
    assert found.where(two, "greeting") == found.where(two) == f"{file}:7"


def test_a_model_that_will_be_shut_down_gives_a_warning_with_its_line(
    tmp_path: Path,
) -> None:
    """`bridge check` gives the line of a model that will be shut down."""
    found = load(
        tmp_path,
        """defaults:
  session:
    transcription: whisper-1
routes:
  - session:
      voice: ash
      model: gpt-realtime
""",
    )

    file = tmp_path / "routes.yaml"
    first, second = found.warnings
    assert first.startswith(f"{file}:3: defaults.session.transcription.model is whi")
    assert second.startswith(f"{file}:7: routes.1.session.model is gpt-realtime, which")
    assert "2027" in first and "2027" in second


# ------------------------------------------------------------------------- the mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # The file.
        ("", "1: the file is empty"),
        ("# nothing\n", "1: the file is empty"),
        ("5", "1: is not a mapping"),
        ("\n- a", "2: is not a mapping"),
        ("routs: []", "1: routs is not a known key: did you mean routes?"),
        ("routes:\n  a: b", "2: routes is not a list"),
        ("routes:", "1: routes is not a list"),
        ("defaults: 3", "1: defaults is not a mapping"),
        ("routes:\n- a\n", "2: routes.1 is not a mapping"),
        ("routes: [\n", "2: is not YAML"),
        ("routes:\n  - name: a\n   agent: b", "3: is not YAML"),
        ("a: b\n---\nc: d", "2: is not YAML"),
        ("a:\n\tb: c", "2: is not YAML"),
        ("a: \n'\x07'", "2: has a character that YAML forbids"),
        ("a: b\nc: &x d", "2: &x is an anchor"),
        ("a: b\nc: *x", "2: *x is an alias"),
        ("a: !!python/object/apply:os.system [ls]", "1: tag:yaml.org,2002:python"),
        ("a: b\nc: " + "[" * 50, "2: is nested too deep"),
        ('a: "\\ud800"', "1: has half of a surrogate pair: remove it"),
        ("? [a]\n: b", "1: has a key that is not a text"),
        # The names.
        ("routes:\n- name: a b", "2: routes.1.name is 'a b': write letters"),
        (
            "routes:\n- name: a\n- name: a",
            "3: routes.2.name repeats the name a of line 2",
        ),
        (
            "routes:\n- name: route-2\n- agent: a:b",
            "3: routes.2 repeats the name route-2 of line 2",
        ),
        (
            "routes:\n- agent: a:b\n- name: route-1",
            "3: routes.2.name repeats the name route-1 of line 2",
        ),
        ("routes: [{name: a}, {name: a}]", "1: routes.2.name repeats the name a of"),
        ("defaults: {name: x}", "1: defaults.name is not a known key"),
    ],
)
def test_a_malformed_file_is_reported_with_a_line(
    tmp_path: Path, text: str, told: str
) -> None:
    """The operator reads the file's name, the line and a fix instead of a traceback."""
    [mistake] = mistakes(tmp_path, text)

    assert mistake.startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("agnt: a:b", "agnt is not a known key: did you mean agent?"),
        ("agent: a:b\nagent: b:c", ".agent is in line 3 already: keep one"),
        ("silence: {secnds: 1}", ".silence.secnds is not a known key: did you mean s"),
        ("report: {ulr: x}", ".report.ulr is not a known key: did you mean url?"),
        (
            "when_full: {answer: queue, sy: x}",
            ".when_full.sy is not a known key: did you mean say?",
        ),
        ("numbers: any", ".numbers is not a known key: did you mean number?"),
        ("approval: {secods: 1}", "approval.secods is not a known key: did you mean"),
        (
            "redact: [{pattern: a, mapping: x}]",
            ".redact.1.mapping is not a known key: the keys are pattern",
        ),
        (
            f"keys: {{1: {{transfer: {{number: {OURS}, numbr: x}}}}}}",
            ".keys.1.transfer.numbr is not a known key: did you mean number?",
        ),
        (
            "session:\n  transcription:\n    model: a\n    model: b",
            ".session.transcription.model is in line 5 already: keep one",
        ),
        ("when: {'[key]': [a]}", ".when.[key] is not a text"),
        ("agent:", ".agent has no value"),
        ("agent: [a]", ".agent is not a text"),
        ("agent: nothing", ".agent is 'nothing': write package.module:name or"),
        ("agent: " + "x" * 100, "xxx...': write package.module"),
        ("on_call: f", ".on_call is 'f'"),
        ("number: 5", ".number is not a phone number"),
        ("number: []", ".number is an empty list"),
        ("number: [any]", ".number.1 is not a phone number"),
        (f"number:\n- {OURS}\n- {{}}", ".number.2 is not a text"),
        ("direction: in", ".direction is 'in': write inbound or outbound"),
        ("when: spring", ".when is not a mapping"),
        ("when: {campaign: [a]}", ".when.campaign is not a text"),
        ('when: {" ": a}', ".when has ' ' as a key"),
        ("greeting: off", '.greeting is off: write "" to let'),
        ("greeting: ~", ".greeting has no value"),
        ("greeting: {interruptible: off}", ".greeting is not one greeting: write text"),
        (
            "greeting: {text: Go., file: a.wav}",
            ".greeting.file is 'a.wav', which is no",
        ),
        ("greeting: {text: Go., words: Go.}", ".greeting has a file or words alone"),
        ("greeting: {words: Go.}", ".greeting is not one greeting: write text, or"),
        ("notice: Recorded.", ".notice is not a mapping"),
        ("notice: {words: Recorded.}", ".notice lacks file: write it"),
        ("notice: {file: a.wav, words: R.}", ".notice.file is 'a.wav', which is no"),
        ("greeting: {text: off}", '.greeting.text is off: write "" to let'),
        (
            "greeting: {text: Go., interruptible: never}",
            ".greeting.interruptible is 'never': write on or off",
        ),
        ("greeting: {text: Go., says: x}", ".greeting.says is not a known key: the"),
        (
            "language: English, please",
            ".language is 'English, please': write a language such as",
        ),
        ("fallback: 911", ".fallback is not a phone number"),
        ('busy: ""', ".busy cannot be said"),
        ("when_full: wait", ".when_full is 'wait': write busy, queue or fallback"),
        ("when_full: [queue]", ".when_full is not a mapping"),
        ("when_full: {say: Wait.}", ".when_full lacks answer"),
        ('when_full: {answer: queue, say: ""}', ".when_full.say cannot be said"),
        ("when_full: {answer: busy, say: No.}", ".when_full has say for busy"),
        ("sorry: " + "x" * 5000, ".sorry cannot be said"),
        ("keys: {A1x: {hang_up: true}}", ".keys has 'A1x' as a key"),
        ("keys: {0: hang_up}", ".keys.0 is not a mapping"),
        ("keys: {0: {}}", ".keys.0 is not one action"),
        ("keys: {0: {hang_up: true, tell: x}}", ".keys.0 is not one action"),
        ("keys: {0: {hang_up: false}}", ".keys.0.hang_up is 'false': write true"),
        ("keys: {0: {tell: ' '}}", ".keys.0.tell is empty"),
        ("keys: {0: {transfr: x}}", ".keys.0.transfr is not a known key: did you mean"),
        (
            "resume_after_noise: maybe",
            ".resume_after_noise is 'maybe': write on or off",
        ),
        ("waiting_sound: a.wav", ".waiting_sound is 'a.wav', which is no file: write"),
        (f"waiting_sound: {__file__}", "which is no WAV file: convert it to WAV, or"),
        ("slow_tool_seconds: 0", ".slow_tool_seconds is '0': write seconds from 1 to"),
        ("one_moment: " + 81 * "a", ".one_moment is too long: write at most 80 char"),
        ("waiting_sound: ~", ".waiting_sound is not a text: write tone, off, or"),
        ("tone_ms: 5000", ".tone_ms is '5000'"),
        ("key_pause_seconds: 0", ".key_pause_seconds is '0': write seconds from 0.2"),
        ("silence: 5", ".silence is not a mapping"),
        ("silence: {seconds: soon}", ".silence.seconds is 'soon': write seconds"),
        ("silence: {ask: 1.5}", ".silence.ask is '1.5': write a whole number from 0"),
        ("longest_seconds: 14401", ".longest_seconds is '14401'"),
        ("tool_seconds: -1", ".tool_seconds is '-1'"),
        ("tool_seconds: nan", ".tool_seconds is 'nan'"),
        ("tool_seconds: 1e1", ".tool_seconds is '1e1'"),
        (
            "cost: {limit: 1}",
            ".cost lacks input_text, input_audio, input_cached, output_text, ",
        ),
        ("approval: {default: ask}", ".approval.default is 'ask': write approve or"),
        ("transfers: {a b: +1}", ".transfers has 'a b' as a key: write letters"),
        ("transfers: {a: {ring_seconds: 30}}", ".transfers.a lacks number"),
        ("transfers: {a: 'sip:desk'}", "write it like +14155550100 or sip:user@host"),
        (
            f"transfers: {{a: {{number: {OURS}, digits: 1x}}}}",
            ".transfers.a.digits is '1x': write up to 32 of 0-9",
        ),
        (
            "keys: {1: {transfer: {number: 'sip:d@pbx.example', digits: '1'}}}",
            ".keys.1.transfer has digits for a SIP URI: they can be pressed at phones",
        ),
        (
            f"transfers: {{a: {{number: {OURS}, ring_seconds: 3}}}}",
            ".transfers.a.ring_seconds is '3': write a whole number from 5 to 600",
        ),
        ("report: {}", ".report has no target"),
        (
            "report: {url: http://example.com/key}",
            ".report.url is not a complete https URL",
        ),
        ("report: {url: ftp://localhost/}", ".report.url is not a complete https URL"),
        ("report: {url: 'https://a b/key'}", ".report.url is not a complete https URL"),
        ("report: {url: 'https://x:y/key'}", ".report.url is not a complete https URL"),
        ("report: {url: key}", ".report.url is not a complete https URL"),
        ("session: 5", ".session is not a mapping"),
        ("session: [a]", ".session is not a mapping"),
    ],
)
def test_a_wrong_value_is_reported_with_its_line(
    tmp_path: Path, text: str, told: str
) -> None:
    """The line is the one to change; the message does not repeat a number or a key."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    [mistake] = mistakes(tmp_path, f"routes:\n  - name: a\n{body}")

    line, _, place = mistake.partition(": ")
    assert int(line) == 3 + text.count("\n")
    assert place.startswith("routes.1.") and told in place
    assert "key}" not in mistake and "911" not in mistake


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    """The mistakes come in the order of the lines, each with its place in the file."""
    text = """defaults:
  sesion: {}
  session:
    mcp:
      - server_label: a
        server_url: https://a.example
        headrs: {}
      - server_label: b
routes:
  - number: nobody
    session:
      turn_detection:
        type: server_vad
        threshold: 3
        eagerness: low
      voice: marin
      voice: ash
      extra:
        audio:
          output:
            format: pcm
  - name: a
    keys:
      0:
        transfer: "1"
"""

    places = [
        line.partition(" ")[0] + line.split()[1] for line in mistakes(tmp_path, text)
    ]

    assert places == [
        "2:defaults.sesion",
        "7:defaults.session.mcp.0.headrs",
        "8:defaults.session.mcp.1",
        "10:routes.1.number",
        "14:routes.1.session.turn_detection.threshold",
        "15:routes.1.session.turn_detection.eagerness",
        "17:routes.1.session.voice",
        "21:routes.1.session.extra.audio.output.format",
        "25:routes.2.keys.0.transfer",
    ]


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """A wrong path, a folder or a picture gives one line that says so."""
    picture = tmp_path / "picture"
    picture.write_bytes(b"routes:\n\xff\xfe")
    big = tmp_path / "big"
    big.write_bytes(b"#" * (yaml_lines.MAX_BYTES + 1))

    for path, told in (
        (tmp_path / "none.yaml", ":1: cannot be read (No such file"),
        (tmp_path, ":1: cannot be read (Is a directory"),
        (picture, ":2: is not UTF-8"),
        (big, ":1: has more than 1048576 bytes"),
    ):
        with pytest.raises(RoutesError) as refused:
            routes.load(path)
        [mistake] = refused.value.mistakes
        assert mistake.startswith(f"{path}{told}")


def test_aliases_that_would_expand_without_limit_are_refused(tmp_path: Path) -> None:
    """A small file that would expand to a gigabyte is refused at its first anchor."""
    text = 'a: &a ["lol"]\n' + "".join(
        f"{it}: &{it} [*{before}, *{before}]\n"
        for before, it in zip("abcdefgh", "bcdefghi", strict=True)
    )

    assert mistakes(tmp_path, text) == ["1: &a is an anchor: leave it out"]


def test_a_key_in_a_url_is_not_shown() -> None:
    """A traceback that shows the route does not show the key in its report URL."""
    assert "hush" not in repr(
        Route(report=ReportTarget(url="https://x.example/?key=hush"))
    )


# -------------------------------------------------------------------------- the example


def test_the_example_has_no_mistake() -> None:
    """A user who copies the example starts with a file that works."""
    found = routes.load(EXAMPLES / "routes.yaml")
    pizza, spring = found.routes

    assert found.warnings == ()
    assert found.pick(inbound()) == pizza
    assert found.pick(outbound(campaign="spring")) == spring
    assert found.pick(inbound("+14155550188")) == found.defaults
    assert set(found.agents()) == {
        "examples/hello.py:agent",
        "examples/pizza.py:agent",
    }
    for name in found.agents():
        assert (EXAMPLES.parent / name.partition(":")[0]).is_file()
    assert pizza.transfers["complaints"].ring_seconds == 25
    assert spring.silence is None and spring.greeting == ""
    assert spring.cost is not None and spring.cost.limit == 1.5


def test_redact_is_read(tmp_path: Path) -> None:
    """Cards, keys, digits, and the operator's own patterns are removed from the
    text."""
    written = r"redact: [cards, {pattern: '(?i)password is \S{1,40}'}, digits]"

    redact = one(tmp_path, written).redact

    assert redact.names == ["cards", "digits", "pattern"]
    said = "My password is hunter-x or 4711"
    assert redact.text(said) == "My [removed] or [digits]"
    assert one(tmp_path, "redact: keys").redact.names == ["keys"]
    assert not one(tmp_path, "greeting: Hi.").redact


def test_redact_of_a_route_replaces_that_of_the_defaults(tmp_path: Path) -> None:
    """A route can redact less than the defaults do."""
    read = load(
        tmp_path,
        """
defaults: {redact: [cards, keys]}
routes:
  - {name: a, redact: off}
  - {name: b, redact: [digits]}
  - {name: c}
""",
    )

    names = [route.redact.names for route in (*read.routes, read.defaults)]
    assert names == [[], ["digits"], ["cards", "keys"], ["cards", "keys"]]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("bank", "redact is 'bank': write cards, keys or digits"),
        ("[cards, bank]", "redact.2 is 'bank': write cards, keys or digits"),
        ("[]", "redact is an empty list: name what to remove, or write off"),
        ("{pattern: '('}", "redact.pattern is no regular expression (missing ), "),
        ("[{pattern: '(a+)+b'}]", "redact.1.pattern may take too long: bound its "),
        ("[{pattern: 'a*'}]", "redact.1.pattern matches an empty text: require at "),
        ("[{}]", "redact.1 lacks pattern: write it"),
        ("[[cards]]", "redact.1 is not a mapping: write `key: value` lines below it"),
    ],
)
def test_a_wrong_redact_value_is_reported(
    tmp_path: Path, written: str, told: str
) -> None:
    """A misspelt word in `redact` is an error, so card numbers are not stored by
    mistake."""
    [mistake] = mistakes(tmp_path, f"defaults:\n  redact: {written}\n")

    assert mistake.startswith(f"2: defaults.{told}")


def test_what_a_person_must_press_is_a_boolean(tmp_path: Path) -> None:
    """Another instance reads it, and to that one a text is no boolean."""
    path = tmp_path / "routes.yaml"
    target = "{number: +1 415 555 0100, accept: yes, warm: on}"
    path.write_text(f"routes:\n  - number: any\n    transfers: {{sales: {target}}}\n")

    sales = routes.load(path).routes[0].transfers["sales"]

    assert sales.accept is True and sales.warm is True
