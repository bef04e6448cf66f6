"""`bridge demo`: one call between the fakes, and its report."""

import os
from pathlib import Path
from typing import Any

import pytest
from agents import HostedMCPTool, RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent

from bridge.agent.live import LiveCall
from bridge.agent.phone_tools import hang_up, send_digits
from bridge.app.startup import UserCode
from bridge.cli import demo
from bridge.sim.model import CallTool, SayText
from bridge.sim.played_items import find_items
from bridge.sim.scenario import (
    RECEPTION,
    SMALL_TALK,
    CallerAction,
    Scenario,
    SpokenLine,
)
from bridge.sim.twilio import steps

pytestmark = pytest.mark.slow

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)


@function_tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"{what}: {os.environ['OPENAI_BASE_URL']}"


@function_tool
async def written(context: RunContextWrapper[LiveCall]) -> str:
    """Something is written into the call."""
    context.context.tell("In writing.", respond=False)
    return "x" * 500


billing: RealtimeAgent[Any] = RealtimeAgent(name="billing", tools=[hang_up])
front: RealtimeAgent[Any] = RealtimeAgent(
    name="front", tools=[look_up, send_digits, written], handoffs=[billing]
)


def test_the_report_lists_words_tools_and_handoffs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report lists words, tool calls with their output, and handoffs, in order and
    with the time. A call that the agent ends is a success. The recording is in the
    folder."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("sys.argv", ["/some/where/bin/bridge", "demo"])
    patient = steps.ListenStep(quiet_seconds=1.0)
    scenario = Scenario(
        "a test",
        [
            SpokenLine("What is it?"),
            patient,
            SpokenLine("Bye."),
            steps.WaitStep(8),
            steps.HangUpStep(),
        ],
        [
            [SayText("Hi.")],  # the greeting, which the caller interrupts
            [SayText("A moment."), CallTool("look_up", {"what": "it"})],
            [CallTool("send_digits", {"digits": "12"})],
            [CallTool("written", {})],
            [SayText("It is blue.")],
            [CallTool("transfer_to_billing", {})],
            [SayText("Goodbye!"), CallTool("hang_up", {})],
        ],
    )
    call = demo.run(UserCode(front), scenario, tmp_path)

    assert demo.failures(call) == []
    assert call.record.ended_by == "bridge"
    did = {it.name: it for it in call.actions}
    tools = ["look_up", "send_digits", "written", "hang_up"]
    assert list(did) == [*tools, "front -> billing"]
    assert did["look_up"].text.startswith('look_up {"what":"it"} -> it: http://127.')
    assert did["written"].text.endswith("xxx ...")
    assert did["hang_up"].output is None and did["hang_up"].text == "hang_up {}"
    assert did["front -> billing"].kind == "handoff"
    said = [(it.who, it.text) for it in call.said]
    assert [it for it in said if it[0] == "caller"] == [
        ("caller", "What is it?"),
        ("caller", "Bye."),
    ]
    assert ("agent", "It is blue.") in said and ("billing", "Goodbye!") in said
    blue = next(it for it in call.said if it.text == "It is blue.")
    assert not blue.cut  # not cut, although tones were played before it
    assert did["written"].at < blue.at < did["hang_up"].at
    report = call.report.read_text()
    assert "tool" in report and "handoff" in report and "by the bridge" in report
    assert "/some/where/bin/bridge demo --agent yours.py:agent" in report
    assert call.wav.stat().st_size > 10_000
    assert "OPENAI_API_KEY" not in os.environ  # set only while the demo ran


def test_any_agent_makes_small_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with a hosted MCP server that does not exist gets one in the demo. A key
    that the user has set is used."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    tables = HostedMCPTool(
        tool_config={
            "type": "mcp",
            "server_label": "tables",
            "server_url": "https://mcp.invalid",
            "require_approval": "never",
        }
    )
    agent: RealtimeAgent[Any] = RealtimeAgent(name="own", tools=[tables])
    hear = steps.HearStep(400)
    lines: list[CallerAction] = [
        hear,
        SpokenLine("Hi."),
        hear,
        SpokenLine("Now?"),
        LISTEN,
        steps.HangUpStep(),
    ]
    call = demo.run(UserCode(agent), Scenario("short", lines), tmp_path)

    assert demo.failures(call) == []
    [did] = call.actions
    assert did.text.startswith('tables.look_up {"query":"example"} -> this is what')
    assert os.environ["OPENAI_API_KEY"] == "sk-of-the-user"
    assert call.record.ended_by == "caller"


PAUSE = b"\xff" * 200
ONE, TWO, THREE = (bytes(range(at, at + 60)) * 40 for at in (0, 70, 140))


@pytest.mark.parametrize(
    ("played", "items", "places"),
    [
        (ONE + TWO, [ONE, TWO], [(0, 2400), (2400, 2400)]),
        (ONE[:900] + TWO, [ONE, TWO], [(0, 900), (900, 2400)]),
        # Cut in a pause; the next item begins with silence too.
        (
            ONE + PAUSE[:90] + PAUSE[:40] + TWO,
            [ONE + PAUSE + THREE, PAUSE[:40] + TWO],
            [(0, 2490), (2490, 2440)],
        ),
        # The same words again.
        (ONE[:910] + ONE, [ONE, ONE], [(0, 910), (910, 2400)]),
        # Tones between them that belong to no item; and an item that was never played.
        (ONE + b"~" * 300 + TWO, [ONE, TWO], [(0, 2400), (2700, 2400)]),
        (ONE, [ONE, TWO], [(0, 2400), (2400, 0)]),
    ],
)
def test_the_played_part_of_each_item_is_found(
    played: bytes, items: list[bytes], places: list[tuple[int, int]]
) -> None:
    """The demo compares the model's belief with the bytes that were played. A cut in a
    pause, which sounds the same, does not shift the next item."""
    assert find_items(played, [(it, False) for it in items]) == places


def test_an_unheard_item_is_not_found_in_a_later_one() -> None:
    """An answer that was deleted before it was played is played later; or a little of
    it was played after all."""
    answers = [(ONE + PAUSE, False), (TWO, True)]
    again = [*answers, (TWO, False)]
    played = ONE + PAUSE[:90] + b"~" + TWO

    assert find_items(played, again) == [(0, 2490), (2490, 0), (2491, 2400)]
    assert find_items(ONE + TWO[:80], answers) == [(0, 2400), (2400, 80)]


def test_the_agent_ends_the_bundled_call() -> None:
    """The agent says goodbye and hangs up; the caller would do so only if it did
    not."""
    assert RECEPTION.model[-1][-1] == CallTool("hang_up", {})
    assert RECEPTION.caller[-2:] == [steps.WaitStep(10), steps.HangUpStep()]


def test_small_talk_has_turns_for_the_tools() -> None:
    """Five tools are shown, and the demo does not take long."""
    lines = [it for it in SMALL_TALK.caller if isinstance(it, SpokenLine)]

    assert len(lines) == 6
