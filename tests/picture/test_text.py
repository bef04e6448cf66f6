"""A call as text for a terminal."""

from io import StringIO

from rich.console import Console

from bridge.picture.text import show
from bridge.picture.view import CallerTurn, CallView, Event, Tool


def printed(view: CallView) -> str:
    out = StringIO()
    show(view, Console(file=out, width=200))
    return out.getvalue()


def test_nobody_can_control_the_terminal() -> None:
    """What a tool returns, or the model's server says, moves no cursor and sets no
    title."""
    view = CallView(call_sid="CA1", length_ms=9000)
    view.tools = [Tool("c1", "look", 100, "{}", "\x1b]0;owned\x07\x1b[2J\x9b31m", 900)]
    view.turns = [CallerTurn("u1", 100, 700, "Hi\x1b[2J", 720)]
    view.events = [Event(0, "model_error", {"code": "\x1b[1m"}, "\x1b[2J")]

    told = printed(view)
    assert "owned" in told
    assert not [
        it for it in told if (ord(it) < 0x20 and it != "\n") or 0x7F <= ord(it) < 0xA0
    ]
