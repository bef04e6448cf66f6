"""What a call said, heard and did, as people read it on the terminal."""

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from bridge.agent.live import ModelProblem
from bridge.app.settings import Settings
from bridge.cli.call_page import SHORTEN_AT, Did, Said, show_lines, show_report
from bridge.cli.commands import _printer
from bridge.cli.heard_call import experienced_delays, heard_lines
from bridge.core.transfers import FailedTransfer
from bridge.records.report import (
    AnswerDelay,
    CallReport,
    CallUsage,
    Handoff,
    ToolCall,
    TranscriptEntry,
)
from bridge.sim.caller import CallRecord

REPORT = CallReport(
    call_sid="CA1",
    stream_sid="MZ1",
    account_sid="",
    from_number="+14155550101",
    to_number="",
    direction="inbound",
    route="",
    parameters={},
    started_at="",
    seconds=64.3,
    status="completed",
    outcome="caller_hung_up",
    ended_by="caller",
    ended_why="hung_up",
    agent="billing",
)


def report(**fields: Any) -> CallReport:
    names = {name: getattr(REPORT, name) for name in CallReport.__dataclass_fields__}
    return CallReport(**{**names, **fields})


def printed(it: CallReport) -> list[str]:
    """The lines, with blanks between words only."""
    file = io.StringIO()
    show_report(it, Console(file=file, width=100))
    return [" ".join(line.split()) for line in file.getvalue().splitlines() if line]


def test_a_report_is_one_page() -> None:
    """Words with the unheard ones marked, tools with duration and outcome, handoffs,
    delays by turn, errors, and the end: in the order of time."""
    tools = [
        ToolCall("find", '{"who":"Ann"}', "Room 4", "done", 0.5, 8.0),
        ToolCall("book", "{}", "Sorry.", "failed", 1.25, 12.0, "KeyError: 'Ann'"),
        ToolCall("transfer_to_billing", "{}", "{...}", "done", 0.01, 14.0),
        ToolCall("hang_up", "{}", "", "call_over", 2.0, 60.0),
        ToolCall("ask", "{}", ""),
    ]
    transcript = [
        TranscriptEntry(1.0, "agent", "Hello, how can", "Hello, how can I help?", True),
        TranscriptEntry(6.0, "caller", "Where is [bold]Ann[/bold]?", "", False),
        TranscriptEntry(20.0, "agent", "In room 4.", "In room 4.", False),
    ]
    lines = printed(
        report(
            transcript=transcript,
            tools=tools,
            handoffs=[Handoff(15.0, "desk", "billing")],
            delays=[AnswerDelay(1, 0.4), AnswerDelay(20, 0.8), AnswerDelay(30, 1.0)],
            problems=[ModelProblem("model_error", "no_voice", message="No voice.")],
            failed_transfers=[FailedTransfer("busy", "", "486", "Busy.")],
            usage=CallUsage(100, 20, 0.25),
        )
    )

    assert lines == [
        "Call CA1 is over",
        "0:01.0 desk Hello, how can ✂ I help?",
        "0:06.0 caller Where is [bold]Ann[/bold]?",
        '0:08.0 tool find {"who":"Ann"} -> Room 4 (0.50 s)',
        "0:12.0 tool book {} -> Sorry. (1.25 s, failed)",
        "0:15.0 handoff desk -> billing",
        "0:20.0 billing In room 4.",
        "1:00.0 tool hang_up {} (2.00 s, the call was over)",
        "1:04.3 tool ask {} (no result)",
        "✂ interrupted: the caller did not hear the rest",
        "Delays",
        "to the first words 0.40 s",
        "from the end of the caller's turn to the answer 0.80 s, 1.00 s",
        "the median of these 0.90 s",
        "tool book failed: KeyError: 'Ann'",
        "model_error: no_voice: No voice.",
        "transfer failed: busy Busy.",
        "After 64.3 s the caller ended it: hung up. The agent was interrupted 1 times. "
        "The model used 100 tokens in, 20 out, cost 0.2500.",
    ]


def test_a_call_in_which_nothing_happened_is_one_page_too() -> None:
    """A silent call, and one that nobody has answered."""
    assert printed(report(seconds=0.2)) == [
        "Call CA1 is over",
        "After 0.2 s the caller ended it: hung up.",
    ]
    unanswered = report(ended_by="", ended_why="", status="busy")
    assert printed(unanswered)[-1] == "Nobody talked: busy."
    [*_, greeted, end] = printed(report(delays=[AnswerDelay(1, 0.4)]))
    assert greeted == "to the first words 0.40 s" and end.startswith("After")


def test_long_texts_are_shortened() -> None:
    file = io.StringIO()
    long = "x" * (SHORTEN_AT + 1)
    lines = [Did(59.96, "tool", "write", "{}", long), Said(0, "caller", "")]
    show_lines(lines, Console(file=file, width=400))

    first, second = file.getvalue().splitlines()
    assert first.split(maxsplit=1) == ["0:00.0", first.split(maxsplit=1)[1]]
    assert "(words unknown)" in first
    assert second.split()[0] == "1:00.0" and second.rstrip().endswith("x ...")


@pytest.mark.parametrize(
    ("setting", "insecure", "terminal", "prints"),
    [
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("auto", False, True, False),
        ("on", False, False, True),
        ("off", True, True, False),
    ],
)
def test_words_are_printed_only_for_developers_by_default(
    monkeypatch: pytest.MonkeyPatch,
    setting: Any,
    insecure: bool,
    terminal: bool,
    prints: bool,
) -> None:
    """Where unsigned requests of this machine are served, and a person looks."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)

    printer = _printer(Settings(print_calls=setting, insecure=insecure))
    assert (printer is not None) is prints


def test_a_call_without_a_stream_has_no_page() -> None:
    """Twilio spoke in the agent's place."""
    record = CallRecord("CA1", 0.0)

    assert heard_lines(record, ["Hello."]) == [] and experienced_delays(record) == []
